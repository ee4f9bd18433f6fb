"""The deployment that holds an engine: one replica, one loaded checkpoint."""

from ray import serve

from shared.config import EngineConfig, ModelConfig
from shared.engine import EngineCounters
from shared.model_profile import ModelProfile
from shared.renderer import Renderer
from shared.request import CanonicalRequest, GeneratedImage


@serve.deployment
class Generator:
    def __init__(self, model: ModelConfig, engine: EngineConfig) -> None:
        self._renderer = Renderer(model, engine)
        self._renderer.warm_up()

    async def generate(self, request: CanonicalRequest) -> GeneratedImage:
        """Render one picture; when the caller goes away, so does the request."""
        return await self._renderer.render(request)

    async def profile(self) -> ModelProfile:
        return self._renderer.profile

    async def counters(self) -> EngineCounters:
        return self._renderer.counters()

    def check_health(self) -> None:
        """Serve replaces the replica if this raises."""
        self._renderer.check_alive()
