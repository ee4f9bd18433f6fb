"""`/imagine`: the original template's route, and the whole request as JSON."""

import base64
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import Field

from serving import sse
from serving.door import Call, CallTerms, ModelName, OpenDoor, strictly
from serving.http_errors import ERROR_RESPONSES, UNKNOWN_MODEL_RESPONSE
from shared.errors import InvalidRequest
from shared.request import (
    CanonicalRequest,
    Encoding,
    GeneratedImage,
    ImageRequest,
    PictureFields,
    Progress,
    Side,
    parse_request,
)

router = APIRouter()


class ImagineQuery(PictureFields):
    """An ImageRequest as a query string."""

    model: ModelName = None
    width: Side | None = None
    height: Side | None = None
    lora: str | None = Field(default=None, description="As in ink:0.8,gold:1")
    img_size: int | None = Field(
        default=None, ge=1, description="Width and height of a square picture."
    )

    def to_request(self) -> ImageRequest:
        fields = self.model_dump(exclude={"img_size", "model"}, exclude_none=True)
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


class ImagineBody(ImageRequest):
    """An ImageRequest, of a model."""

    model: ModelName = None

    def to_request(self) -> ImageRequest:
        return ImageRequest(**self.model_dump(exclude={"model"}))


ImageBody = Annotated[ImagineBody, strictly(ImagineBody)]

_FILE = {"schema": {"type": "string", "contentMediaType": "image/png"}}
_PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": _FILE}, "description": "The picture."},
    **ERROR_RESPONSES,
    **UNKNOWN_MODEL_RESPONSE,
}
_PICTURE_OR_SAME: dict[int | str, dict[str, Any]] = {
    304: {"description": "The picture that the caller has already."},
    **_PICTURE,
}


@router.get("/imagine", response_class=Response, responses=_PICTURE_OR_SAME)
async def imagine_by_query(
    query: Annotated[ImagineQuery, Query()],
    door: OpenDoor,
    terms: CallTerms,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """A picture of `prompt`; `img_size` is its side in pixels. With a seed it can be cached."""
    call = door.call(query.model, terms)
    try:
        (request,) = await call.canonical(query.to_request())
    except InvalidRequest as error:
        raise query.as_asked(error) from None
    caching = {"Cache-Control": "no-store"}
    if query.seed is not None:
        caching = await _caching(request, call)
        if caching["ETag"] in (if_none_match or "").replace(" ", "").split(","):
            return Response(status_code=304, headers=caching)
    return await _imagine(request, call, caching)


@router.post("/imagine", response_class=Response, responses=_PICTURE)
async def imagine(body: ImageBody, door: OpenDoor, terms: CallTerms) -> Response:
    """A picture of the whole request as JSON."""
    call = door.call(body.model, terms)
    (request,) = await call.canonical(body.to_request())
    return await _imagine(request, call, {})


@router.get("/imagine/events", response_class=Response, responses=sse.RESPONSES)
async def follow_by_query(
    http: Request,
    query: Annotated[ImagineQuery, Query()],
    door: OpenDoor,
    terms: CallTerms,
) -> Response:
    """As `GET /imagine`, live: `progress` events with previews, then one `image` or `error`."""
    try:
        return await _follow(http, query.to_request(), door.call(query.model, terms))
    except InvalidRequest as error:
        raise query.as_asked(error) from None


@router.post("/imagine/events", response_class=Response, responses=sse.RESPONSES)
async def follow(http: Request, body: ImageBody, door: OpenDoor, terms: CallTerms) -> Response:
    """As `POST /imagine`, live: `progress` events with previews, then one `image` or `error`."""
    return await _follow(http, body.to_request(), door.call(body.model, terms))


async def _follow(http: Request, request: ImageRequest, call: Call) -> Response:
    (canonical,) = await call.canonical(request)
    # Each step is shown.
    events = call.follow(canonical, Encoding(), canonical.num_inference_steps)
    return await sse.stream(http, _as_events(events))


async def _as_events(
    events: AsyncGenerator[Progress | GeneratedImage],
) -> AsyncGenerator[bytes]:
    async with aclosing(events):
        async for each in events:
            if isinstance(each, GeneratedImage):
                yield sse.event("image", _image_event(each))
            else:
                preview = _data_url(each.preview, "image/png") if each.preview else None
                yield sse.event("progress", each.model_dump() | {"preview": preview})


def _image_event(image: GeneratedImage) -> dict[str, Any]:
    provenance = image.provenance
    return {
        "image": _data_url(image.data, image.media_type),
        "image_id": provenance.request.image_id(provenance.model_fingerprint),
        "request": provenance.request.model_dump(),
        "model": provenance.model,
        "tokens_cut": image.tokens_cut,
        "timings": image.timings.model_dump(),
    }


def _data_url(data: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


async def _imagine(request: CanonicalRequest, call: Call, headers: dict[str, str]) -> Response:
    (image,) = await call.render([request], Encoding())
    return Response(image.data, headers=_headers(image) | headers, media_type=image.media_type)


async def _caching(request: CanonicalRequest, call: Call) -> dict[str, str]:
    """A request with its seed is a pure function of the weights: ask again, render never.

    The tag is weak: another kind of processor may round a pixel otherwise. It has to be asked for
    each time, since the same address gives another picture once another model is served.
    """
    profile = await call.profile()
    image_id = request.image_id(profile.fingerprint_for(request))
    return {"ETag": f'W/"{image_id}"', "Cache-Control": "private, no-cache"}


def _headers(image: GeneratedImage) -> dict[str, str]:
    provenance, timings = image.provenance, image.timings
    durations = {
        "queue": timings.queue_s,
        "render": timings.render_s,
        "encode": timings.encode_s,
    }
    cut = ", ".join(f"{name}={number}" for name, number in image.tokens_cut.items())
    return ({"X-Tokens-Cut": cut} if cut else {}) | {
        "X-Image-Id": provenance.request.image_id(provenance.model_fingerprint),
        "X-Seed": str(provenance.request.seed),
        "X-Model": quote(provenance.model),  # a folder may have any name
        "X-Model-Fingerprint": provenance.model_fingerprint,
        "X-Num-Forwards": str(timings.num_forwards),
        "X-Num-Shared-Forwards": str(timings.num_shared_forwards),
        "Server-Timing": ", ".join(f"{name};dur={s * 1000:.1f}" for name, s in durations.items()),
    }
