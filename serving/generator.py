"""The deployment that holds an engine: one replica, one loaded checkpoint."""

import contextlib
import logging
import os
from collections.abc import AsyncIterator, Iterator

from ray import serve

from serving.autoscaling import Workload
from serving.logs import log_with_serve
from serving.metrics import GeneratorMetrics
from serving.rendering import NotReady
from shared.config import EngineConfig, ModelConfig
from shared.engine import EngineCounters
from shared.errors import EngineDead, RenderFailed
from shared.model_profile import ModelProfile
from shared.renderer import Renderer
from shared.request import CanonicalRequest, Encoding, GeneratedImage, Progress

logger = logging.getLogger(__name__)

# A forward that takes longer is taken for one that never ends.
_STUCK_S = 60.0
# Of a request, beside its times. Not what it shows: prompts are the callers' own.
_LOGGED = {"width", "height", "num_inference_steps", "guidance_scale", "scheduler", "lora"}


@serve.deployment
class Generator:
    def __init__(self, model: ModelConfig, engine: EngineConfig) -> None:
        log_with_serve()
        self._renderer = Renderer(model, engine)
        self._renderer.warm_up()
        self._workload = Workload()
        self._metrics = GeneratorMetrics()

    async def generate(
        self, request: CanonicalRequest, encoding: Encoding, timeout_s: float
    ) -> AsyncIterator[GeneratedImage]:
        """One picture; when the caller goes away, so does the request."""
        with _telling_of_failures():
            image = await self._renderer.render(request, encoding, timeout_s=timeout_s)
        self._tell(image)
        yield image

    async def follow(
        self, request: CanonicalRequest, encoding: Encoding, timeout_s: float, num_previews: int
    ) -> AsyncIterator[Progress | GeneratedImage]:
        """As `generate`, and how far it is on the way."""
        with _telling_of_failures():
            events = self._renderer.follow(
                request, encoding, timeout_s=timeout_s, num_previews=num_previews
            )
            async with contextlib.aclosing(events):
                async for event in events:
                    if isinstance(event, GeneratedImage):
                        self._tell(event)
                    yield event

    async def profile(self) -> ModelProfile:
        return self._renderer.profile

    async def counters(self) -> EngineCounters:
        return self._renderer.counters()

    async def check_ready(self) -> None:
        """Raise EngineDead, or NotReady if the device does not answer."""
        self._renderer.check_alive()
        age_s = self._renderer.counters().forward_age_s
        if age_s > _STUCK_S:
            raise NotReady(f"a forward has been running for {age_s:.0f} s")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve's hook, for the policy in serving/autoscaling.py."""
        counters = self._renderer.counters()
        return self._workload.report(work_s=counters.work_s, backlog_s=counters.backlog_s)

    def check_health(self) -> None:
        """Serve replaces the replica if this raises. Asked every few seconds, it counts as well."""
        self._metrics.update(self._renderer.counters())
        self._renderer.check_alive()

    def _tell(self, image: GeneratedImage) -> None:
        self._metrics.observe(image.timings)
        request = image.provenance.request
        said = request.model_dump(include=_LOGGED) | image.timings.model_dump()
        logger.info("rendered", extra=said)


@contextlib.contextmanager
def _telling_of_failures() -> Iterator[None]:
    """Log what no caller is to blame for, and end the process with its engine.

    Nothing would be rendered here again, and the health check takes half a minute to say so. By the
    death of the process callers are told at once, and go elsewhere.
    """
    try:
        yield
    except RenderFailed:
        logger.exception("a picture failed")
        raise
    except EngineDead:
        logger.exception("the engine is dead: the replica ends itself")
        os._exit(1)
