"""OpenAI's Images API in terms of ours: what its clients send, and what they read.

https://platform.openai.com/docs/api-reference/images
"""

import asyncio
import base64
import io
import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from PIL import Image
from pydantic import BaseModel, BeforeValidator, Field
from starlette.datastructures import FormData, UploadFile

from serving import sse
from serving.door import Call, CallTerms, ModelName, OpenDoor, strictly
from serving.http_errors import ERROR_RESPONSES, UNKNOWN_MODEL_RESPONSE
from shared.errors import InvalidRequest
from shared.request import (
    MAX_SEED,
    CanonicalEdit,
    CanonicalRequest,
    EditRequest,
    Encoding,
    GeneratedImage,
    ImageFormat,
    ImageRequest,
    Lora,
    PictureFields,
    Progress,
    Strength,
    parse,
    parse_request,
)
from shared.source_image import SourceImage

router = APIRouter(prefix="/v1")

_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
_FILES = {"image", "image[]", "mask"}
_LORA_MEMBER = re.compile(r"lora\[(.+)\]")

# null stands for 1, as it does in OpenAI's.
Number = Annotated[
    int,
    Field(ge=1, le=10),
    BeforeValidator(
        lambda value: 1 if value is None else value,
        json_schema_input_type=Annotated[int, Field(ge=1, le=10)] | None,
    ),
]
_Ignored = Annotated[str | None, Field(description="Accepted, and without effect here.")]


class GenerationRequest(PictureFields):
    """The body of OpenAI's, and by `extra_body` the fields of ours."""

    model: ModelName = None
    n: Number = Field(default=1, description="Pictures, of successive seeds.")
    size: str | None = Field(default=None, description="As in 512x512, or auto.")
    response_format: Literal["b64_json"] | None = None
    output_format: ImageFormat | None = Field(default=None, description="png where left out.")
    output_compression: int | None = Field(
        default=None, ge=0, le=100, description="The quality of JPEG and WebP."
    )
    stream: bool | None = None
    partial_images: int | None = Field(
        default=None, ge=0, le=3, description="Previews on the way, where it is a stream."
    )
    background: Literal["opaque", "auto"] | None = None
    quality: _Ignored = None
    moderation: _Ignored = None
    style: _Ignored = None
    user: _Ignored = None
    safety_identifier: _Ignored = None
    lora: Lora = Field(default={}, description="Weights of the model's LoRA adapters, by name.")

    def to_request(self) -> ImageRequest:
        """The first picture's; the others have its seed plus 1, 2, ..."""
        if self.stream and self.n > 1:
            raise InvalidRequest("n", "must be 1 in a stream")
        if self.seed is not None and self.seed + self.n - 1 > MAX_SEED:
            raise InvalidRequest("seed", f"with n of {self.n} goes over {MAX_SEED}")
        fields = self.model_dump(include=set(ImageRequest.model_fields), exclude_none=True)
        return parse_request(fields | _sides(self.size))

    def as_asked(self, error: InvalidRequest) -> InvalidRequest:
        """`error` in the terms of this body: a wrong side is a wrong size."""
        if error.field in ("width", "height"):
            return InvalidRequest("size", f"{error.field} {error.message}")
        return error

    def encoding(self) -> Encoding:
        chosen = {"format": self.output_format, "quality": self.output_compression}
        return Encoding.model_validate({k: v for k, v in chosen.items() if v is not None})


GenerationBody = Annotated[GenerationRequest, strictly(GenerationRequest)]


class EditFields(GenerationRequest):
    """The fields of `POST /v1/images/edits` beside its files; ours are fields like the others."""

    strength: Strength | None = None
    input_fidelity: _Ignored = None

    def to_edit(self) -> EditRequest:
        return EditRequest(**self.to_request().model_dump(), strength=self.strength)


class ImageData(BaseModel):
    b64_json: str
    revised_prompt: None = None
    seed: int
    tokens_cut: dict[str, int] = Field(description="Tokens over the model's limit, by field.")


class ImagesResponse(BaseModel):
    """What the clients call ImagesResponse; `data[].seed` and `tokens_cut` are ours."""

    created: int = Field(description="Seconds since 1970.")
    data: list[ImageData]
    output_format: ImageFormat
    size: str
    background: Literal["opaque"] = "opaque"


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = Field(default=0, description="Not known of a checkpoint.")
    owned_by: str = "local"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


def _edit_schema() -> dict[str, Any]:
    """For the OpenAPI document: the form is read by hand, since one file has two names."""
    schema = EditFields.model_json_schema()
    file = {"type": "string", "contentMediaType": "application/octet-stream"}
    schema["properties"] |= {"image": file, "mask": file}
    schema["required"] = ["prompt", "image"]
    return schema


@router.post("/images/generations", response_model=ImagesResponse, responses=sse.RESPONSES)
async def generate(
    http: Request, body: GenerationBody, door: OpenDoor, terms: CallTerms
) -> ImagesResponse | StreamingResponse:
    """Pictures as OpenAI's clients ask for them."""
    call = door.call(body.model, terms)
    try:
        requests = await call.canonical(body.to_request(), body.n)
    except InvalidRequest as error:
        raise body.as_asked(error) from None
    return await _answer(http, call, body, requests)


@router.post(
    "/images/edits",
    response_model=ImagesResponse,
    responses=sse.RESPONSES,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": _edit_schema()}},
        }
    },
)
async def edit(
    http: Request, door: OpenDoor, terms: CallTerms
) -> ImagesResponse | StreamingResponse:
    """A picture made from another, or inside the transparent parts of its mask."""
    async with http.form(max_files=4, max_fields=50) as form:
        source = await _source(form)
        texts = _texts(form)
    body = parse(EditFields, texts)
    call = door.call(body.model, terms)
    try:
        requests = await call.canonical_edit(body.to_edit(), source, body.n)
    except InvalidRequest as error:
        raise body.as_asked(error) from None
    return await _answer(http, call, body, requests)


@router.get("/models", responses=ERROR_RESPONSES)
async def models(door: OpenDoor) -> ModelList:
    """Those that are served, the default first."""
    return ModelList(data=[Model(id=name) for name in door.models])


@router.get("/models/{model:path}", responses=ERROR_RESPONSES | UNKNOWN_MODEL_RESPONSE)
async def model(model: str, door: OpenDoor) -> Model:
    door.rendering(model)
    return Model(id=model)


async def _answer(
    http: Request,
    call: Call,
    body: GenerationRequest,
    requests: list[CanonicalRequest],
) -> ImagesResponse | StreamingResponse:
    encoding = body.encoding()
    if body.stream:
        events = call.follow(requests[0], encoding, body.partial_images or 0)
        return await sse.stream(http, _as_events(events, requests[0], encoding))
    return _response(await call.render(requests, encoding))


def _response(images: list[GeneratedImage]) -> ImagesResponse:
    first = images[0].provenance.request
    return ImagesResponse(
        created=int(time.time()),
        data=[
            ImageData(
                b64_json=base64.b64encode(image.data).decode(),
                seed=image.provenance.request.seed,
                tokens_cut=image.tokens_cut,
            )
            for image in images
        ],
        output_format=images[0].format,
        size=f"{first.width}x{first.height}",
    )


async def _as_events(
    events: AsyncGenerator[Progress | GeneratedImage],
    request: CanonicalRequest,
    encoding: Encoding,
) -> AsyncGenerator[bytes]:
    """As OpenAI's. It takes any other event for a partial picture: other steps are comments."""
    num_partial = 0
    prefix = "image_edit" if isinstance(request, CanonicalEdit) else "image_generation"

    def picture(kind: str, data: bytes, **more: Any) -> bytes:
        name = f"{prefix}.{kind}"
        return sse.event(
            name,
            {
                "type": name,
                "b64_json": base64.b64encode(data).decode(),
                "created_at": int(time.time()),
                "size": f"{request.width}x{request.height}",
                "quality": "auto",
                "background": "opaque",
                "output_format": encoding.format,
                **more,
            },
        )

    async with aclosing(events):
        async for each in events:
            if isinstance(each, GeneratedImage):
                yield picture("completed", each.data, seed=request.seed, tokens_cut=each.tokens_cut)
            elif each.preview is None:
                yield sse.PING
            else:
                data = await asyncio.to_thread(_enlarged, each.preview, request, encoding)
                yield picture("partial_image", data, partial_image_index=num_partial)
                num_partial += 1


def _enlarged(preview: bytes, request: CanonicalRequest, encoding: Encoding) -> bytes:
    """A preview at the picture's own size and in its format."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(preview)) as image:
        full = image.resize((request.width, request.height), Image.Resampling.BICUBIC)
    full.save(buffer, format=encoding.format, quality=encoding.quality)
    return buffer.getvalue()


def _texts(form: FormData) -> dict[str, Any]:
    """All but the files. OpenAI's clients write a member of an object as `lora[name]`."""
    texts: dict[str, Any] = {name: value for name, value in form.items() if name not in _FILES}
    members = {name: match[1] for name in texts if (match := _LORA_MEMBER.fullmatch(name))}
    lora = {adapter: texts.pop(name) for name, adapter in members.items()}
    return texts | {"lora": lora} if lora else texts


async def _source(form: FormData) -> SourceImage:
    """The files of an edit. The clients call a picture `image`, and one of several `image[]`."""
    images = [*form.getlist("image"), *form.getlist("image[]")]
    if len(images) != 1:
        raise InvalidRequest("image", "must be one file, in multipart/form-data")
    mask = form.get("mask")
    return SourceImage(
        image=await _file("image", images[0]),
        mask=None if mask is None else await _file("mask", mask),
    )


async def _file(field: str, value: UploadFile | str) -> bytes:
    if isinstance(value, str):
        raise InvalidRequest(field, "must be a file: addresses are not followed")
    return await value.read()


def _sides(size: str | None) -> dict[str, int]:
    if size is None or size == "auto":
        return {}
    match = _SIZE.fullmatch(size)
    if match is None:
        raise InvalidRequest("size", 'must be "auto" or like "512x512"')
    return {"width": int(match[1]), "height": int(match[2])}
