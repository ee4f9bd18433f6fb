"""The loader that service, bulk job and notebook share."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError
from torch import nn

from shared.config import ModelConfig
from shared.errors import ModelUnavailable
from shared.model_files import num_weights, resolve_folder

_CONTAINERS_LIMIT = Path("/sys/fs/cgroup/memory.max")


def load_pipeline(config: ModelConfig | str = "postcard") -> DiffusionPipeline:
    """The stock diffusers pipeline of the configured checkpoint, on its device, ready to call.

    Its adapters are loaded and none of them active. Safetensors weights only, and no code from the
    checkpoint is ever run; ModelUnavailable says what is wrong otherwise.
    """
    config = ModelConfig.model_validate(config)
    folder = resolve_folder(config)
    device = _device(config)
    _check_memory(config, folder, device)
    try:
        with _one_thread():
            pipeline = DiffusionPipeline.from_pretrained(
                folder,
                dtype=_dtype(config, device),
                variant=config.variant,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
            ).to(device)
            _load_adapters(pipeline, config.adapters)
            if device.type == "cpu" and getattr(pipeline, "vae", None) is not None:
                _put_channels_last(pipeline.vae)
            return pipeline
    except (OSError, ValueError, torch.OutOfMemoryError) as error:
        raise ModelUnavailable(f"cannot load {config.name}: {error}") from error


def check_fits(config: ModelConfig) -> None:
    """Raise ModelUnavailable where its device or its weights are not here, or do not fit.

    A GPU is left alone: to ask for its free memory takes some of it, for good.
    """
    folder, device = resolve_folder(config), _device(config)
    if device.type == "cuda":
        num_weights(folder, config.variant)
    else:
        _check_memory(config, folder, device)


def _check_memory(config: ModelConfig, folder: Path, device: torch.device) -> None:
    # Else the system ends the process in the middle of loading, without a word.
    needed = num_weights(folder, config.variant) * _dtype(config, device).itemsize
    free = _free_memory(device)
    if needed > free:
        raise ModelUnavailable(
            f"{config.name} has weights of {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free "
            f"({device}): free some, or take a smaller model or dtype"
        )


def _free_memory(device: torch.device) -> int:
    """In bytes; what macOS lends to its GPU is the machine's own."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    available = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):  # "max" where there is no limit
        return min(available, int(_CONTAINERS_LIMIT.read_text()))
    return available


def _load_adapters(pipeline: DiffusionPipeline, adapters: dict[str, Path]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several are meant
        for name, file in adapters.items():
            _load_adapter(pipeline, name, file)
    if adapters:
        pipeline.disable_lora()


def _load_adapter(pipeline: DiffusionPipeline, name: str, file: Path) -> None:
    if file.suffix != ".safetensors" or not file.is_file():
        raise ModelUnavailable(f"adapter {name}: {file} is no safetensors file")
    if not hasattr(pipeline, "load_lora_weights"):
        raise ModelUnavailable(f"adapter {name}: {type(pipeline).__name__} takes no LoRA weights")
    try:
        pipeline.load_lora_weights(
            file.absolute().parent,
            weight_name=file.name,
            adapter_name=name,
            use_safetensors=True,
            local_files_only=True,
        )
    except (KeyError, RuntimeError, SafetensorError, ValueError) as error:
        raise ModelUnavailable(f"adapter {name}: {file} does not fit: {error}") from error
    if name not in {each for names in pipeline.get_list_adapters().values() for each in names}:
        raise ModelUnavailable(f"adapter {name}: {file} has no weights for this model")


def _put_channels_last(vae: nn.Module) -> None:
    """As a CPU's convolutions want their weights: it decodes 1.2 to 1.4 times as fast then.

    Not so the denoiser, whose rows would depend on their company (docs/decisions.md).
    """
    # Convolutions over frames too have weights of five dimensions, which cannot be so.
    if all(weight.ndim < 5 for weight in vae.parameters()):
        vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


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
        return _named_device(config.device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _named_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        if device.type == "cuda":
            torch.cuda.get_device_properties(device)  # takes no memory of it
        else:
            torch.empty(0, device=device)
        return device
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ModelUnavailable(
            f"there is no device {name!r} here ({reason}): leave it out, and the best that is "
            "here is taken"
        ) from error


def _dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    if config.dtype == "auto":
        return default_dtype(device)
    dtype: torch.dtype = getattr(torch, config.dtype)
    return dtype


def default_dtype(device: torch.device) -> torch.dtype:
    """The one that the device is fastest in."""
    if device.type == "cpu":
        abilities = torch.cpu.get_capabilities()
        in_hardware = abilities.get("avx512_bf16") or abilities.get("amx_bf16")
        return torch.bfloat16 if in_hardware else torch.float32
    bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if bfloat16 else torch.float16
