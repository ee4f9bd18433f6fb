"""`/imagine`: the original template's route, and the whole request as JSON."""

from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Query, Response
from pydantic import Field

from serving.door import Door, OpenDoor, Timeout
from serving.http_errors import ERROR_RESPONSES
from shared.errors import InvalidRequest
from shared.request import (
    Encoding,
    GeneratedImage,
    ImageRequest,
    PictureFields,
    Side,
    parse_request,
)

router = APIRouter()


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


@router.get("/imagine", response_class=PngResponse, responses=ERROR_RESPONSES)
async def imagine_by_query(
    query: Annotated[ImagineQuery, Query()], door: OpenDoor, timeout: Timeout = None
) -> Response:
    """A picture of `prompt`; `img_size` is its side in pixels."""
    try:
        return await _imagine(query.to_request(), door, timeout)
    except InvalidRequest as error:
        raise query.as_asked(error) from None


@router.post("/imagine", response_class=PngResponse, responses=ERROR_RESPONSES)
async def imagine(request: ImageRequest, door: OpenDoor, timeout: Timeout = None) -> Response:
    """A picture of the whole request as JSON."""
    return await _imagine(request, door, timeout)


async def _imagine(request: ImageRequest, door: Door, timeout: float | None) -> Response:
    (image,) = await door.render(await door.canonical(request), Encoding(), timeout)
    return PngResponse(image.data, headers=_headers(image))


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
