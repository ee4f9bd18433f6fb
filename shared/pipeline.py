"""The loader that service, bulk job and notebook share."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import DiffusionPipeline

from shared.config import ModelConfig
from shared.errors import ModelUnavailable
from shared.model_files import resolve_folder


def load_pipeline(config: ModelConfig | str = "postcard") -> DiffusionPipeline:
    """The stock diffusers pipeline of the configured checkpoint, on its device, ready to call.

    Safetensors weights only, and no code from the checkpoint is ever run; ModelUnavailable says
    what is wrong otherwise.
    """
    config = ModelConfig.model_validate(config)
    folder = resolve_folder(config)
    device = _device(config)
    try:
        with _one_thread():
            return DiffusionPipeline.from_pretrained(
                folder,
                dtype=_dtype(config, device),
                variant=config.variant,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
            ).to(device)
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"cannot load {config.name}: {error}") from error


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep the loading thread from starting a team of OpenMP workers.

    libgomp counts every team's threads. With the loader's team and the engine's there are more
    than processors, and it then puts waiting workers to sleep at once instead of letting them
    spin: denoising was 1.3 to 1.8 times slower on two cores (docs/decisions.md).
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _device(config: ModelConfig) -> torch.device:
    if config.device != "auto":
        return torch.device(config.device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    if config.dtype != "auto":
        dtype: torch.dtype = getattr(torch, config.dtype)
        return dtype
    if device.type == "cpu":
        return torch.float32
    bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if bfloat16 else torch.float16
