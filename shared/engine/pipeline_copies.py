"""Each request calls a copy of its pipeline that shares the weights and nothing else."""

import copy
import functools
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from diffusers import DiffusionPipeline, SchedulerMixin
from torch import Tensor

from shared.engine.tickets import Step


class PipelineCopies:
    """Makes the copies. Pipelines stay on their device, and their tokenizers learn no words."""

    def __init__(self) -> None:
        self._classes = WeakKeyDictionary[DiffusionPipeline, type[DiffusionPipeline]]()
        self._tokenizers: dict[Any, Any] = {}  # by the pipelines' own

    def copy(
        self,
        pipeline: DiffusionPipeline,
        scheduler: SchedulerMixin | None,
        on_step: Callable[[Step], None] | None,
    ) -> DiffusionPipeline:
        """`pipeline` for one call, with a noise scheduler of its own that tells `on_step`."""
        own = copy.copy(pipeline)
        if pipeline not in self._classes:
            self._classes[pipeline] = _with_settled_device(pipeline)
        own.__class__ = self._classes[pipeline]
        # Noise schedulers keep their place in the trajectory.
        own.scheduler = copy.deepcopy(scheduler or pipeline.scheduler)
        for name, tokenizer in tokenizers_of(pipeline).items():
            setattr(own, name, self._own_tokenizer(tokenizer))
        own.set_progress_bar_config(disable=True)
        if on_step is not None:
            _follow_steps(own, on_step)
        return own

    def _own_tokenizer(self, tokenizer: Any) -> Any:
        """One for all requests, since the engine's thread is one; other threads have theirs."""
        if tokenizer not in self._tokenizers:
            self._tokenizers[tokenizer] = copy.deepcopy(tokenizer)
        return self._tokenizers[tokenizer]


def tokenizers_of(pipeline: DiffusionPipeline) -> dict[str, Any]:
    """The pipeline's, by the names of its components.

    Before it encodes, a tokenizer notes in itself how far to pad and where to cut: two threads must
    not call one.
    """
    names = [name for name in pipeline.config if name.startswith("tokenizer")]
    found = {name: getattr(pipeline, name) for name in names}
    return {name: each for name, each in found.items() if each is not None}


def _with_settled_device(pipeline: DiffusionPipeline) -> type[DiffusionPipeline]:
    """The pipeline's class, with the device that it computes on as a constant.

    diffusers looks through all modules each time it is asked, which is half of what a request costs
    beside its forwards (docs/decisions.md).
    """
    own = type(pipeline)
    return type(own.__name__, (own,), {"_execution_device": pipeline._execution_device})


def _follow_steps(pipeline: DiffusionPipeline, on_step: Callable[[Step], None]) -> None:
    """Call `on_step` after each of the noise scheduler's steps: every pipeline has those."""
    noise_scheduler = pipeline.scheduler
    own = noise_scheduler.step
    index = 0

    @functools.wraps(own)  # pipelines look at its signature
    def step(*args: Any, **kwargs: Any) -> Any:
        nonlocal index
        output = own(*args, **kwargs)
        index += 1
        num_steps = getattr(pipeline, "_num_timesteps", len(noise_scheduler.timesteps))
        on_step(Step(index, num_steps, output[0], _denoised(noise_scheduler, output)))
        return output

    noise_scheduler.step = step


def _denoised(noise_scheduler: SchedulerMixin, output: Any) -> Tensor:
    """The estimate of the finished latents: given with the step, or kept by multistep solvers."""
    if len(output) > 1 and isinstance(output[1], Tensor):
        return output[1]
    config = noise_scheduler.config
    keeps_estimates = config.get("predict_x0") or str(config.get("algorithm_type")).endswith("++")
    estimates = getattr(noise_scheduler, "model_outputs", None) if keeps_estimates else None
    denoised: Tensor = estimates[-1] if estimates else output[0]
    return denoised
