"""A running service as a bulk job sees it: by its handle in the cluster, or over HTTP."""

import re
from typing import Any, Protocol

import httpx
from pydantic import ValidationError
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException

from batch.render import CannotRender
from shared.errors import (
    DeadlineExceeded,
    GeneratorLost,
    ImageBlocked,
    NotReady,
    Overloaded,
    RenderFailed,
    UnknownModel,
)
from shared.image_codec import read_provenance
from shared.model_profile import ServedModel
from shared.request import CanonicalRequest, GeneratedImage, Timings

# A service answers within its own `http.timeout_s`, 600 if not configured.
_ANSWERS_WITHIN_S = 3600
_CONNECTS_WITHIN_S = 10
_OURS = (
    DeadlineExceeded,
    GeneratorLost,
    ImageBlocked,
    NotReady,
    Overloaded,
    RenderFailed,
    UnknownModel,
)
_DURATION = re.compile(r"(\w+);dur=([\d.]+)")


class ServiceUnusable(CannotRender):
    """A service that will not render what this job asks for, whenever it is asked."""


class Unreachable(RuntimeError):
    """A service that gave no answer of its own; it may in a while."""


class Service(Protocol):
    async def served(self) -> ServedModel:
        """What is asked for there. Raises Unreachable or ServiceUnusable."""

    async def render(self, request: CanonicalRequest) -> GeneratedImage:
        """One picture, when online requests leave time for it.

        Raises Overloaded, Unreachable or ServiceUnusable, and what has to do with the request:
        GeneratorLost, DeadlineExceeded, ImageBlocked or RenderFailed.
        """


def connect(where: str, model: str | None, token: str | None) -> Service:
    """The service of a URL, or the Serve application of this name in the cluster."""
    if "://" in where:
        try:
            return HttpService(where, model, token)
        except httpx.InvalidURL as error:
            raise ServiceUnusable(f"{where} is no address: {error}") from None
    return ServeApplication(where, model)


class ServeApplication:
    """Raises ServiceUnusable where there is none of this name."""

    def __init__(self, name: str, model: str | None) -> None:
        try:
            self._handle = serve.get_app_handle(name)
        except RayServeException as error:
            raise ServiceUnusable(
                f"no Serve application {name!r} runs in this cluster: {error}"
            ) from None
        self._model = model

    async def served(self) -> ServedModel:
        served: ServedModel = await self._ask("served")
        return served

    async def render(self, request: CanonicalRequest) -> GeneratedImage:
        image: GeneratedImage = await self._ask("render_bulk", request)
        return image

    async def _ask(self, method: str, *arguments: Any) -> Any:
        try:
            try:
                return await getattr(self._handle, method).remote(*arguments, model=self._model)
            except RayTaskError as error:
                raise _meant(error.cause) from None
        except BackPressureError:
            raise Overloaded(1.0) from None
        except UnknownModel as error:
            raise ServiceUnusable(str(error)) from None
        except (NotReady, RayServeException, RayError) as error:
            raise Unreachable(str(error)) from None


def _meant(cause: Exception) -> Exception:
    """What was raised there; of what nobody here knows, a text: what Ray says is a traceback."""
    if isinstance(cause, (BackPressureError, RayServeException, *_OURS)):
        return cause
    return RenderFailed(f"{type(cause).__name__}: {cause}")


class HttpService:
    def __init__(self, url: str, model: str | None, token: str | None) -> None:
        headers = {"X-Priority": "bulk"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._http = httpx.AsyncClient(
            base_url=url,
            headers=headers,
            timeout=httpx.Timeout(_ANSWERS_WITHIN_S, connect=_CONNECTS_WITHIN_S),
            limits=httpx.Limits(max_connections=None),
        )
        self._model = {} if model is None else {"model": model}

    async def served(self) -> ServedModel:
        response = await self._ask("GET", "/profile", params=self._model)
        try:
            return ServedModel.model_validate_json(response.content)
        except ValidationError:
            raise ServiceUnusable(
                f"{response.url} does not answer as a service of this version does"
            ) from None

    async def render(self, request: CanonicalRequest) -> GeneratedImage:
        response = await self._ask("POST", "/imagine", json=request.model_dump() | self._model)
        return _image(response)

    async def _ask(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            response = await self._http.request(method, path, **arguments)
        except httpx.TransportError as error:
            raise Unreachable(str(error) or type(error).__name__) from None
        if response.status_code != httpx.codes.OK:
            raise _error(response)
        return response


def _image(response: httpx.Response) -> GeneratedImage:
    headers = response.headers
    seconds = {name: float(ms) / 1000 for name, ms in _DURATION.findall(headers["Server-Timing"])}
    return GeneratedImage(
        data=response.content,
        format="png",
        provenance=read_provenance(response.content),
        timings=Timings(
            queue_s=seconds["queue"],
            render_s=seconds["render"],
            encode_s=seconds["encode"],
            num_forwards=int(headers["X-Num-Forwards"]),
            num_shared_forwards=int(headers["X-Num-Shared-Forwards"]),
        ),
    )


def _error(response: httpx.Response) -> Exception:
    """What an answer that is no picture means."""
    if response.status_code == httpx.codes.TOO_MANY_REQUESTS:  # a proxy's as well
        retry_after = response.headers.get("Retry-After", "")
        return Overloaded(max(1.0, float(retry_after)) if retry_after.isdecimal() else 1.0)
    try:
        error = response.json()["error"]
        code, message = str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError):  # a proxy's answer, not the service's
        told = f"{response.url} answers {response.status_code} {response.reason_phrase}"
        return ServiceUnusable(told) if response.is_client_error else Unreachable(told)
    match code:
        case "not_ready":
            return Unreachable(message)
        case "generator_lost":
            return GeneratorLost(message)
        case "deadline_exceeded":
            return DeadlineExceeded(message)
        case "moderation_blocked":
            return ImageBlocked(message)
        case "invalid_api_key":
            return ServiceUnusable(f"{message}, in API_TOKEN")
        case "model_not_found" | "signing_failed":
            return ServiceUnusable(message)
        case "not_found":
            return ServiceUnusable(f"{response.url} is not there: give the service's own address")
    return RenderFailed(f"{code}: {message}")
