"""The deployment that holds an engine: one replica, one loaded checkpoint."""

import logging
import os

from ray import serve

from shared.config import EngineConfig, ModelConfig
from shared.engine import EngineCounters
from shared.errors import EngineDead
from shared.model_profile import ModelProfile
from shared.renderer import Renderer
from shared.request import CanonicalRequest, Encoding, GeneratedImage

logger = logging.getLogger(__name__)


@serve.deployment
class Generator:
    def __init__(self, model: ModelConfig, engine: EngineConfig) -> None:
        self._renderer = Renderer(model, engine)
        self._renderer.warm_up()

    async def generate(
        self, request: CanonicalRequest, encoding: Encoding, timeout_s: float
    ) -> GeneratedImage:
        """Render one picture; when the caller goes away, so does the request."""
        try:
            return await self._renderer.render(request, encoding, timeout_s=timeout_s)
        except EngineDead:
            # Nothing will be rendered here again, and the health check takes half a minute to
            # say so. Callers are told at once by the death of the process, and go elsewhere.
            logger.exception("the engine is dead: the replica ends itself")
            os._exit(1)

    async def profile(self) -> ModelProfile:
        return self._renderer.profile

    async def counters(self) -> EngineCounters:
        return self._renderer.counters()

    def check_health(self) -> None:
        """Serve replaces the replica if this raises."""
        self._renderer.check_alive()
