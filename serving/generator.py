"""The deployment that holds an engine: one replica, one loaded checkpoint."""

import contextlib
import logging
import os
from collections.abc import AsyncIterator, Iterator

from ray import serve

from shared.config import EngineConfig, ModelConfig
from shared.engine import EngineCounters
from shared.errors import EngineDead
from shared.model_profile import ModelProfile
from shared.renderer import Renderer
from shared.request import CanonicalRequest, Encoding, GeneratedImage, Progress

logger = logging.getLogger(__name__)


@serve.deployment
class Generator:
    def __init__(self, model: ModelConfig, engine: EngineConfig) -> None:
        self._renderer = Renderer(model, engine)
        self._renderer.warm_up()

    async def generate(
        self, request: CanonicalRequest, encoding: Encoding, timeout_s: float
    ) -> AsyncIterator[GeneratedImage]:
        """One picture; when the caller goes away, so does the request."""
        with _ending_with_the_engine():
            yield await self._renderer.render(request, encoding, timeout_s=timeout_s)

    async def follow(
        self, request: CanonicalRequest, encoding: Encoding, timeout_s: float, num_previews: int
    ) -> AsyncIterator[Progress | GeneratedImage]:
        """As `generate`, and how far it is on the way."""
        with _ending_with_the_engine():
            events = self._renderer.follow(
                request, encoding, timeout_s=timeout_s, num_previews=num_previews
            )
            async with contextlib.aclosing(events):
                async for event in events:
                    yield event

    async def profile(self) -> ModelProfile:
        return self._renderer.profile

    async def counters(self) -> EngineCounters:
        return self._renderer.counters()

    def check_health(self) -> None:
        """Serve replaces the replica if this raises."""
        self._renderer.check_alive()


@contextlib.contextmanager
def _ending_with_the_engine() -> Iterator[None]:
    """End the process with its engine: nothing would be rendered here again.

    The health check takes half a minute to say so. By the death of the process callers are told at
    once, and go elsewhere.
    """
    try:
        yield
    except EngineDead:
        logger.exception("the engine is dead: the replica ends itself")
        os._exit(1)
