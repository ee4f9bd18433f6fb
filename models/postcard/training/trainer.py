"""The loop that trains a module: optimizers, averaged weights, checkpoints to go on from."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .machine import made_ahead, num_helpers
from .news import News

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Schedule:
    """`steps` of which the first `warm_up` rise to the full rates, and the last share fall to 0."""

    steps: int
    muon_lr: float
    adamw_lr: float
    average: float = 0.999  # how much of the averaged weights a step keeps
    warm_up: int = 100
    cool_down: float = 0.3
    save_every: int = 500

    def rate(self, step: int) -> float:
        """Of the full learning rates, at this step."""
        rising = (step + 1) / self.warm_up
        falling = (self.steps - step) / (self.cool_down * self.steps)
        return min(1.0, rising, falling)


class Optimizer:
    """Muon for the hidden matrices, AdamW for all else.

    torch's Muon takes matrices alone, so convolutions are shown to it as views of two dimensions.
    """

    def __init__(self, module: nn.Module, schedule: Schedule, outer: tuple[str, ...]) -> None:
        """`outer` are parts of names: layers at the ends, which are AdamW's."""
        self._hidden: list[tuple[nn.Parameter, nn.Parameter]] = []
        others = []
        for name, parameter in module.named_parameters():
            if parameter.ndim < 2 or any(part in name for part in outer):
                others.append(parameter)
            else:
                self._hidden.append((parameter, nn.Parameter(_matrix(parameter.data))))
        self._parts = [
            torch.optim.Muon(
                [matrix for _, matrix in self._hidden],
                lr=schedule.muon_lr,
                weight_decay=0.01,
                ns_steps=4,
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.AdamW(others, lr=schedule.adamw_lr, betas=(0.9, 0.99), weight_decay=0.0),
        ]
        self._rates = (schedule.muon_lr, schedule.adamw_lr)

    def step(self, rate: float) -> None:
        for parameter, matrix in self._hidden:
            assert parameter.grad is not None
            matrix.grad = _matrix(parameter.grad)
        for part, full in zip(self._parts, self._rates, strict=True):
            part.param_groups[0]["lr"] = full * rate
            part.step()

    def state_dict(self) -> list[dict[str, object]]:
        return [part.state_dict() for part in self._parts]

    def load_state_dict(self, states: list[dict[str, object]]) -> None:
        for part, state in zip(self._parts, states, strict=True):
            part.load_state_dict(state)


def _matrix(weight: Tensor) -> Tensor:
    """Rows of output channels: a view, where the weight is a matrix or in channels_last."""
    return weight.permute(0, 2, 3, 1).flatten(1) if weight.ndim == 4 else weight


def train(
    name: str,
    folder: Path,
    module: nn.Module,
    schedule: Schedule,
    batch_at: Callable[[int], Batch],
    loss_of: Callable[[Batch], Tensor],
    outer: tuple[str, ...],
    show: Callable[[nn.Module, int], None] | None = None,
    device: str = "cpu",
) -> nn.Module:
    """Train the module with the loss of each step's batch, and give its averaged weights.

    Goes on where `folder` says that it stopped; each step draws from its own seed, so it makes no
    difference whether it stopped. `show` is given the averaged module whenever it is saved.
    With a GPU, batches are made ahead by other processes.
    """
    module.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    average = AveragedModel(module, multi_avg_fn=partial(_average, schedule.average))
    optimizer = Optimizer(module, schedule, outer)
    file = folder / f"{name}.pt"
    begin = _load(file, module, average, optimizer)
    news = News(name, "steps", schedule.steps, begin)
    steps = range(begin, schedule.steps)
    batches = made_ahead(batch_at, steps, num_helpers(device))
    for step, batch in zip(steps, batches, strict=True):
        torch.manual_seed(step)
        module.zero_grad(set_to_none=True)
        loss = loss_of(batch)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step(schedule.rate(step))
        average.update_parameters(module)
        news.tell(step + 1, loss.detach())
        if (step + 1) % schedule.save_every == 0 or step + 1 == schedule.steps:
            _save(file, module, average, optimizer, step + 1)
            if show:
                show(average.module, step + 1)
    return average.module.eval().requires_grad_(False)


@torch.no_grad()
def _average(
    keep: float, averaged: list[Tensor], weights: list[Tensor], num_averaged: Tensor
) -> None:
    """Keep less in the beginning, when what there is to keep is worth little."""
    number = int(num_averaged)
    share = min(keep, (1 + number) / (20 + number))
    torch._foreach_lerp_(averaged, weights, 1 - share)


def _save(
    file: Path, module: nn.Module, average: AveragedModel, optimizer: Optimizer, step: int
) -> None:
    state = {
        "step": step,
        "module": module.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    whole = file.with_suffix(".new")
    torch.save(state, whole)
    os.replace(whole, file)


def _load(file: Path, module: nn.Module, average: AveragedModel, optimizer: Optimizer) -> int:
    """The steps that are done."""
    if not file.exists():
        return 0
    state = torch.load(file, weights_only=True, map_location="cpu")
    module.load_state_dict(state["module"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    step: int = state["step"]
    return step
