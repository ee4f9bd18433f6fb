"""Every tunable of the engine and the model: frozen, validated once, unknown keys refused."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator


class Settings(BaseModel):
    """Base of all configuration: a misspelt key is an error, and nothing changes after the door."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RequestDefaults(Settings):
    """What a request gets for an argument it leaves out. None: what the checkpoint says."""

    width: PositiveInt | None = None
    height: PositiveInt | None = None
    num_inference_steps: PositiveInt | None = None
    guidance_scale: float | None = Field(default=None, ge=0)


class RequestLimits(Settings):
    """The bounds of a request, whatever the checkpoint. Sides and areas are in pixels."""

    min_side: PositiveInt = 64
    max_side: PositiveInt = 2048
    max_pixels: PositiveInt = 1024 * 1024
    max_num_inference_steps: PositiveInt = 150
    max_guidance_scale: float = Field(default=50.0, ge=0)
    max_prompt_chars: PositiveInt = 4000


class ModelConfig(Settings):
    """Which checkpoint to load and how. A plain string is its name.

    `name` is a bundled model ("postcard"), a local folder in diffusers' layout, or a hub id.
    `device` is torch's name or "auto" (CUDA, else MPS, else CPU). `dtype` "auto" is float32 on a
    CPU, where it is exact, and bfloat16 or float16 on an accelerator.
    """

    name: str = "postcard"
    revision: str | None = None
    variant: str | None = None
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    defaults: RequestDefaults = RequestDefaults()
    limits: RequestLimits = RequestLimits()

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class EngineConfig(Settings):
    """How much the engine takes on at once.

    `max_in_flight` requests denoise together (each holds its latents and embeddings), `max_queued`
    more wait. `max_latents_per_forward` bounds one forward by latent positions (rows x latent
    height x latent width), so that large pictures share a forward with fewer others.
    """

    max_in_flight: PositiveInt = 16
    max_queued: PositiveInt = 256
    max_latents_per_forward: PositiveInt = 16 * 32 * 32
