"""What is asked for and what comes back: the HTTP body and the Parquet row alike. No tensors."""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from shared.errors import InvalidRequest
from shared.source_image import SourceImage

FieldsT = TypeVar("FieldsT", bound=BaseModel)

# JSON readers keep whole numbers exact up to here (RFC 8259, section 6).
MAX_SEED = 2**53 - 1

Side = Annotated[int, Field(ge=1, description="Pixels; a multiple of 8 within the model's limits.")]
Steps = Annotated[int, Field(ge=1, description="Denoising steps.")]
Guidance = Annotated[
    float,
    Field(
        ge=0,
        allow_inf_nan=False,
        description="Classifier-free guidance; at 1 or below the negative prompt has no effect.",
    ),
]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED, description="Of the noise; drawn where left out.")]
# null stands for the default, as it does in every other field.
NegativePrompt = Annotated[
    str,
    BeforeValidator(
        lambda value: "" if value is None else value, json_schema_input_type=str | None
    ),
]
Strength = Annotated[
    float,
    Field(gt=0, le=1, description="How far to leave the given picture: at 1 nothing is kept."),
]
LoraWeight = Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)]
# As an object, or in the notation of a query string: name:weight,name:weight
Lora = Annotated[
    dict[str, LoraWeight],
    BeforeValidator(
        lambda value: _parse_lora(value),
        json_schema_input_type=dict[str, LoraWeight] | str | None,
    ),
]
ImageFormat = Literal["png", "jpeg", "webp"]
SchedulerName = Annotated[str, Field(description="Class name of a diffusers noise scheduler.")]


class PictureFields(BaseModel):
    """What every request may say, whichever door it comes through; diffusers' argument names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str = Field(pattern=r"\S", description="What to draw.")
    negative_prompt: NegativePrompt = Field(default="", description="What to keep away from.")
    num_inference_steps: Steps | None = None
    guidance_scale: Guidance | None = None
    scheduler: SchedulerName | None = None
    seed: Seed | None = None


class ImageRequest(PictureFields):
    """One picture. What is left out, the model's defaults fill."""

    width: Side | None = None
    height: Side | None = None
    lora: Lora = Field(default={}, description="Weights of the model's LoRA adapters, by name.")


class EditRequest(ImageRequest):
    """A picture made from another one, or inside the masked part of it."""

    strength: Strength | None = None


class CanonicalRequest(ImageRequest):
    """A request with nothing left open: on one model it is one picture."""

    width: Side
    height: Side
    num_inference_steps: Steps
    guidance_scale: Guidance
    scheduler: SchedulerName
    seed: Seed

    @property
    def pixel_steps(self) -> int:
        """What it takes to render: pixels times steps."""
        return self.width * self.height * self.num_inference_steps

    def image_id(self, model_fingerprint: str, source: str = "") -> str:
        """32 hex digits that name this picture; `source` tells equal rows of a dataset apart."""
        identity = [self.model_dump(), model_fingerprint, source]
        return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:32]


class CanonicalEdit(CanonicalRequest):
    """A canonical request with the files that it starts from, by the SHA-256 of their bytes.

    `source` are the files themselves: they travel with it, and are no part of what is written down.
    """

    strength: Strength
    image_sha256: str
    mask_sha256: str | None
    source: SourceImage | None = Field(default=None, exclude=True, repr=False)


class Provenance(BaseModel):
    """Everything that decides a picture's pixels; written into the file itself."""

    model_config = ConfigDict(frozen=True)

    request: CanonicalEdit | CanonicalRequest
    model: str
    model_fingerprint: str
    dtype: str


class Timings(BaseModel):
    """Seconds a picture took, and how much of its work was shared with others."""

    model_config = ConfigDict(frozen=True)

    queue_s: float
    render_s: float
    encode_s: float
    num_forwards: int
    num_shared_forwards: int


class Encoding(BaseModel):
    """How a picture becomes a file. `quality` is that of JPEG and WebP; PNG is lossless."""

    model_config = ConfigDict(frozen=True)

    format: ImageFormat = "png"
    quality: int = Field(default=90, ge=0, le=100)


class Progress(BaseModel):
    """How far a picture is: `num_ahead` requests are let in before it, then it makes its steps.

    `preview` is what it looks like now, a small PNG.
    """

    model_config = ConfigDict(frozen=True)

    num_ahead: int
    step: int
    num_steps: int
    preview: bytes | None = None


class GeneratedImage(BaseModel):
    """An encoded picture, ready to send or store.

    `tokens_cut` says how many tokens of `prompt` or `negative_prompt` were over the model's limit.
    """

    model_config = ConfigDict(frozen=True)

    data: bytes
    format: ImageFormat
    provenance: Provenance
    timings: Timings
    tokens_cut: dict[str, int] = Field(default={})

    @property
    def media_type(self) -> str:
        return f"image/{self.format}"

    @property
    def sha256(self) -> str:
        """Hex digest of the encoded bytes."""
        return hashlib.sha256(self.data).hexdigest()


def parse_request(fields: Mapping[str, Any]) -> ImageRequest:
    """`fields` as an ImageRequest; raises InvalidRequest naming the first wrong field."""
    return parse(ImageRequest, fields)


def parse(kind: type[FieldsT], fields: Mapping[str, Any]) -> FieldsT:
    """`fields` as a `kind`; raises InvalidRequest naming the first wrong field."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise problem(error.errors()[0]) from None


# By pydantic's types of errors, with what it tells of each.
_IN_OUR_WORDS = {
    "dict_type": "must be an object",
    "extra_forbidden": "is not a field of this request",
    "finite_number": "must be a finite number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "greater_than": "must be over {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "less_than_equal": "must be at most {le:.16g}",
    "literal_error": "must be {expected}",
    "missing": "is required",
    "model_attributes_type": "must be a JSON object",
    "model_type": "must be a JSON object",
    "string_pattern_mismatch": "must not be empty",
    "string_type": "must be a text",
    "string_unicode": "must be valid Unicode",
    "value_error": "{error}",
}


def problem(error: Mapping[str, Any]) -> InvalidRequest:
    """One of pydantic's errors as ours, whichever door it came through."""
    field = ".".join(map(str, error["loc"])) or "body"
    words = _IN_OUR_WORDS.get(error["type"])
    message = words.format(**error.get("ctx", {})) if words else str(error["msg"])
    return InvalidRequest(field, message)


def lora_text(lora: Mapping[str, float]) -> str:
    """`lora` as a query string or a Parquet cell has it: name:weight,name:weight."""
    return ",".join(f"{name}:{_shortest(weight)}" for name, weight in lora.items())


def _shortest(weight: float) -> str:
    """That is read as the same number again."""
    return repr(float(weight)).removesuffix(".0")


def _parse_lora(value: Any) -> Any:
    if not isinstance(value, str):
        return {} if value is None else value
    pairs = [each.rpartition(":") for each in value.split(",") if each.strip()]
    wrong = ValueError("must be like name:0.8,name:1")
    if not all(name.strip() for name, _, _ in pairs):
        raise wrong
    try:
        return {name.strip(): float(weight) for name, _, weight in pairs}
    except ValueError:
        raise wrong from None


def canonical_json(value: Any) -> str:
    """One spelling for equal values, so that it can be hashed and compared."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
