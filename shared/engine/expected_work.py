"""What a request will take, read from its pipeline's arguments before it runs."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class ExpectedWork:
    """`pictures` of `pixels` each in about `steps` steps. `guided`: two rows a picture, mostly."""

    pixels: int
    pictures: int
    steps: int
    guided: bool


def expected_work(pipeline: DiffusionPipeline, kwargs: Mapping[str, Any]) -> ExpectedWork:
    """An estimate, and nothing more: what is wrong in `kwargs` is the pipeline's to refuse."""
    height, width = _size(pipeline, kwargs)
    steps = _number(_value(pipeline, kwargs, "num_inference_steps"), 1)
    if kwargs.get("image") is not None:
        steps = max(1, int(steps * min(1.0, _number(_value(pipeline, kwargs, "strength"), 1))))
    prompt = kwargs.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) else 1
    return ExpectedWork(
        pixels=max(1, int(height * width)),
        pictures=max(1, int(prompts * _number(kwargs.get("num_images_per_prompt"), 1))),
        steps=max(1, int(steps)),
        guided=_number(_value(pipeline, kwargs, "guidance_scale"), 1) > 1,
    )


def _size(pipeline: DiffusionPipeline, kwargs: Mapping[str, Any]) -> tuple[float, float]:
    image = kwargs.get("image")
    if isinstance(image, list) and image:
        image = image[0]
    height, width = _native_size(pipeline)
    if isinstance(image, Image.Image):
        width, height = image.size
    elif isinstance(image, Tensor):
        height, width = image.shape[-2:]
    return _number(kwargs.get("height"), height), _number(kwargs.get("width"), width)


def _native_size(pipeline: DiffusionPipeline) -> tuple[int, int]:
    denoiser = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    size = getattr(getattr(denoiser, "config", None), "sample_size", None)
    size = size or getattr(pipeline, "default_sample_size", None) or 1
    height, width = (size, size) if isinstance(size, int) else size
    scale = pipeline_scale(pipeline)
    return height * scale, width * scale


def pipeline_scale(pipeline: DiffusionPipeline) -> int:
    """Pixels per side of a latent."""
    return int(getattr(pipeline, "vae_scale_factor", 8))


def _value(pipeline: DiffusionPipeline, kwargs: Mapping[str, Any], name: str) -> Any:
    if kwargs.get(name) is not None:
        return kwargs[name]
    parameter = inspect.signature(type(pipeline).__call__).parameters.get(name)
    return parameter.default if parameter else None


def _number(value: Any, default: float) -> float:
    return value if isinstance(value, int | float) else default
