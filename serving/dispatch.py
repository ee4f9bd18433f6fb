"""From the ingress to the generators: a deadline, a second try where one died, an honest no."""

import asyncio
import logging
from typing import Any

from ray.exceptions import ObjectLostError, RayActorError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from serving.load import Load
from serving.rendering import GeneratorLost, Overloaded
from shared.engine import EngineCounters
from shared.errors import Cancelled, DeadlineExceeded, EngineDead, QueueFull
from shared.model_profile import ModelProfile
from shared.request import CanonicalRequest, Encoding, GeneratedImage

logger = logging.getLogger(__name__)

# A request may be the reason why its generators die: it gets no more of them than these.
_MAX_TRIES = 3
_LOST = (RayActorError, ObjectLostError, WorkerCrashedError, EngineDead, Cancelled)


class Dispatcher:
    """Rendering by the replicas of the Generator deployment."""

    def __init__(self, generator: DeploymentHandle) -> None:
        self._generator = generator
        self._load = Load()
        self._profile: ModelProfile | None = None
        self._one_asks = asyncio.Lock()

    async def profile(self) -> ModelProfile:
        async with self._one_asks:  # the first callers of a busy service would fill its queue
            if self._profile is None:
                self._profile = await self._answer(self._generator.profile.remote())
            return self._profile

    async def counters(self) -> EngineCounters:
        counters: EngineCounters = await self._answer(self._generator.counters.remote())
        return counters

    async def render(
        self, request: CanonicalRequest, encoding: Encoding, *, timeout_s: float
    ) -> GeneratedImage:
        try:
            with self._load.carrying(request.pixel_steps):
                # The engine keeps the deadline too, but a request may not have come that far.
                async with asyncio.timeout(timeout_s):
                    return await self._try_generators(request, encoding, timeout_s)
        except TimeoutError:
            raise DeadlineExceeded("it was not finished in the time that it had") from None
        except QueueFull:
            raise Overloaded(self._load.seconds_to_clear()) from None

    async def _try_generators(
        self, request: CanonicalRequest, encoding: Encoding, timeout_s: float
    ) -> GeneratedImage:
        """The seed is in the request: whoever renders it, and however often, it is one picture."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout_s
        for _ in range(_MAX_TRIES):
            try:
                image: GeneratedImage = await self._answer(
                    self._generator.generate.remote(request, encoding, deadline - clock())
                )
            except _LOST as error:
                logger.warning("a generator was lost, trying another one: %s", error)
            else:
                return image
        raise GeneratorLost(f"{_MAX_TRIES} generators stopped while they rendered this")

    async def _answer(self, response: DeploymentResponse) -> Any:
        try:
            return await response
        except BackPressureError:  # Serve's own no, as the engine says it
            raise Overloaded(self._load.seconds_to_clear()) from None
