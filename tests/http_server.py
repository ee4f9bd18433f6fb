"""The HTTP application on a real socket, with an engine in this process instead of a cluster."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from serving.door import HttpConfig
from serving.http_app import build_http_app
from serving.load import Load
from serving.rendering import Overloaded, Rendering
from shared.engine import EngineCounters
from shared.errors import QueueFull
from shared.model_profile import ModelProfile
from shared.renderer import Renderer
from shared.request import CanonicalRequest, Encoding, GeneratedImage
from tests.conftest import free_port


class InProcess:
    """Rendering by one engine, called directly."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer
        self._load = Load()

    async def profile(self) -> ModelProfile:
        return self.renderer.profile

    async def counters(self) -> EngineCounters:
        return self.renderer.counters()

    async def render(
        self, request: CanonicalRequest, encoding: Encoding, *, timeout_s: float
    ) -> GeneratedImage:
        try:
            with self._load.carrying(request.pixel_steps):
                return await self.renderer.render(request, encoding, timeout_s=timeout_s)
        except QueueFull:
            raise Overloaded(self._load.seconds_to_clear()) from None


@contextmanager
def http_server(rendering: Rendering, config: HttpConfig | None = None) -> Iterator[str]:
    """Its address, as long as it runs."""
    port = free_port()
    app = build_http_app(rendering, config or HttpConfig())
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
