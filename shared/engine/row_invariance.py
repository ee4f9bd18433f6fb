"""The search for the row rule: with which numbers of rows a row's bits do not depend on company.

The layers do what they can by themselves (`layers`). What is left differs from device to device and
from dtype to dtype: a forward as a whole carries only certain numbers of rows, a `RowRule`.
`find_rule` searches it, `default_rule` assumes one.
"""

import functools
from collections.abc import Iterable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from shared.engine import step_batch
from shared.engine.compiled import Compilable
from shared.engine.layers import device_type, multiplies_by_row
from shared.engine.row_rule import RowRule
from shared.engine.step_batch import StepCall

# Row counts that are tried: all that small forwards have, and larger ones to fill up with.
COUNTS = (*range(1, 17), *range(18, 33, 2))
# Of the bundled model: below it, 2 and 3 rows are too few pixels where its pictures are smallest.
_FEW_LATENTS = 128
# Rows that a GPU is through with in the time that it needs for however few: some 2 of 512 px in
# Stable Diffusion 1.5's shape, 14 of 256 px (docs/decisions.md).
_GPU_START = 8


def default_rule(call: StepCall) -> RowRule:
    """On a CPU, what was measured on three.

    In bfloat16 any number will do. In float32 one row is another algorithm, and with a single
    thread, oneDNN has another one for convolutions of 16 rows and more, and for those of few rows
    of few pixels. Rows to decode go alone: the GroupNorm of a module in channels_last cuts large
    rows where threads meet.
    """
    module = call.call.module
    if call.kind == "decode":
        return RowRule((1,))
    if multiplies_by_row(module):
        return RowRule()
    if torch.get_num_threads() > 1:
        return RowRule(tuple(range(2, 33)))
    return RowRule(tuple(range(4 if call.latents_per_row < _FEW_LATENTS else 2, 16)))


@torch.no_grad()
def find_rule(call: StepCall, counts: Iterable[int] = COUNTS) -> RowRule:
    """The best rule for forwards like `call`, by running its first row among copies of itself.

    Row counts that give a row the same bits in every place form a group; of all groups the one
    that can make up any number of rows with the least work is the rule. It depends on bits
    alone, and not on timing: two engines on equal machines find the same. Numbers of rows that do
    not fit into memory are left out; raises what even the first does.
    """
    groups: dict[bytes, list[int]] = {}
    for count in counts:
        try:
            lines = _lines_of(call, count)
        except torch.OutOfMemoryError:
            if not groups:
                raise
            break
        if all(line == lines[0] for line in lines):
            groups.setdefault(lines[0], []).append(count)
    rules = [RowRule(tuple(sorted(group))) for group in groups.values()]
    start = 1 if device_type(call.call.module) == "cpu" else _GPU_START
    return min(rules, key=functools.partial(_work, start=start))


def _work(rule: RowRule, start: int) -> int:
    """Rows that it takes to run 2, 4, ... 32 rows; starting a forward counts as `start` more."""
    return sum(size + start for rows in range(2, 33, 2) for size in rule.chunks(rows))


def _lines_of(call: StepCall, count: int) -> list[bytes]:
    """What the first row of `call` comes to in each place of a forward of `count` of it.

    Of each way that its module has, since others may go another one than `call`.
    """
    method = call.call.method
    ways = method.ways if isinstance(method, Compilable) else [method]
    kwargs = step_batch.copies(call, count)
    return [
        b"".join(lines)
        for lines in zip(*(_lines(call, way(**kwargs)) for way in ways), strict=True)
    ]


def _lines(call: StepCall, output: Any) -> list[bytes]:
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    if call.returns_list:
        return [_bits(leaf) for leaf in leaves]
    return [b"".join(map(_bits, line)) for line in zip(*leaves, strict=True)]


def _bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).cpu().numpy().tobytes()
