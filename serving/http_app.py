"""The HTTP application: the routes, on anything that renders."""

import base64
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Query, Request
from fastapi.responses import HTMLResponse

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
from shared.engine import EngineCounters
from shared.model_profile import ServedModel

_PAGE = (Path(__file__).parent / "playground" / "index.html").read_text()


def build_http_app(models: Mapping[str, Rendering], config: HttpConfig) -> FastAPI:
    """Of what renders each model, by name; the first is the default."""
    app = FastAPI(
        title="Stable Diffusion on Ray",
        description="`/imagine` answers with a picture, `/v1/images` as OpenAI's Images API does. "
        "Errors name the field to mend.",
    )
    app.state.door = Door(models, config)
    app.add_middleware(Edge, max_body_bytes=config.max_body_bytes, is_open=not config.token_hashes)
    install_error_handlers(app)
    app.include_router(imagine.router)
    app.include_router(openai_images.router)
    app.add_api_route("/profile", _profile, responses=ERROR_RESPONSES | UNKNOWN_MODEL_RESPONSE)
    app.add_api_route("/stats", _stats, responses=ERROR_RESPONSES)
    app.add_api_route("/healthz", _healthz)
    app.add_api_route("/readyz", _readyz, responses=ERROR_RESPONSES)
    app.add_api_route("/", _page, response_class=HTMLResponse, include_in_schema=False)
    return app


class ProfileQuery(Settings):
    model: ModelName = None


async def _profile(
    query: Annotated[ProfileQuery, Query()], door: OpenDoor, terms: CallTerms
) -> ServedModel:
    """What a model allows and prefers, and how it is rendered."""
    return await door.call(query.model, terms).served()


async def _stats(door: OpenDoor) -> EngineCounters:
    """What the engine of one generator of the default model has done since it started."""
    return await door.rendering().counters()


async def _healthz() -> dict[str, str]:
    """Answers as long as the ingress lives."""
    return {"status": "ok"}


async def _readyz(request: Request) -> dict[str, str]:
    """Answers 200 if the default model would render now: it is loaded, its device answers."""
    door: Door = request.app.state.door
    await door.rendering().check_ready()
    return {"status": "ok"}


async def _page() -> HTMLResponse:
    return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _PAGE_POLICY})


def _hash(element: str) -> str:
    """Of the page's only element of this name, as a policy names it."""
    (content,) = re.findall(rf"<{element}[^>]*>(.*?)</{element}>", _PAGE, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return f"'sha256-{digest}'"


# The page runs its own script and no other, and talks to nobody but this service.
_PAGE_POLICY = (
    f"default-src 'none'; script-src {_hash('script')}; style-src {_hash('style')}; "
    "img-src data:; connect-src 'self'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
