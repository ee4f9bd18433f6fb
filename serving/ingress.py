"""The HTTP routes. Requests are checked and made canonical here, before a generator sees them.

`serve.ingress` pickles the routes where it stands: what they use has to be defined above it.
"""

import secrets
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Depends, FastAPI, Query, Response
from fastapi.responses import HTMLResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import Field
from ray import serve
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from serving.auth import TokenAuth
from serving.http_errors import ERROR_RESPONSES, install_error_handlers
from shared.config import ModelConfig
from shared.engine import EngineCounters
from shared.errors import InvalidRequest, QueueFull
from shared.model_profile import ModelProfile
from shared.request import GeneratedImage, ImageRequest, PictureFields, Side, parse_request

_PAGE = (Path(__file__).parent / "playground" / "index.html").read_text()

app = FastAPI(
    title="Stable Diffusion on Ray",
    description="One picture per request, by `GET` or `POST`. Errors name the field to mend.",
)
install_error_handlers(app)

Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]


class ImagineQuery(PictureFields):
    """An ImageRequest as a query string."""

    width: Side | None = None
    height: Side | None = None
    lora: str | None = Field(default=None, description="As in ink:0.8,gold:1")
    img_size: int | None = Field(
        default=None, ge=1, description="Width and height of a square picture."
    )

    def to_request(self) -> ImageRequest:
        fields = self.model_dump(exclude={"img_size"}, exclude_none=True)
        if self.img_size is not None:
            if fields.keys() & {"width", "height"}:
                raise InvalidRequest("img_size", "cannot stand beside width or height")
            fields |= {"width": self.img_size, "height": self.img_size}
        return parse_request(fields)

    def as_asked(self, error: InvalidRequest) -> InvalidRequest:
        """`error` in the terms of this query: a wrong side is a wrong img_size."""
        if self.img_size is not None and error.field in ("width", "height"):
            return InvalidRequest("img_size", error.message)
        return error


class PngResponse(Response):
    media_type = "image/png"


def _headers(image: GeneratedImage) -> dict[str, str]:
    provenance, timings = image.provenance, image.timings
    durations = {
        "queue": timings.queue_s,
        "render": timings.render_s,
        "encode": timings.encode_s,
    }
    return {
        "X-Image-Id": provenance.request.image_id(provenance.model_fingerprint),
        "X-Seed": str(provenance.request.seed),
        "X-Model": quote(provenance.model),  # a folder may have any name
        "X-Model-Fingerprint": provenance.model_fingerprint,
        "Server-Timing": ", ".join(f"{name};dur={s * 1000:.1f}" for name, s in durations.items()),
    }


# Enough that the generators' queue, and not the ingress, decides what is too much.
@serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
@serve.ingress(app)
class Ingress:
    def __init__(
        self, generator: DeploymentHandle, model: ModelConfig, token_hashes: tuple[str, ...]
    ) -> None:
        self._generator = generator
        self._auth = TokenAuth(token_hashes)
        self._profile: ModelProfile | None = None

    @app.get("/imagine", response_class=PngResponse, responses=ERROR_RESPONSES)
    async def imagine_by_query(
        self, query: Annotated[ImagineQuery, Query()], token: Bearer
    ) -> Response:
        """A picture of `prompt`; `img_size` is its side in pixels."""
        try:
            return await self._imagine(query.to_request(), token)
        except InvalidRequest as error:
            raise query.as_asked(error) from None

    @app.post("/imagine", response_class=PngResponse, responses=ERROR_RESPONSES)
    async def imagine(self, request: ImageRequest, token: Bearer) -> Response:
        """A picture of the whole request as JSON."""
        return await self._imagine(request, token)

    @app.get("/stats", responses=ERROR_RESPONSES)
    async def stats(self, token: Bearer) -> EngineCounters:
        """What the engine of one generator has done since it started."""
        self._check(token)
        counters: EngineCounters = await self._answer(self._generator.counters.remote())
        return counters

    @app.get("/healthz")
    async def healthz(self) -> dict[str, str]:
        """Answers as long as the ingress lives."""
        return {"status": "ok"}

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page(self) -> str:
        return _PAGE

    async def _imagine(self, request: ImageRequest, token: Bearer) -> Response:
        self._check(token)
        profile = await self._get_profile()
        # The seed is drawn here, so that whoever renders it, and however often, it is one picture.
        canonical = profile.canonical(request, seed=secrets.randbelow(2**32))
        image: GeneratedImage = await self._answer(self._generator.generate.remote(canonical))
        return Response(image.data, media_type=image.media_type, headers=_headers(image))

    async def _get_profile(self) -> ModelProfile:
        if self._profile is None:
            self._profile = await self._answer(self._generator.profile.remote())
        return self._profile

    async def _answer(self, response: DeploymentResponse) -> Any:
        try:
            return await response
        except BackPressureError as error:
            # Serve puts its own handler for this error into the routes: a 503 in plain text.
            raise QueueFull(str(error)) from None

    def _check(self, token: Bearer) -> None:
        self._auth.check(token.credentials if token else None)
