"""What the routes need of whoever renders. Without Ray, so that they can run without it."""

from collections.abc import AsyncGenerator
from typing import Protocol

from shared.counters import EngineCounters, EngineForwards, Priority
from shared.model_profile import ServedModel
from shared.request import CanonicalRequest, Encoding, GeneratedImage, Progress


class Rendering(Protocol):
    """Renders canonical requests, somewhere."""

    async def served(self) -> ServedModel:
        """What the served checkpoint allows and prefers, and how it is rendered."""

    async def counters(self) -> EngineCounters:
        """What one engine has done since it started."""

    async def forwards(self) -> EngineForwards:
        """The latest of one engine."""

    async def check_ready(self) -> None:
        """Raise NotReady, with the reason, unless a picture would be rendered now."""

    async def render(
        self,
        request: CanonicalRequest,
        encoding: Encoding,
        *,
        timeout_s: float,
        priority: Priority = Priority.ONLINE,
    ) -> GeneratedImage:
        """One picture; cancelling the caller gives it up.

        Raises Overloaded, DeadlineExceeded after `timeout_s`, GeneratorLost or RenderFailed.
        """

    def follow(
        self,
        request: CanonicalRequest,
        encoding: Encoding,
        *,
        timeout_s: float,
        priority: Priority = Priority.ONLINE,
        num_previews: int,
    ) -> AsyncGenerator[Progress | GeneratedImage]:
        """As `render`, and how far it is on the way. It may start again, at a lower step."""
