"""The HTTP application on a real socket, with an engine in this process instead of a cluster."""

import base64
import json
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import requests
import uvicorn

from serving.door import HttpConfig
from serving.http_app import build_http_app
from serving.load import Load
from serving.rendering import Rendering
from shared.config import EngineConfig, ModelConfig
from shared.counters import EngineCounters, EngineForwards, Priority
from shared.errors import EngineDead, NotReady, Overloaded, QueueFull, RenderFailed
from shared.model_profile import ServedModel
from shared.renderer import Renderer
from shared.request import CanonicalRequest, Encoding, GeneratedImage, Progress
from tests.conftest import free_port


class InProcess:
    """Rendering by one engine, called directly."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer
        self._load = Load()

    async def served(self) -> ServedModel:
        return ServedModel.configured(self.renderer.profile, ModelConfig(), EngineConfig())

    async def counters(self) -> EngineCounters:
        return self.renderer.counters()

    async def forwards(self) -> EngineForwards:
        return self.renderer.forwards()

    async def check_ready(self) -> None:
        try:
            self.renderer.check_alive()
        except EngineDead as error:
            raise NotReady(str(error)) from None

    async def render(
        self,
        request: CanonicalRequest,
        encoding: Encoding,
        *,
        timeout_s: float,
        priority: Priority = Priority.ONLINE,
    ) -> GeneratedImage:
        try:
            with self._load.carrying(request.pixel_steps):
                return await self.renderer.render(
                    request, encoding, timeout_s=timeout_s, priority=priority
                )
        except QueueFull:
            raise Overloaded(self._load.seconds_to_clear()) from None

    async def follow(
        self,
        request: CanonicalRequest,
        encoding: Encoding,
        *,
        timeout_s: float,
        priority: Priority = Priority.ONLINE,
        num_previews: int,
    ) -> AsyncGenerator[Progress | GeneratedImage]:
        try:
            with self._load.carrying(request.pixel_steps):
                events = self.renderer.follow(
                    request,
                    encoding,
                    timeout_s=timeout_s,
                    priority=priority,
                    num_previews=num_previews,
                )
                async with aclosing(events):
                    async for event in events:
                        yield event
        except QueueFull:
            raise Overloaded(self._load.seconds_to_clear()) from None


class Breaking(InProcess):
    """Whoever follows it sees it fail after two events."""

    async def follow(self, *args: Any, **kwargs: Any) -> AsyncGenerator[Progress | GeneratedImage]:
        async with aclosing(super().follow(*args, **kwargs)) as events:
            for _ in range(2):
                yield await anext(events)
            raise RenderFailed("broken on purpose")


@contextmanager
def http_server(
    rendering: InProcess, config: HttpConfig | None = None, *others: InProcess
) -> Iterator[str]:
    """Its address, as long as it runs; `rendering` is of the default model."""
    models: dict[str, Rendering] = {
        each.renderer.profile.name: each for each in (rendering, *others)
    }
    with serving_app(build_http_app(models, config or HttpConfig())) as host:
        yield host


@contextmanager
def serving_app(app: Any) -> Iterator[str]:
    """The address of an ASGI application, as long as it runs."""
    port = free_port()
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


def read_events(response: requests.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and data of each server-sent event, as it comes."""
    assert response.status_code == 200, response.text
    name = ""
    for line in response.iter_lines(decode_unicode=True):
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


def picture(data_url: str) -> bytes:
    """The file in a data URL."""
    return base64.b64decode(data_url.partition("base64,")[2])
