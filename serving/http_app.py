"""The HTTP application: the routes, on anything that renders."""

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from serving import imagine, openai_images
from serving.door import Door, HttpConfig, OpenDoor
from serving.http_errors import ERROR_RESPONSES, install_error_handlers
from serving.rendering import Rendering
from shared.engine import EngineCounters

_PAGE = (Path(__file__).parent / "playground" / "index.html").read_text()


def build_http_app(rendering: Rendering, config: HttpConfig) -> FastAPI:
    app = FastAPI(
        title="Stable Diffusion on Ray",
        description="`/imagine` answers with a picture, `/v1/images` as OpenAI's Images API does. "
        "Errors name the field to mend.",
    )
    app.state.door = Door(rendering, config)
    install_error_handlers(app)
    app.include_router(imagine.router)
    app.include_router(openai_images.router)
    app.add_api_route("/stats", _stats, responses=ERROR_RESPONSES)
    app.add_api_route("/healthz", _healthz)
    app.add_api_route("/", _page, response_class=HTMLResponse, include_in_schema=False)
    return app


async def _stats(door: OpenDoor) -> EngineCounters:
    """What the engine of one generator has done since it started."""
    return await door.rendering.counters()


async def _healthz() -> dict[str, str]:
    """Answers as long as the ingress lives."""
    return {"status": "ok"}


async def _page() -> str:
    return _PAGE
