"""The checkpoint as files: where they lie, what they say, their fingerprint. Loads no weights."""

import contextlib
import hashlib
import inspect
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.pipelines.auto_pipeline import (
    AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
    AUTO_INPAINT_PIPELINES_MAPPING,
    AUTO_TEXT2IMAGE_PIPELINES_MAPPING,
)
from huggingface_hub import cached_assets_path
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from shared.config import ModelConfig, RequestDefaults
from shared.errors import InvalidRequest, ModelUnavailable
from shared.model_names import find_folder, model_id
from shared.model_profile import CompleteDefaults, ModelProfile
from shared.request import ImageRequest

# A folder may bring its own defaults in this file (the keys of RequestDefaults).
DEFAULTS_FILE = "request_defaults.json"

# Pickles, which run what is in them.
_UNSAFE = {".bin", ".ckpt", ".pt", ".pth"}

# diffusers lists it among the compatible ones, but it is for EDM-preconditioned models alone:
# with the others' weights it leaves a grey blur.
_NOT_INTERCHANGEABLE = {"EDMEulerScheduler"}


def resolve_folder(config: ModelConfig) -> Path:
    """The local folder of the configured checkpoint; downloads a hub id on first use.

    Raises ModelUnavailable if there is none, or if it has no safetensors weights.
    """
    folder = find_folder(config)
    if folder is not None:
        return folder
    try:
        return Path(
            DiffusionPipeline.download(
                config.name,
                revision=config.revision,
                variant=config.variant,
                use_safetensors=True,
                trust_remote_code=False,
            )
        )
    except (OSError, ValueError) as error:
        raise ModelUnavailable(
            f"{config.name} is no folder here, and cannot be had from the hub: {_root(error)}"
        ) from error


def _root(error: BaseException) -> str:
    """What the first of a chain of errors says, in a line."""
    while before := error.__cause__ or error.__context__:
        error = before
    return str(error).partition("\n")[0] or type(error).__name__


def describe_model(config: ModelConfig) -> ModelProfile:
    """What the configured checkpoint allows and prefers, read from its JSON files."""
    folder = resolve_folder(config)
    try:
        profile = _read_profile(config, folder)
        profile.canonical(ImageRequest(prompt="any"), seed=0)
    except (InvalidRequest, ValidationError) as error:
        raise ModelUnavailable(f"the defaults of {config.name} do not hold: {error}") from error
    except (AttributeError, KeyError, TypeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ModelUnavailable(f"{config.name} is of a kind not known here ({what})") from error
    return profile


def load_noise_schedulers(folder: Path) -> dict[str, SchedulerMixin]:
    """The checkpoint's own noise scheduler, then every other that fits its weights, by name."""
    own = _own_scheduler(folder)
    schedulers = {type(own).__name__: own}
    for scheduler_class in sorted(own.compatibles, key=lambda each: str(each.__name__)):
        if scheduler_class.__name__ in _NOT_INTERCHANGEABLE | set(schedulers):
            continue
        try:
            schedulers[scheduler_class.__name__] = scheduler_class.from_config(own.config)
        except (ImportError, NotImplementedError, ValueError):
            continue  # needs a package that is not installed, or cannot take these settings
    return schedulers


def fingerprint(folder: Path) -> str:
    """32 hex digits over the content of every file that loading reads."""
    digest = hashlib.sha256()
    for file in _loaded_files(folder):
        digest.update(f"{file.relative_to(folder).as_posix()} {_file_digest(file)}\n".encode())
    return digest.hexdigest()[:32]


def num_weights(folder: Path, variant: str | None = None) -> int:
    """The numbers in the safetensors files that loading reads, by their headers.

    Raises ModelUnavailable where a component has weights of another kind alone, or broken ones.
    """
    index = _read_json(folder / "model_index.json")
    used = [each for each in _components(folder) if index[each.name] != [None, None]]
    return sum(_numbers_in(file) for each in used for file in _weights(each, variant))


def _weights(component: Path, variant: str | None) -> list[Path]:
    """As diffusers names them: of the variant, where there are such, as model.fp16.safetensors."""
    safe = list(component.glob("*.safetensors"))
    plain = [file for file in safe if "." not in file.stem]
    of_variant = [file for file in safe if variant and f".{variant}" in file.stem]
    unsafe = next((file for file in component.iterdir() if file.suffix in _UNSAFE), None)
    if unsafe and not safe:
        raise ModelUnavailable(
            f"{unsafe} can hold code, and there are no safetensors beside it: load the checkpoint "
            "with diffusers where you trust it, and save_pretrained() writes them"
        )
    return of_variant or plain


def _numbers_in(file: Path) -> int:
    try:
        with safe_open(file, "numpy") as weights:
            names = weights.keys()
            return sum(math.prod(weights.get_slice(name).get_shape()) for name in names)
    except (OSError, SafetensorError) as error:
        raise ModelUnavailable(f"cannot read {file}: {error}") from error


def _read_profile(config: ModelConfig, folder: Path) -> ModelProfile:
    schedulers = tuple(load_noise_schedulers(folder))
    scale = 2 ** (len(_read_json(folder / "vae" / "config.json")["block_out_channels"]) - 1)
    patch_size = _denoiser_config(folder).get("patch_size", 1)
    return ModelProfile(
        name=model_id(config),
        fingerprint=fingerprint(folder),
        size_multiple=scale * patch_size,
        schedulers=schedulers,
        defaults=CompleteDefaults(
            scheduler=schedulers[0],
            **_pipeline_defaults(folder, scale)
            | _folder_defaults(folder)
            | config.defaults.model_dump(exclude_none=True),
        ),
        limits=config.limits,
        edits=_can_edit(_read_json(folder / "model_index.json")["_class_name"]),
        adapters={name: _adapter_digest(name, file) for name, file in config.adapters.items()},
    )


def _can_edit(class_name: str) -> bool:
    """Whether diffusers has pipelines for img2img and inpainting by the same components."""
    families = [
        family
        for family, pipeline_class in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.items()
        if pipeline_class.__name__ == class_name
    ]
    return any(
        family in AUTO_IMAGE2IMAGE_PIPELINES_MAPPING and family in AUTO_INPAINT_PIPELINES_MAPPING
        for family in families
    )


def _adapter_digest(name: str, file: Path) -> str:
    try:
        return _file_digest(file)
    except OSError as error:
        raise ModelUnavailable(f"adapter {name}: cannot read {file}: {error.strerror}") from error


def _pipeline_defaults(folder: Path, scale: int) -> dict[str, Any]:
    """What diffusers' own pipeline class and the denoiser's native size give."""
    pipeline_class = getattr(diffusers, _read_json(folder / "model_index.json")["_class_name"])
    arguments = inspect.signature(pipeline_class.__call__).parameters
    defaults = {name: arguments[name].default for name in ("num_inference_steps", "guidance_scale")}
    size = _denoiser_config(folder).get("sample_size")
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        defaults |= {"height": height * scale, "width": width * scale}
    return defaults


def _denoiser_config(folder: Path) -> dict[str, Any]:
    unet = folder / "unet" / "config.json"
    return _read_json(unet if unet.is_file() else folder / "transformer" / "config.json")


def _folder_defaults(folder: Path) -> dict[str, Any]:
    file = folder / DEFAULTS_FILE
    if not file.is_file():
        return {}
    return RequestDefaults.model_validate(_read_json(file)).model_dump(exclude_none=True)


def _own_scheduler(folder: Path) -> SchedulerMixin:
    class_name = _read_json(folder / "scheduler" / "scheduler_config.json")["_class_name"]
    return getattr(diffusers, class_name).from_pretrained(folder, subfolder="scheduler")


def _loaded_files(folder: Path) -> Iterator[Path]:
    """model_index.json and the component folders it names."""
    yield folder / "model_index.json"
    for component in _components(folder):
        yield from sorted(file for file in component.rglob("*") if file.is_file())


def _components(folder: Path) -> list[Path]:
    index = _read_json(folder / "model_index.json")
    return [folder / name for name in sorted(index) if (folder / name).is_dir()]


def _file_digest(file: Path) -> str:
    """sha256 of the content, remembered on disk while the file keeps its size and time."""
    real = file.resolve()
    stat = real.stat()
    identity = f"{real} {stat.st_size} {stat.st_mtime_ns}"
    with contextlib.suppress(OSError, ValueError):
        return (_digest_cache(identity) / "sha256").read_text()
    with real.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    # A home that cannot be written costs time, nothing else.
    with contextlib.suppress(OSError, ValueError):
        cache = _digest_cache(identity)
        partial = cache / f"sha256.{os.getpid()}"
        partial.write_text(digest)
        partial.replace(cache / "sha256")
    return digest


def _digest_cache(identity: str) -> Path:
    """A folder for this file's digest; raises OSError, or ValueError from the hub's library."""
    return cached_assets_path(
        library_name="stable-diffusion-on-ray",
        namespace="fingerprints",
        subfolder=hashlib.sha256(identity.encode()).hexdigest(),
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"cannot read {file}: {error}") from error
    return content
