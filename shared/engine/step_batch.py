"""Gather and scatter: several parked calls become one forward's rows, and its output theirs again.

A row's result must not depend on who else is in the forward. Found by comparing every layer's
output bit by bit (float32, x86 CPU, `benchmarks/row_invariance.py`): convolutions and attention
give a row the same bits from 2 rows up, whatever the row count; Linear layers whose input has one
line per row (time and pooled text embeddings) do not, since the matrix product is cut differently
for each row count. So those layers run on a fixed number of lines, which costs next to nothing,
and a forward of one row runs as two.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.nn import functional as F

from shared.engine.calls import ModuleCall, forward_replaced, parking

_LINEAR_LINES = 8
_PLAIN = (type(None), bool, int, float, str)


@dataclass(frozen=True)
class _Arguments:
    """How the forward of a module class takes its rows.

    `sample` is the tensor (rows, channels, height, width) that is denoised. `per_row_scalars` may
    come as one value for all rows. Any other tensor has a line per row.
    """

    sample: str
    per_row_scalars: frozenset[str]


_DECLARED = {
    "UNet2DConditionModel": _Arguments("sample", frozenset({"timestep"})),
}


class CallKey(NamedTuple):
    """Calls with equal keys can share a forward."""

    module_id: int
    signature: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class StepCall:
    """A parked call as rows. `latents` counts its latent positions over all rows.

    `rows` is 0 where the module is not declared: such a call runs as it is.
    """

    call: ModuleCall
    key: CallKey
    rows: int
    latents: int
    kwargs: dict[str, Any]


def is_declared(module: nn.Module) -> bool:
    """Whether calls of `module` can share a forward; others take turns, each in one of its own."""
    return type(module).__name__ in _DECLARED


@contextmanager
def batching(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within it, calls of `modules` park, and their rows do not depend on their company."""
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(parking(module))
            for layer in module.modules() if is_declared(module) else ():
                if isinstance(layer, nn.Linear):
                    stack.enter_context(_fixed_lines(layer))
        yield


def describe(call: ModuleCall) -> StepCall:
    """What the call shares a forward by, and how large it is."""
    declared = _DECLARED.get(type(call.module).__name__)
    if declared is None:
        return StepCall(call, _unshared_key(call.module), rows=0, latents=0, kwargs=call.kwargs)
    sample: Tensor = call.kwargs[declared.sample]
    rows = sample.shape[0]
    kwargs: dict[str, Any] = {}
    signature: list[Any] = []
    for name, value in call.kwargs.items():
        if name in declared.per_row_scalars:
            value = _per_row(value, rows, sample.device)
        kwargs[name] = value
        leaves, spec = pytree.tree_flatten(value)
        signature.append((name, str(spec), *(_leaf_key(leaf, rows) for leaf in leaves)))
    return StepCall(
        call=call,
        key=CallKey(id(call.module), tuple(signature)),
        rows=rows,
        latents=rows * sample.shape[2:].numel(),
        kwargs=kwargs,
    )


def forward(calls: Sequence[StepCall]) -> list[Any]:
    """One forward for calls of equal key; gives each call its own rows of the output."""
    kwargs = calls[0].kwargs if len(calls) == 1 else _gather([call.kwargs for call in calls])
    rows = [call.rows for call in calls]
    if sum(rows) == 0:
        return [calls[0].call.forward(**kwargs)]
    if sum(rows) == 1:
        return [_resize(calls[0].call.forward(**_resize(kwargs, 1, 2)), 2, 1)]
    return _scatter(calls[0].call.forward(**kwargs), rows)


def _gather(all_kwargs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def join(*leaves: Any) -> Any:
        return torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0]

    gathered: dict[str, Any] = pytree.tree_map(join, *all_kwargs)
    return gathered


def _scatter(output: Any, rows: list[int]) -> list[Any]:
    leaves, spec = pytree.tree_flatten(output)
    parts = [leaf.split(rows) for leaf in leaves]
    return [pytree.tree_unflatten([part[i] for part in parts], spec) for i in range(len(rows))]


def _resize(tree: Any, rows: int, new_rows: int) -> Any:
    """Repeat or drop lines of every tensor that has one line per row."""

    def resize(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.ndim == 0 or len(leaf) != rows:
            return leaf
        return leaf[:new_rows] if new_rows < rows else leaf.repeat_interleave(new_rows, dim=0)

    return pytree.tree_map(resize, tree)


def _unshared_key(module: nn.Module) -> CallKey:
    return CallKey(id(module), (object(),))


def _per_row(value: Any, rows: int, device: torch.device) -> Tensor:
    # Noise schedulers count time in int64, float32 or float64; the modules themselves embed it in
    # float32, so that one type here changes nothing and lets them meet.
    return torch.as_tensor(value, dtype=torch.float32, device=device).reshape(-1).expand(rows)


def _leaf_key(leaf: Any, rows: int) -> Any:
    if isinstance(leaf, _PLAIN):
        return leaf
    if isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == rows:
        return (tuple(leaf.shape[1:]), leaf.dtype)
    return object()  # equal to nothing, so that the call shares with nobody


@contextmanager
def _fixed_lines(layer: nn.Linear) -> Iterator[None]:
    own: Callable[[Tensor], Tensor] = layer.forward

    def forward_fixed(lines: Tensor) -> Tensor:
        if lines.ndim != 2:
            return own(lines)
        padded = F.pad(lines, (0, 0, 0, -len(lines) % _LINEAR_LINES))
        return torch.cat([own(part) for part in padded.chunk(len(padded) // _LINEAR_LINES)])[
            : len(lines)
        ]

    with forward_replaced(layer, forward_fixed):
        yield
