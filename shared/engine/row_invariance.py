"""Makes a row's bits independent of its company: the remedy, and the search for the row rule.

Matrix products are cut differently for different sizes, and with them the order of additions. Three
things were found that keep a row's bits, whoever else is in the forward (docs/decisions.md):

- Linear layers whose input has one line per row (embeddings of time and pooled text) run on a
  fixed number of lines. They are so small that this costs next to nothing.
- On a CPU, activations are cut among threads only where a vector of elements ends.
- The forward as a whole carries only certain numbers of rows: a `RowRule`, which differs from
  device to device and from dtype to dtype. `find_rule` searches it, `default_rule` assumes one.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.utils._pytree as pytree
from diffusers.models.activations import GEGLU, GELU
from torch import Tensor, nn
from torch.jit._trace import is_tracing
from torch.nn import functional as F

from shared.engine import step_batch
from shared.engine.calls import replaced
from shared.engine.compiled import Compilable
from shared.engine.row_rule import RowRule
from shared.engine.step_batch import StepCall

# torch's elementwise loops: a thread has at least so many elements (at::internal::GRAIN_SIZE), and
# takes two vectors at once, of 64 bytes each in the widest processors.
_GRAIN = 32768
_VECTORS_BYTES = 128

_LINEAR_LINES = 32
_MOST_LINES = 64  # beyond, the lines are tokens and not rows

# Row counts that are tried: all that small forwards have, and larger ones to fill up with.
COUNTS = (*range(1, 17), *range(18, 33, 2))


def default_rule(call: StepCall) -> RowRule:
    """On a CPU what was measured on three; elsewhere a guess, to be searched.

    In bfloat16 any number will do. In float32 one row is another algorithm, and with a single
    thread, oneDNN has another one for convolutions of 16 rows and more. Rows to decode go alone:
    the GroupNorm of a module in channels_last cuts large rows where threads meet.
    """
    module = call.call.module
    if next(module.parameters()).device.type != "cpu":
        return RowRule((4, 8, 16, 32))
    if call.kind == "decode":
        return RowRule((1,))
    if _multiplies_by_row(module):
        return RowRule()
    return RowRule(tuple(range(2, 16 if torch.get_num_threads() == 1 else 33)))


@torch.no_grad()
def find_rule(call: StepCall, counts: Iterable[int] = COUNTS) -> RowRule:
    """The best rule for forwards like `call`, by running its first row among copies of itself.

    Row counts that give a row the same bits in every place form a group; of all groups the one
    that can make up any number of rows with the least work is the rule. It depends on bits
    alone, and not on timing: two engines on equal machines find the same.
    """
    groups: dict[bytes, list[int]] = {}
    for count in counts:
        lines = _lines_of(call, count)
        if all(line == lines[0] for line in lines):
            groups.setdefault(lines[0], []).append(count)
    rules = [RowRule(tuple(sorted(group))) for group in groups.values()]
    return min(rules, key=_work)


def _work(rule: RowRule) -> int:
    """Rows that it takes to run 2, 4, ... 32 rows; starting a forward counts as one more."""
    return sum(size + 1 for rows in range(2, 33, 2) for size in rule.chunks(rows))


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


def _multiplies_by_row(module: nn.Module) -> bool:
    """Whether its matrix products are, as they are: in bfloat16 on a CPU (docs/decisions.md)."""
    weight = next(module.parameters(), None)
    return weight is not None and weight.device.type == "cpu" and weight.dtype == torch.bfloat16


@contextmanager
def rows_kept_apart(module: nn.Module) -> Iterator[None]:
    """Within it, the module's layers give a row the same bits, as far as they can by themselves."""
    by_row = _multiplies_by_row(module)
    with ExitStack() as stack:
        for layer in module.modules():
            if isinstance(layer, nn.Linear) and not by_row:
                stack.enter_context(replaced(layer, "forward", _in_pieces(layer.forward)))
            elif isinstance(layer, nn.SiLU | nn.GELU):
                stack.enter_context(replaced(layer, "forward", _evenly(layer.forward)))
            elif isinstance(layer, GEGLU | GELU):
                stack.enter_context(replaced(layer, "gelu", _evenly(layer.gelu)))
        yield


def _in_pieces(own: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A Linear layer that takes few lines in pieces of a fixed number."""

    def forward(lines: Tensor) -> Tensor:
        if lines.ndim != 2 or len(lines) > _MOST_LINES or _is_traced():
            return own(lines)
        padded = F.pad(lines, (0, 0, 0, -len(lines) % _LINEAR_LINES))
        pieces = padded.chunk(len(padded) // _LINEAR_LINES)
        if len(pieces) == 1:
            return own(padded)[: len(lines)]
        return torch.cat([own(piece) for piece in pieces])[: len(lines)]

    return forward


def _evenly(own: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """An activation whose elements are all computed by vectors.

    What does not fill a vector at the end of a thread's share is computed one by one, by another
    approximation of the exponential function; where that is depends on the number of rows. In
    bfloat16 most of that is rounded away, but not all: GELU differs for three of all its values
    (with AVX2).
    """

    def activate(elements: Tensor) -> Tensor:
        if elements.device.type != "cpu" or torch.compiler.is_compiling() or _is_traced():
            return own(elements)
        elements = elements.contiguous()  # torch's choice of kernel depends on it
        unit = _VECTORS_BYTES // elements.element_size()
        sizes = _even_pieces(elements.numel(), unit, torch.get_num_threads())
        if len(sizes) == 1:
            return own(elements)
        pieces = torch.split(elements.reshape(-1), sizes)
        return torch.cat([own(piece) for piece in pieces]).reshape(elements.shape)

    return activate


def _is_traced() -> bool:
    """For another compiler, which would take numbers of rows for fixed."""
    return bool(is_tracing())  # type: ignore[no-untyped-call]


@functools.lru_cache(maxsize=4096)
def _even_pieces(numel: int, unit: int, threads: int) -> list[int]:
    """Sizes that torch cuts into shares of whole units; the last is less than a unit a thread."""
    sizes = []
    while numel:
        sizes.append(_even_size(numel, unit, threads))
        numel -= sizes[-1]
    return sizes


def _even_size(numel: int, unit: int, threads: int) -> int:
    while True:
        shares = max(1, min(threads, -(-numel // _GRAIN)))
        rest = numel % (shares * unit)
        if shares == 1 or not rest:
            return numel
        numel -= rest
