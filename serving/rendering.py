"""What the routes need of whoever renders. Without Ray, so that they can run without it."""

from collections.abc import AsyncGenerator
from typing import Protocol

from shared.engine import EngineCounters
from shared.errors import QueueFull
from shared.model_profile import ModelProfile
from shared.request import CanonicalRequest, Encoding, GeneratedImage, Progress


class Overloaded(QueueFull):
    """No place in any queue; `retry_after_s` seconds from now the work there is may be done."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(retry_after_s)
        self.retry_after_s = retry_after_s


class GeneratorLost(RuntimeError):
    """Every generator that was asked died while it rendered this."""


class NotReady(RuntimeError):
    """Nobody would render a picture now, for this reason."""


class Rendering(Protocol):
    """Renders canonical requests, somewhere."""

    async def profile(self) -> ModelProfile:
        """What the served checkpoint allows and prefers."""

    async def counters(self) -> EngineCounters:
        """What one engine has done since it started."""

    async def check_ready(self) -> None:
        """Raise NotReady, with the reason, unless a picture would be rendered now."""

    async def render(
        self, request: CanonicalRequest, encoding: Encoding, *, timeout_s: float
    ) -> GeneratedImage:
        """One picture; cancelling the caller gives it up.

        Raises Overloaded, DeadlineExceeded after `timeout_s`, GeneratorLost or RenderFailed.
        """

    def follow(
        self, request: CanonicalRequest, encoding: Encoding, *, timeout_s: float, num_previews: int
    ) -> AsyncGenerator[Progress | GeneratedImage]:
        """As `render`, and how far it is on the way. It may start again, at a lower step."""
