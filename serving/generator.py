"""The deployment that holds an engine: one replica, one loaded checkpoint."""

import contextlib
import logging
from collections.abc import AsyncIterator, Iterator

from ray import serve

from serving.autoscaling import Workload
from serving.logs import log_diffusers_with_serve, log_with_serve
from serving.metrics import GeneratorMetrics
from shared.config import EngineConfig, ModelConfig
from shared.counters import EngineCounters, EngineForwards, Priority
from shared.errors import EngineDead, RenderFailed
from shared.model_profile import ServedModel
from shared.request import CanonicalRequest, Encoding, GeneratedImage, Progress
from shared.watchdog import end_process, start_watchdog

logger = logging.getLogger(__name__)

# Of a request, beside its times. Not what it shows: prompts are the callers' own.
_LOGGED = {"width", "height", "num_inference_steps", "guidance_scale", "scheduler", "lora"}


@serve.deployment
class Generator:
    """All of its methods that a handle calls are streams: serving/dispatch.py says why."""

    def __init__(
        self, model: ModelConfig, engine: EngineConfig, *, bulk_may_scale: bool = False
    ) -> None:
        """With `bulk_may_scale` bulk requests count for autoscaling as online ones do."""
        from shared.renderer import Renderer  # not where it is only deployed: it loads torch

        log_with_serve()
        log_diffusers_with_serve()
        self._renderer = Renderer(model, engine)
        self._served = ServedModel.configured(self._renderer.profile, model, engine)
        self._bulk_may_scale = bulk_may_scale
        self._renderer.warm_up()
        start_watchdog(self._renderer.check_alive)
        self._workload = Workload()
        self._metrics = GeneratorMetrics()

    async def generate(
        self,
        request: CanonicalRequest,
        encoding: Encoding,
        priority: Priority,
        timeout_s: float,
    ) -> AsyncIterator[GeneratedImage]:
        """One picture; when the caller goes away, so does the request."""
        with _telling_of_failures():
            image = await self._renderer.render(
                request, encoding, timeout_s=timeout_s, priority=priority
            )
        self._tell(image, priority)
        yield image

    async def follow(
        self,
        request: CanonicalRequest,
        encoding: Encoding,
        priority: Priority,
        timeout_s: float,
        num_previews: int,
    ) -> AsyncIterator[Progress | GeneratedImage]:
        """As `generate`, and how far it is on the way."""
        with _telling_of_failures():
            events = self._renderer.follow(
                request,
                encoding,
                timeout_s=timeout_s,
                priority=priority,
                num_previews=num_previews,
            )
            async with contextlib.aclosing(events):
                async for event in events:
                    if isinstance(event, GeneratedImage):
                        self._tell(event, priority)
                    yield event

    async def served(self) -> AsyncIterator[ServedModel]:
        yield self._served

    async def counters(self) -> AsyncIterator[EngineCounters]:
        yield self._renderer.counters()

    async def forwards(self) -> AsyncIterator[EngineForwards]:
        yield self._renderer.forwards()

    async def check_alive(self) -> AsyncIterator[None]:
        """Raise EngineDead if nothing is rendered here any more."""
        self._renderer.check_alive()
        yield None

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve's hook, for the policy in serving/autoscaling.py."""
        counters = self._renderer.counters()
        return self._workload.report(**counted(counters, bulk_may_scale=self._bulk_may_scale))

    def check_health(self) -> None:
        """Serve replaces the replica if this raises. Asked every few seconds, it counts as well."""
        self._metrics.update(self._renderer.counters())
        self._renderer.check_alive()

    def _tell(self, image: GeneratedImage, priority: Priority) -> None:
        self._metrics.observe(image.timings, priority)
        request = image.provenance.request
        said = request.model_dump(include=_LOGGED) | image.timings.model_dump()
        said["priority"] = priority.label
        logger.info("rendered in %.2f s", image.timings.render_s, extra=said)


def counted(engine: EngineCounters, *, bulk_may_scale: bool) -> dict[str, float]:
    """The work that may bring more generators; bulk work alone can wait."""
    kinds = [engine.online, engine.bulk] if bulk_may_scale else [engine.online]
    return {
        "work_s": sum(each.work_s for each in kinds),
        "backlog_s": sum(each.backlog_s for each in kinds),
    }


@contextlib.contextmanager
def _telling_of_failures() -> Iterator[None]:
    """Log what no caller is to blame for, and end the process with its engine."""
    try:
        yield
    except RenderFailed:
        logger.exception("a picture failed")
        raise
    except EngineDead:
        end_process()
