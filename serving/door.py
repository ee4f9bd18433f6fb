"""What every route does: who may call, until when, and one or several pictures of a request."""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal, TypeVar

from fastapi import Depends, Header, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, BeforeValidator, Field, PositiveFloat, PositiveInt

from serving.auth import TokenAuth
from serving.content_credentials import ContentCredentials, CredentialsConfig
from serving.rendering import Rendering
from shared.config import Settings
from shared.counters import Priority
from shared.errors import DeadlineExceeded, Overloaded, UnknownModel
from shared.model_profile import ModelProfile, ServedModel
from shared.request import (
    MAX_SEED,
    CanonicalRequest,
    EditRequest,
    Encoding,
    GeneratedImage,
    ImageRequest,
    Progress,
)
from shared.source_image import SourceImage

RenderingT = TypeVar("RenderingT", bound=Rendering)

# Until a picture asks for its place again.
_LONGEST_PAUSE_S = 1.0


class HttpConfig(Settings):
    """`token_hashes` are SHA-256 hex digests of the bearer tokens that may call (none: everyone).

    A request may take `timeout_s` seconds, or less if its caller says so, and upload
    `max_body_bytes`. With `content_credentials` every picture is signed.
    """

    token_hashes: tuple[str, ...] = ()
    timeout_s: PositiveFloat = 600
    max_body_bytes: PositiveInt = 20 * 2**20
    content_credentials: CredentialsConfig | None = None


class Door:
    def __init__(self, models: Mapping[str, Rendering], config: HttpConfig) -> None:
        """What renders each model, by the name that requests have for it; the first is the default.

        Raises CredentialsUnusable where pictures are to be signed and cannot be.
        """
        self.models = dict(models)
        self.auth = TokenAuth(config.token_hashes)
        self._max_timeout_s = config.timeout_s
        credentials = config.content_credentials
        self._credentials = None if credentials is None else ContentCredentials(credentials)

    def rendering(self, model: str | None = None) -> Rendering:
        """What renders `model`, or the default; raises UnknownModel."""
        return chosen(self.models, model)

    def call(self, model: str | None, terms: "Terms") -> "Call":
        """For pictures of `model`, or the default; raises UnknownModel."""
        within_s = min(terms.timeout_s or self._max_timeout_s, self._max_timeout_s)
        rendering = self.rendering(model)
        return Call(rendering, self._credentials, _now() + within_s, terms.priority)


class Call:
    """What is asked of the door at once: some pictures of one model, by a deadline."""

    def __init__(
        self,
        rendering: Rendering,
        credentials: ContentCredentials | None,
        deadline: float,
        priority: Priority,
    ) -> None:
        self._rendering = rendering
        self._credentials = credentials
        self._deadline = deadline
        self._priority = priority

    async def profile(self) -> ModelProfile:
        return (await self.served()).profile

    async def served(self) -> ServedModel:
        """Of the model, which may have to be loaded for it."""
        try:
            async with asyncio.timeout_at(self._deadline):
                return await self._rendering.served()
        except TimeoutError:
            raise DeadlineExceeded("the model was not loaded in the time that it had") from None

    async def canonical(self, request: ImageRequest, n: int = 1) -> list[CanonicalRequest]:
        """`n` canonical requests of successive seeds; raises InvalidRequest."""
        profile = await self.profile()
        return _successive(profile.canonical(request, seed=_drawn_seed(), n=n), n)

    async def canonical_edit(
        self, request: EditRequest, source: SourceImage, n: int = 1
    ) -> list[CanonicalRequest]:
        """As `canonical`, of a picture to start from."""
        profile = await self.profile()
        # Here the files are decoded for the first time.
        first = await asyncio.to_thread(
            profile.canonical_edit, request, source, seed=_drawn_seed(), n=n
        )
        return _successive(first, n)

    async def render(
        self, requests: Sequence[CanonicalRequest], encoding: Encoding
    ) -> list[GeneratedImage]:
        """All of `requests` at once; where one fails, the others are given up."""
        pictures = _Pictures(self._rendering, encoding, self._deadline, self._priority)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(pictures.render(each)) for each in requests]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [await self._published(task.result()) for task in tasks]

    async def follow(
        self, request: CanonicalRequest, encoding: Encoding, num_previews: int
    ) -> AsyncGenerator[Progress | GeneratedImage]:
        """One picture, and how far it is on the way."""
        events = self._rendering.follow(
            request,
            encoding,
            timeout_s=self._deadline - _now(),
            priority=self._priority,
            num_previews=num_previews,
        )
        async with aclosing(events):
            async for each in events:
                yield await self._published(each) if isinstance(each, GeneratedImage) else each

    async def _published(self, image: GeneratedImage) -> GeneratedImage:
        """`image` as it leaves the house: signed, where that is configured."""
        if self._credentials is None:
            return image
        try:
            async with asyncio.timeout_at(self._deadline):
                return await asyncio.to_thread(self._credentials.sign, image)
        except TimeoutError:
            raise DeadlineExceeded("it was not signed in the time that it had") from None


def chosen(models: Mapping[str, RenderingT], name: str | None) -> RenderingT:
    """What renders the model of this name, or the first; raises UnknownModel."""
    if name is None:
        name = next(iter(models))
    if name not in models:
        served = ", ".join(map(repr, models))
        raise UnknownModel(f"the model {name!r} is not served here; there are: {served}")
    return models[name]


def _now() -> float:
    return asyncio.get_running_loop().time()


def _drawn_seed() -> int:
    """Drawn at the door, so that it is one picture however often its rendering is tried."""
    return secrets.randbelow(2**32)


def _successive(first: CanonicalRequest, n: int) -> list[CanonicalRequest]:
    seeds = ((first.seed + i) % (MAX_SEED + 1) for i in range(n))
    return [first.model_copy(update={"seed": seed}) for seed in seeds]


class _Pictures:
    """The pictures of one call. They are refused together, or find their places one by one.

    Else two calls of many pictures would take each other's last places, again and again.
    """

    def __init__(
        self, rendering: Rendering, encoding: Encoding, deadline: float, priority: Priority
    ) -> None:
        self._rendering = rendering
        self._encoding = encoding
        self._deadline = deadline
        self._priority = priority
        self._under_way = 0
        self._done = 0

    async def render(self, request: CanonicalRequest) -> GeneratedImage:
        while (left := self._deadline - _now()) > 0:
            self._under_way += 1
            try:
                image = await self._rendering.render(
                    request, self._encoding, timeout_s=left, priority=self._priority
                )
            except Overloaded as refusal:
                if self._under_way == 1 and not self._done:
                    raise
                pause_s = min(refusal.retry_after_s, _LONGEST_PAUSE_S)
            else:
                self._done += 1
                return image
            finally:
                self._under_way -= 1
            await asyncio.sleep(pause_s)
        raise DeadlineExceeded("it was not finished in the time that it had")


async def _authenticated(
    request: Request,
    token: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))],
) -> Door:
    door: Door = request.app.state.door
    door.auth.check(token.credentials if token else None)
    return door


def strictly(kind: type[BaseModel]) -> BeforeValidator:
    """For JSON bodies: unlike a query, they have types, and "4" or true is no number."""
    return BeforeValidator(partial(kind.model_validate, strict=True))


ModelName = Annotated[
    str | None, Field(description="One of those served (GET /v1/models); the first if left out.")
]
# The door, for callers that may pass.
OpenDoor = Annotated[Door, Depends(_authenticated)]


@dataclass(frozen=True)
class Terms:
    """On what terms a call is made: within `timeout_s` seconds, and before or after others."""

    timeout_s: float | None = None
    priority: Priority = Priority.ONLINE


def _terms(
    timeout: Annotated[
        float | None,
        Header(
            alias="X-Timeout-Seconds",
            gt=0,
            allow_inf_nan=False,
            description="Give up after so many seconds, with a 504.",
        ),
    ] = None,
    priority: Annotated[
        Literal["online", "bulk"],
        Header(alias="X-Priority", description="bulk takes only what online calls leave idle."),
    ] = "online",
) -> Terms:
    return Terms(timeout, Priority[priority.upper()])


CallTerms = Annotated[Terms, Depends(_terms)]
