"""The HTTP application: the routes, on anything that renders."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline

from serving import imagine, openai_images
from serving.door import CallTerms, Door, HttpConfig, ModelName, OpenDoor
from serving.edge import Edge
from serving.http_errors import (
    ERROR_RESPONSES,
    UNKNOWN_MODEL_RESPONSE,
    install_error_handlers,
)
from serving.rendering import Rendering
from shared.config import Settings
from shared.counters import EngineCounters, EngineForwards
from shared.model_profile import ServedModel

_PLAYGROUND = Path(__file__).parent / "playground"
_PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    # The page runs its own scripts and no others, and talks to nobody but this service.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'",
}


def build_http_app(models: Mapping[str, Rendering], config: HttpConfig) -> FastAPI:
    """Of what renders each model, by name; the first is the default."""
    app = FastAPIOffline(
        title="Stable Diffusion on Ray",
        description="`/imagine` answers with a picture, `/v1/images` as OpenAI's Images API does. "
        "Errors name the field to mend.",
        redoc_url=None,  # it takes a file from elsewhere
    )
    app.state.door = Door(models, config)
    app.add_middleware(Edge, max_body_bytes=config.max_body_bytes, is_open=not config.token_hashes)
    install_error_handlers(app)
    app.include_router(imagine.router, tags=["pictures"])
    app.include_router(openai_images.router, tags=["OpenAI's clients"])
    of_a_model = ERROR_RESPONSES | UNKNOWN_MODEL_RESPONSE
    about = APIRouter(tags=["about the service"])
    about.add_api_route("/profile", _profile, responses=of_a_model)
    about.add_api_route("/stats", _stats, responses=of_a_model)
    about.add_api_route("/forwards", _forwards, responses=of_a_model)
    about.add_api_route("/healthz", _healthz)
    about.add_api_route("/readyz", _readyz, responses=ERROR_RESPONSES)
    app.include_router(about)
    app.add_api_route("/", _page, response_class=FileResponse, include_in_schema=False)
    app.mount("/playground", _PageFiles(directory=_PLAYGROUND))
    return app


class ModelQuery(Settings):
    model: ModelName = None


async def _profile(
    query: Annotated[ModelQuery, Query()], door: OpenDoor, terms: CallTerms
) -> ServedModel:
    """What a model allows and prefers, and how it is rendered."""
    return await door.call(query.model, terms).served()


async def _stats(query: Annotated[ModelQuery, Query()], door: OpenDoor) -> EngineCounters:
    """What the engine of one generator of the model has done since it started."""
    return await door.rendering(query.model).counters()


async def _forwards(query: Annotated[ModelQuery, Query()], door: OpenDoor) -> EngineForwards:
    """What one generator of the model is at: its latest forwards, and who was in them."""
    return await door.rendering(query.model).forwards()


async def _healthz() -> dict[str, str]:
    """Answers as long as the ingress lives."""
    return {"status": "ok"}


async def _readyz(request: Request) -> dict[str, str]:
    """Answers 200 if the default model would render now: it is loaded, its device answers."""
    door: Door = request.app.state.door
    await door.rendering().check_ready()
    return {"status": "ok"}


async def _page() -> FileResponse:
    return FileResponse(_PLAYGROUND / "index.html", headers=_PAGE_HEADERS)


class _PageFiles(StaticFiles):
    """Asked for again each time: files of two versions do not go together."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(_PAGE_HEADERS)
        return response
