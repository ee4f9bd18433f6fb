"""Which of a pipeline's calls are the engine's: denoiser and decoder park, encoders are cached."""

import functools
import logging
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.pag.pag_utils import PAGMixin
from torch import Tensor, nn

from shared.config import EngineConfig
from shared.engine.calls import PipelineRun, current_run, parking, replaced
from shared.engine.compiled import compilable, recorded_decode
from shared.engine.declarations import arguments_of
from shared.engine.layers import multiplies_by_row, rows_kept_apart
from shared.engine.prompt_cache import PromptCache, caching

logger = logging.getLogger(__name__)

_DENOISERS = ("unet", "transformer", "controlnet")


def check_leaves_modules(pipeline: DiffusionPipeline) -> None:
    """ValueError where perturbed-attention guidance changes the denoiser during a call.

    Others are in the midst of theirs.
    """
    if isinstance(pipeline, PAGMixin):
        name = type(pipeline).__name__
        raise ValueError(f"pipeline: {name} changes its denoiser while it runs, which is shared")


def check_same_modules(pipeline: DiffusionPipeline, taken: DiffusionPipeline) -> None:
    """ValueError if the denoiser of `pipeline` is not one of those that were `taken` over."""
    check_leaves_modules(pipeline)
    for name in _DENOISERS:
        module = getattr(pipeline, name, None)
        if name == "controlnet" and module is None:
            continue  # it can do without
        if module is not getattr(taken, name, None):
            raise ValueError(f"pipeline: its {name} is not the one that this engine runs")


def take_over(
    pipeline: DiffusionPipeline,
    prompts: PromptCache,
    prepare_encoder: Callable[[PipelineRun], Hashable],
    is_adapted: Callable[[], bool],
    config: EngineConfig,
) -> ExitStack:
    """Until it is closed, calls from runs park, or are answered from `prompts`.

    `prepare_encoder` is that of `prompt_cache.caching`, `is_adapted` tells whether an adapter is
    active.
    """
    with ExitStack() as stack:
        for module in _denoisers(pipeline):
            is_declared = arguments_of(module) is not None
            if not is_declared:
                logger.warning("%s is not declared and runs unbatched", type(module).__name__)
            elif config.byte_identical or multiplies_by_row(module):  # faster, too
                stack.enter_context(rows_kept_apart(module))
            # Nobody has read whether the Python of others looks at values.
            record_forwards = config.record_forwards and is_declared
            stack.enter_context(compilable(module, is_adapted, record_forwards=record_forwards))
            stack.enter_context(parking(module))
        vae = getattr(pipeline, "vae", None)
        if vae is not None:
            if not _changes_dtype_to_decode(vae):
                stack.enter_context(recorded_decode(vae, record_forwards=config.record_forwards))
                stack.enter_context(parking(vae, "decode"))
            stack.enter_context(_failing_alone(vae))
        for name, encoder in pipeline.components.items():
            if name.startswith("text_encoder") and isinstance(encoder, nn.Module):
                stack.enter_context(caching(encoder, prompts, prepare_encoder))
        return stack.pop_all()


def _denoisers(pipeline: DiffusionPipeline) -> list[nn.Module]:
    """The modules whose forwards park: of a container, as of several ControlNets, its parts."""
    denoisers = []
    for name in _DENOISERS:
        module = getattr(pipeline, name, None)
        if module is None:
            continue
        declared = [part for part in module.modules() if arguments_of(part) is not None]
        denoisers += declared if declared else [module]
    return denoisers


def _changes_dtype_to_decode(vae: nn.Module) -> bool:
    # Such a pipeline casts the whole autoencoder up before it decodes, and back after: nobody
    # else may come in between.
    return bool(getattr(vae.config, "force_upcast", False)) and vae.dtype == torch.float16


@contextmanager
def _failing_alone(vae: Any) -> Iterator[None]:
    """Within it, a call that fails leaves the autoencoder to the next one as it was.

    What is not finite is not decoded: refused here, once per picture, since looking waits for the
    device.
    """
    decode, encode, dtype = vae.decode, getattr(vae, "encode", None), vae.dtype

    @functools.wraps(decode)
    def decode_finite(*args: Any, **kwargs: Any) -> Any:
        if current_run() is not None:
            _check_finite(next(iter([*args, *kwargs.values()])))
        return decode(*args, **kwargs)

    def restoring(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def restore(*args: Any, **kwargs: Any) -> Any:
            try:
                return method(*args, **kwargs)
            except BaseException:
                if current_run() is not None:
                    vae.to(dtype)  # a pipeline that has cast it up for this will not cast it back
                raise

        return restore

    with ExitStack() as stack:
        stack.enter_context(replaced(vae, "decode", restoring(decode_finite)))
        if encode is not None:
            stack.enter_context(replaced(vae, "encode", restoring(encode)))
        yield


def _check_finite(latents: Tensor) -> None:
    if not torch.isfinite(latents).all():
        raise FloatingPointError("the latents are not finite: nothing can be decoded from them")
