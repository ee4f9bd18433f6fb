"""From the ingress to the generators: a deadline, a second try where one died, an honest no."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import Any

from ray.exceptions import ObjectLostError, RayActorError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serving.load import Load
from serving.rendering import GeneratorLost, NotReady, Overloaded
from shared.engine import EngineCounters
from shared.errors import Cancelled, DeadlineExceeded, EngineDead, QueueFull
from shared.model_profile import ModelProfile
from shared.request import CanonicalRequest, Encoding, GeneratedImage, Progress

logger = logging.getLogger(__name__)

# A request may be the reason why its generators die: it gets no more of them than these.
_MAX_TRIES = 5
_TRYING_AGAIN = "a generator was lost, trying another one: %s"
_ALL_LOST = f"{_MAX_TRIES} generators stopped while they rendered this"
_READY_WITHIN_S = 5.0
_END_WITHIN_S = 1.0
_LOST = (RayActorError, ObjectLostError, WorkerCrashedError, EngineDead, Cancelled)


class Dispatcher:
    """Rendering by the replicas of the Generator deployment.

    The seed is in the request: whoever renders it, and however often, it is one picture.

    Every call is a stream, and read to its end: of a call that is not, Serve 2.60 does not see the
    end as it is run here (RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP is 0), counts it as under way for
    up to ten seconds more, and sends others to generators that have more to do.
    """

    def __init__(self, generator: DeploymentHandle) -> None:
        self._streams = generator.options(stream=True)
        self._load = Load()
        self._profile: ModelProfile | None = None
        self._one_asks = asyncio.Lock()

    async def profile(self) -> ModelProfile:
        async with self._one_asks:  # the first callers of a busy service would fill its queue
            if self._profile is None:
                self._profile = await self._answer("profile")
            return self._profile

    async def counters(self) -> EngineCounters:
        counters: EngineCounters = await self._answer("counters")
        return counters

    async def check_ready(self) -> None:
        try:
            async with asyncio.timeout(_READY_WITHIN_S):
                await self._answer("check_alive")
        except TimeoutError:
            raise NotReady(f"no generator answered within {_READY_WITHIN_S:.0f} s") from None
        except Overloaded:
            pass  # it has more than enough to do
        except (*_LOST, DeploymentUnavailableError) as error:
            raise NotReady(f"no generator to ask: {error}") from None

    async def render(
        self, request: CanonicalRequest, encoding: Encoding, *, timeout_s: float
    ) -> GeneratedImage:
        async with aclosing(self._tried("generate", request, encoding, timeout_s)) as events:
            (image,) = [event async for event in events]
        assert isinstance(image, GeneratedImage)
        return image

    def follow(
        self, request: CanonicalRequest, encoding: Encoding, *, timeout_s: float, num_previews: int
    ) -> AsyncGenerator[Progress | GeneratedImage]:
        return self._tried("follow", request, encoding, timeout_s, num_previews)

    async def _tried(
        self,
        method: str,
        request: CanonicalRequest,
        encoding: Encoding,
        timeout_s: float,
        *arguments: Any,
    ) -> AsyncGenerator[Progress | GeneratedImage]:
        """What this method of a generator gives, or of the next one where one is lost."""
        deadline = _now() + timeout_s
        with self._carrying(request):
            for _ in range(_MAX_TRIES):
                call = getattr(self._streams, method)
                events = call.remote(request, encoding, deadline - _now(), *arguments)
                try:
                    while True:
                        # The engine keeps it too, but a request may not have come that far.
                        async with asyncio.timeout_at(deadline):
                            event: Progress | GeneratedImage = await anext(events)
                        if isinstance(event, GeneratedImage):
                            await _read_to_the_end(events)
                            yield event
                            return
                        yield event
                except _LOST as error:
                    logger.warning(_TRYING_AGAIN, error)
                finally:
                    events.cancel()
            raise GeneratorLost(_ALL_LOST)

    @contextmanager
    def _carrying(self, request: CanonicalRequest) -> Iterator[None]:
        """Count it as under way, and turn what Serve, asyncio and the engine raise into ours."""
        if self._load.is_full:  # in a flood, asking is what costs most
            raise self._overloaded()
        try:
            with self._load.carrying(request.pixel_steps):
                yield
        except TimeoutError:
            raise DeadlineExceeded("it was not finished in the time that it had") from None
        except (BackPressureError, QueueFull):
            self._load.refused()
            raise self._overloaded() from None

    def _overloaded(self) -> Overloaded:
        return Overloaded(self._load.seconds_to_clear())

    async def _answer(self, method: str) -> Any:
        """The one value that this method of a generator gives."""
        answers = getattr(self._streams, method).remote()
        try:
            (answer,) = [each async for each in answers]
        except BackPressureError:
            raise self._overloaded() from None
        finally:
            answers.cancel()
        return answer


async def _read_to_the_end(events: AsyncIterator[Any]) -> None:
    """The picture is there: whatever becomes of its generator now does not spoil it."""
    with suppress(*_LOST, TimeoutError):
        async with asyncio.timeout(_END_WITHIN_S):
            await anext(events, None)


def _now() -> float:
    return asyncio.get_running_loop().time()
