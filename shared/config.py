"""Every tunable of the engine and the model: frozen, validated once, unknown keys refused."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

# Who compiles the denoiser.
Compiler = Literal["torch", "openvino"]

# As peft takes them, and without the signs of a request's notation.
AdapterName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]


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
    """The bounds of a request, whatever the checkpoint. Sides and areas are in pixels.

    `max_source_pixels` are those of a picture to edit. `max_pixel_steps` bounds pixels times steps
    times pictures of one call.
    """

    min_side: PositiveInt = 64
    max_side: PositiveInt = 2048
    max_pixels: PositiveInt = 1024 * 1024
    max_num_inference_steps: PositiveInt = 150
    max_pixel_steps: PositiveInt = 200 * 1024 * 1024
    max_guidance_scale: float = Field(default=50.0, ge=0)
    max_prompt_chars: PositiveInt = 4000
    max_source_pixels: PositiveInt = 4096 * 4096


class ModelConfig(Settings):
    """Which checkpoint to load and how. A plain string is its name.

    `name` is a bundled model ("postcard"), a local folder in diffusers' layout, or a hub id.
    `device` is torch's name or "auto" (CUDA, else MPS, else CPU). `dtype` "auto" is bfloat16 where
    the device computes in it (a CPU with AVX512-BF16 or AMX), else float16, on a CPU float32.
    `adapters` are the LoRA adapters that requests may ask for: local safetensors files by name.
    """

    name: str = "postcard"
    revision: str | None = None
    variant: str | None = None
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    adapters: dict[AdapterName, Path] = {}
    defaults: RequestDefaults = RequestDefaults()
    limits: RequestLimits = RequestLimits()

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


# What differs on a GPU: its forwards take more at once, company that leaves no byte changed costs
# it a good part of its speed, and more in flight were not measured (docs/decisions.md).
_ON_A_GPU = {
    "max_in_flight": 16,
    "byte_identical": False,
    "max_pixels_per_forward": 32 * 512 * 512,
    "max_pixels_per_decode": 8 * 512 * 512,
}


def _default_compiler(value: Any) -> Any:
    return {True: "torch", False: None}[value] if isinstance(value, bool) else value


class EngineConfig(Settings):
    """How much the engine takes on at once, by priority: bulk work cannot use up online work's.

    `max_in_flight` requests of `max_pixels_in_flight` in all denoise together (each holds its
    latents and embeddings), `max_queued` more wait, or `max_queued_bulk` bulk ones.
    `max_pixels_per_forward` bounds a forward of the denoiser by rows x width x height, so that
    large pictures share one with fewer others, and `max_pixels_per_decode` one of the
    autoencoder's; 0 decodes picture by picture.

    Beside online work, bulk work goes in rows that would be padding, and in more for a part of
    `bulk_slack` of the time by which online requests would, without it, end sooner than the
    slowest twentieth of late. It has at least a part of `bulk_floor` of the time, however much
    online work there is.

    With `byte_identical`, forwards carry only numbers of rows that give a picture the same bytes
    in any company. Of it and the bounds in requests and pixels, the defaults are a CPU's; `on`
    gives those of other devices.

    With `compile`, the denoiser is compiled when the model is loaded, by "torch" (which true stands
    for) or "openvino" (docs/engine.md). With `record_forwards`, forwards are replayed without
    Python: on a CUDA device as graphs, on a CPU by TorchScript. `max_prompt_cache_bytes` bounds the
    encoded prompts that are kept. An engine that is at one step for `watchdog_timeout_s` is dead.
    """

    max_in_flight: PositiveInt = 32
    max_queued: PositiveInt = 256
    max_queued_bulk: PositiveInt = 16
    max_pixels_in_flight: PositiveInt = 16 * 1024 * 1024
    max_pixels_per_forward: PositiveInt = 16 * 256 * 256
    max_pixels_per_decode: NonNegativeInt = 0
    bulk_slack: float = Field(default=0.0, ge=0, le=1)
    bulk_floor: float = Field(default=0.0, ge=0, lt=1)
    byte_identical: bool = True
    compile: Annotated[Compiler | None, BeforeValidator(_default_compiler)] = None
    record_forwards: bool = True
    max_prompt_cache_bytes: NonNegativeInt = 256 * 2**20
    watchdog_timeout_s: PositiveFloat = 300

    def on(self, device_type: str) -> Self:
        """With the defaults of a device, of torch's `device_type`, where nothing was set."""
        if device_type == "cpu":
            return self
        unset = {
            name: best for name, best in _ON_A_GPU.items() if name not in self.model_fields_set
        }
        return self.model_copy(update=unset)
