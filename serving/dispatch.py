"""From the ingress to the generators: a deadline, a second try where one died, an honest no."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import Any

from ray.exceptions import ObjectLostError, RayActorError, RayTaskError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serving.load import Load
from shared.counters import EngineCounters, EngineForwards, Priority
from shared.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineDead,
    GeneratorLost,
    NotReady,
    Overloaded,
    QueueFull,
    TooBusy,
)
from shared.model_profile import ServedModel
from shared.request import CanonicalRequest, Encoding, GeneratedImage, Progress

logger = logging.getLogger(__name__)

# A request may be the reason why its generators die: it gets no more of them than these. Who sends
# bulk requests tries them again, one by one: each of these deaths is felt by online ones.
_MAX_TRIES = {Priority.ONLINE: 5, Priority.BULK: 1}
_LOST_ONE = "a generator was lost: %s"
_ALL_LOST = {
    Priority.ONLINE: f"{_MAX_TRIES[Priority.ONLINE]} generators stopped while they rendered this",
    Priority.BULK: "the generator stopped while it rendered this",
}
# Under way at once. In generators each has its own bounds; these would be places of an ingress, and
# of those who wait for a generator while there is none.
MAX_BULK = 256
_READY_WITHIN_S = 5.0
_ANSWERS_WITHIN_S = 30.0
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
        self._loads = {priority: Load() for priority in Priority}
        self._num_bulk = 0
        self._served: ServedModel | None = None
        self._one_asks = asyncio.Lock()

    async def served(self) -> ServedModel:
        async with self._one_asks:  # the first callers of a busy service would fill its queue
            if self._served is None:
                self._served = await self._answer("served")
            return self._served

    async def counters(self) -> EngineCounters:
        counters: EngineCounters = await self._answer_soon("counters")
        return counters

    async def forwards(self) -> EngineForwards:
        forwards: EngineForwards = await self._answer_soon("forwards")
        return forwards

    async def check_ready(self) -> None:
        try:
            await self._answer_soon("check_alive", _READY_WITHIN_S)
        except DeadlineExceeded as error:
            raise NotReady(str(error)) from None
        except Overloaded:
            pass  # it has more than enough to do

    async def render(
        self,
        request: CanonicalRequest,
        encoding: Encoding,
        *,
        timeout_s: float,
        priority: Priority = Priority.ONLINE,
    ) -> GeneratedImage:
        async with aclosing(
            self._tried("generate", request, encoding, priority, timeout_s)
        ) as events:
            (image,) = [event async for event in events]
        assert isinstance(image, GeneratedImage)
        return image

    def follow(
        self,
        request: CanonicalRequest,
        encoding: Encoding,
        *,
        timeout_s: float,
        priority: Priority = Priority.ONLINE,
        num_previews: int,
    ) -> AsyncGenerator[Progress | GeneratedImage]:
        return self._tried("follow", request, encoding, priority, timeout_s, num_previews)

    async def _tried(
        self,
        method: str,
        request: CanonicalRequest,
        encoding: Encoding,
        priority: Priority,
        timeout_s: float,
        *arguments: Any,
    ) -> AsyncGenerator[Progress | GeneratedImage]:
        """What this method of a generator gives, or of the next one where one is lost."""
        deadline = _now() + timeout_s
        with self._carrying(request, priority):
            for _ in range(_MAX_TRIES[priority]):
                call = getattr(self._streams, method)
                events = call.remote(request, encoding, priority, deadline - _now(), *arguments)
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
                    logger.warning(_LOST_ONE, error)
                finally:
                    events.cancel()
            raise GeneratorLost(_ALL_LOST[priority])

    @contextmanager
    def _carrying(self, request: CanonicalRequest, priority: Priority) -> Iterator[None]:
        """Count it as under way, and turn what Serve, asyncio and the engine raise into ours."""
        load, is_bulk = self._loads[priority], priority == Priority.BULK
        # In a flood, asking is what costs most.
        if load.is_full or (is_bulk and self._num_bulk >= MAX_BULK):
            raise Overloaded(load.seconds_to_clear())
        self._num_bulk += is_bulk
        try:
            with load.carrying(request.pixel_steps):
                yield
        except TimeoutError:
            raise DeadlineExceeded("it was not finished in the time that it had") from None
        except TooBusy:  # for this one: others may have more time
            raise Overloaded(load.seconds_to_clear()) from None
        except (BackPressureError, QueueFull):
            load.refused()
            raise Overloaded(load.seconds_to_clear()) from None
        except DeploymentUnavailableError as error:
            raise _not_ready(error) from None
        except RayTaskError as error:  # by actor RPC; what it says itself is its traceback
            raise error.cause from None
        finally:
            self._num_bulk -= is_bulk

    async def _answer_soon(self, method: str, within_s: float = _ANSWERS_WITHIN_S) -> Any:
        try:
            async with asyncio.timeout(within_s):
                return await self._answer(method)
        except TimeoutError:
            raise DeadlineExceeded(f"no generator answered within {within_s:.0f} s") from None

    async def _answer(self, method: str) -> Any:
        """The one value that this method of a generator gives."""
        answers = getattr(self._streams, method).remote()
        try:
            (answer,) = [each async for each in answers]
        except BackPressureError:
            raise Overloaded(self._loads[Priority.ONLINE].seconds_to_clear()) from None
        except (*_LOST, DeploymentUnavailableError) as error:
            raise _not_ready(error) from None
        except RayTaskError as error:
            raise error.cause from None
        finally:
            answers.cancel()
        return answer


def _not_ready(error: Exception) -> NotReady:
    logger.warning("no generator answers: %s", error)
    return NotReady("no generator answers; the service's log says more")


async def _read_to_the_end(events: AsyncIterator[Any]) -> None:
    """The picture is there: whatever becomes of its generator now does not spoil it."""
    with suppress(*_LOST, TimeoutError):
        async with asyncio.timeout(_END_WITHIN_S):
            await anext(events, None)


def _now() -> float:
    return asyncio.get_running_loop().time()
