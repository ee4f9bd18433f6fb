"""Makes a row's bits independent of its company: the remedy, and the search for the row rule.

Matrix products are cut differently for different sizes, and with them the order of additions. Two
things were found that keep a row's bits, whoever else is in the forward (docs/decisions.md):

- Linear layers whose input has one line per row (embeddings of time and pooled text) run on a
  fixed number of lines. They are so small that this costs next to nothing.
- The forward as a whole carries only certain numbers of rows: a `RowRule`, which differs from
  device to device and from dtype to dtype. `find_rule` searches it, `default_rule` assumes one.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.nn import functional as F

from shared.engine import step_batch
from shared.engine.calls import replaced
from shared.engine.row_rule import RowRule
from shared.engine.step_batch import StepCall

_LINEAR_LINES = 32
_MOST_LINES = 64  # beyond, the lines are tokens and not rows

# Row counts that are tried: all that small forwards have, and larger ones to fill up with.
COUNTS = (*range(1, 17), *range(18, 33, 2))


def default_rule(device: torch.device) -> RowRule:
    """On a CPU any number of rows but one (measured on two); elsewhere a guess, to be searched."""
    return RowRule(tuple(range(2, 33)) if device.type == "cpu" else (4, 8, 16, 32))


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
    """What the first row of `call` comes to in each place of a forward of `count` of it."""
    output = step_batch.forward_copies(call, count)
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    if call.returns_list:
        return [_bits(leaf) for leaf in leaves]
    return [b"".join(_bits(leaf[i]) for leaf in leaves) for i in range(count)]


def _bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).cpu().numpy().tobytes()


@contextmanager
def fixed_lines(module: nn.Module) -> Iterator[None]:
    """Within it, the module's Linear layers take few lines in pieces of a fixed number."""
    with ExitStack() as stack:
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                stack.enter_context(replaced(layer, "forward", _in_pieces(layer)))
        yield


def _in_pieces(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    own: Callable[[Tensor], Tensor] = layer.forward

    def forward(lines: Tensor) -> Tensor:
        if lines.ndim != 2 or len(lines) > _MOST_LINES:
            return own(lines)
        padded = F.pad(lines, (0, 0, 0, -len(lines) % _LINEAR_LINES))
        pieces = padded.chunk(len(padded) // _LINEAR_LINES)
        if len(pieces) == 1:
            return own(padded)[: len(lines)]
        return torch.cat([own(piece) for piece in pieces])[: len(lines)]

    return forward
