"""What a checkpoint allows and prefers: turns a request into a canonical one. No weights needed."""

import hashlib
from typing import Self

from pydantic import Field

from shared.config import Compiler, EngineConfig, ModelConfig, RequestLimits, Settings
from shared.errors import InvalidRequest
from shared.request import (
    CanonicalEdit,
    CanonicalRequest,
    EditRequest,
    ImageRequest,
    canonical_json,
)
from shared.source_image import SourceImage

# diffusers' default of img2img: what is left of the picture is its outline.
_WHOLE_STRENGTH = 0.8


class CompleteDefaults(Settings):
    """The value of every argument that a request may leave out, except the seed."""

    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: str


class ModelProfile(Settings):
    """A checkpoint as the doors see it. `fingerprint` is the content hash of its files.

    `edits`: it can start from a picture, and paint a part of it anew. `adapters` are the content
    hashes of the LoRA files that requests may ask for, by name.
    """

    name: str
    fingerprint: str
    size_multiple: int
    schedulers: tuple[str, ...]
    defaults: CompleteDefaults
    limits: RequestLimits
    adapters: dict[str, str] = Field(default={})
    edits: bool = False

    def canonical(self, request: ImageRequest, *, seed: int, n: int = 1) -> CanonicalRequest:
        """`request` with its gaps filled, `seed` where it has none; raises InvalidRequest.

        `n` is the number of such pictures that the call asks for.
        """
        chosen = request.model_dump(exclude_none=True)
        # A weight of 0 is no adapter.
        chosen["lora"] = {name: weight for name, weight in request.lora.items() if weight}
        complete = CanonicalRequest.model_validate(
            {**self.defaults.model_dump(), "seed": seed, **chosen}
        )
        self._check(complete)
        if n * complete.pixel_steps > self.limits.max_pixel_steps:
            field = "n" if n > 1 else "num_inference_steps"
            limit = self.limits.max_pixel_steps
            raise InvalidRequest(field, f"makes pixels x steps x pictures more than {limit}")
        return complete

    def canonical_edit(
        self, request: EditRequest, source: SourceImage, *, seed: int, n: int = 1
    ) -> CanonicalEdit:
        """As `canonical`, of a picture to start from: its size and its share of the steps."""
        if not self.edits:
            raise InvalidRequest("image", f"{self.name} cannot start from a picture")
        size = self._size_like(*source.check(self.limits.max_source_pixels))
        whole = source.is_whole()
        strength = request.strength or (_WHOLE_STRENGTH if whole else 1.0)
        asked = request.model_dump(exclude={"strength"}, exclude_none=True)
        plain = self.canonical(ImageRequest(**size | asked), seed=seed, n=n)
        if int(plain.num_inference_steps * strength) < 1:
            raise InvalidRequest("strength", "leaves none of the steps")
        image_sha256, mask_sha256 = source.digests()
        return CanonicalEdit(
            **plain.model_dump(),
            strength=strength,
            image_sha256=image_sha256,
            mask_sha256=mask_sha256,
            source=source,
        )

    def _size_like(self, width: int, height: int) -> dict[str, int]:
        """The nearest size of the same shape that is within the limits."""
        limits, multiple = self.limits, self.size_multiple
        least = -(-limits.min_side // multiple) * multiple
        most = min(limits.max_side, limits.max_pixels // least)
        scale = min(1.0, (limits.max_pixels / (width * height)) ** 0.5, most / max(width, height))
        scale = max(scale, least / min(width, height))
        sides = {"width": min(most, width * scale), "height": min(most, height * scale)}
        # A side that is a whole number but for rounding is that number.
        return {
            name: max(least, int(side + 1e-6) // multiple * multiple)
            for name, side in sides.items()
        }

    def fingerprint_for(self, request: CanonicalRequest) -> str:
        """The content hash of all weights that `request` is rendered with."""
        if not request.lora:
            return self.fingerprint
        used = [self.fingerprint, {name: self.adapters[name] for name in request.lora}]
        return hashlib.sha256(canonical_json(used).encode()).hexdigest()[:32]

    def _check(self, request: CanonicalRequest) -> None:
        limits = self.limits
        for field in ("prompt", "negative_prompt"):
            if len(getattr(request, field)) > limits.max_prompt_chars:
                raise InvalidRequest(
                    field, f"must have at most {limits.max_prompt_chars} characters"
                )
        for field in ("width", "height"):
            self._check_side(field, getattr(request, field))
        if request.width * request.height > limits.max_pixels:
            raise InvalidRequest("width", f"makes more than {limits.max_pixels} pixels in all")
        if request.num_inference_steps > limits.max_num_inference_steps:
            most = limits.max_num_inference_steps
            raise InvalidRequest("num_inference_steps", f"must be at most {most}")
        if request.guidance_scale > limits.max_guidance_scale:
            raise InvalidRequest("guidance_scale", f"must be at most {limits.max_guidance_scale:g}")
        if request.scheduler not in self.schedulers:
            raise InvalidRequest("scheduler", f"must be one of {', '.join(self.schedulers)}")
        for name in request.lora.keys() - self.adapters.keys():
            known = ", ".join(sorted(self.adapters)) or "none"
            raise InvalidRequest("lora", f"{name!r} is not loaded; there are: {known}")

    def _check_side(self, field: str, side: int) -> None:
        if not self.limits.min_side <= side <= self.limits.max_side:
            raise InvalidRequest(
                field, f"must be from {self.limits.min_side} to {self.limits.max_side} pixels"
            )
        if side % self.size_multiple:
            raise InvalidRequest(field, f"must be a multiple of {self.size_multiple}")


class ServedModel(Settings):
    """A checkpoint and how it is rendered: what decides a picture's bytes beside its request.

    `dtype` and `byte_identical` are as configured: "auto" and None leave them to the device.
    """

    profile: ModelProfile
    dtype: str
    compile: Compiler | None = None
    byte_identical: bool | None = None

    @classmethod
    def configured(cls, profile: ModelProfile, model: ModelConfig, engine: EngineConfig) -> Self:
        is_said = "byte_identical" in engine.model_fields_set
        return cls(
            profile=profile,
            dtype=model.dtype,
            compile=engine.compile,
            byte_identical=engine.byte_identical if is_said else None,
        )
