"""Gather and scatter: several parked calls become one forward's rows, and its output theirs again.

Which arguments have rows is declared per module class (`declarations`); how many rows a forward may
carry for a row's bits not to depend on its company is the `RowRule`'s to say.
"""

import itertools
import weakref
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from shared.engine.calls import ModuleCall
from shared.engine.declarations import Arguments, arguments_of
from shared.engine.flat_forward import PLAIN
from shared.engine.row_rule import RowRule

# One line of rows: a tensor's, or an entry of a list.
Column = Tensor | list[Any]


class CallKey(NamedTuple):
    """Calls with equal keys can share a forward."""

    module_id: int
    signature: Any


class _Place(NamedTuple):
    """Where a column stands in an argument: it is the value, or leaf `leaf` of a structure."""

    name: str
    leaf: int | None = None
    is_scalar: bool = False
    is_new: bool = False  # at every step


@dataclass(frozen=True, eq=False)
class StepCall:
    """A parked call as rows, each of `latents_per_row` latent positions.

    `rows` is 0 where the module is not declared: such a call runs as it is.
    """

    call: ModuleCall
    key: CallKey
    rows: int = 0
    latents_per_row: int = 0
    returns_list: bool = False
    columns: list[Column] = field(default_factory=list)
    places: list[_Place] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return "decode" if self.call.method.__name__ == "decode" else "denoise"

    @property
    def latents(self) -> int:
        return self.rows * self.latents_per_row


def describe(call: ModuleCall) -> StepCall:
    """What the call shares a forward by, and how large it is. Errors are the call's own fault."""
    declared = arguments_of(call.module, call.method.__name__)
    if declared is None:
        return StepCall(call, CallKey(id(call.module), object()))
    if declared.unused:
        used = {name: value for name, value in call.kwargs.items() if name not in declared.unused}
        call = replace(call, kwargs=used)
    sample = call.kwargs[declared.sample]
    rows = sample.shape[0] if isinstance(sample, Tensor) else len(sample)
    columns: list[Column] = []
    places: list[_Place] = []
    signature: list[Any] = []
    for name, value in call.kwargs.items():
        signature.append(name)
        if isinstance(value, PLAIN) and name not in declared.scalars:
            signature.append(value)
        elif name in declared.shared:
            signature.append(_content(value))
        elif name in declared.lists or name in declared.ragged:
            columns.append(_checked(name, value, rows))
            places.append(_Place(name))
            signature.append(_entries_key(value, declared.ragged.get(name)))
        elif name in declared.scalars:
            columns.append(_per_row(value, rows, sample))
            places.append(_Place(name, is_scalar=True))
        elif isinstance(value, Tensor):
            signature.append(_line_key(value, rows))
            columns.append(value)
            places.append(_Place(name, is_new=value is sample))
        else:
            leaves, spec = pytree.tree_flatten(value)
            signature.append(spec)
            for i, leaf in enumerate(leaves):
                signature.append(_line_key(leaf, rows))
                if isinstance(leaf, Tensor):
                    columns.append(leaf)
                    places.append(_Place(name, i))
    return StepCall(
        call=call,
        key=CallKey(id(call.module), tuple(signature)),
        rows=rows,
        latents_per_row=_latents_per_row(sample, declared),
        returns_list=declared.returns_list,
        columns=columns,
        places=places,
    )


def forward(calls: Sequence[StepCall], rule: RowRule, max_rows: int | None = None) -> list[Any]:
    """Run calls of equal key together; gives each call its own rows of the output.

    One forward, or several where `rule` or `max_rows` asks for it.
    """
    first = calls[0]
    if first.rows == 0:
        return [first.call.method(**first.call.kwargs)]
    columns = _gather(calls)
    rows = sum(call.rows for call in calls)
    chunks = rule.chunks(rows, max_rows)
    if chunks == (rows,):  # by far the most frequent: nothing to cut
        return _scatter(first, first.call.method(**_with_columns(first, columns)), calls)
    outputs = []
    start = 0
    for size in chunks:
        end = min(start + size, rows)
        part = [_padded(column[start:end], size - (end - start)) for column in columns]
        output = first.call.method(**_with_columns(first, part))
        outputs.append(_take(first, output, 0, end - start))
        start = end
    return _scatter(first, _join_outputs(first, outputs), calls)


def copies(call: StepCall, count: int) -> dict[str, Any]:
    """The arguments of a forward of `count` copies of the call's first row."""
    columns = [_padded(column[:1], count - 1) for column in _gather([call])]
    return _with_columns(call, columns)


def _with_columns(call: StepCall, columns: Sequence[Column]) -> dict[str, Any]:
    """The call's arguments with other rows in the place of its own."""
    kwargs = dict(call.call.kwargs)
    leaves_of: dict[str, list[Any]] = {}
    for place, column in zip(call.places, columns, strict=True):
        if place.leaf is None:
            kwargs[place.name] = column
        else:
            leaves = leaves_of.setdefault(place.name, pytree.tree_leaves(kwargs[place.name]))
            leaves[place.leaf] = column
    for name, leaves in leaves_of.items():
        kwargs[name] = pytree.tree_unflatten(leaves, pytree.tree_structure(kwargs[name]))
    return kwargs


def _gather(calls: Sequence[StepCall]) -> list[Column]:
    columns: list[Column] = []
    for i, place in enumerate(calls[0].places):
        parts = [call.columns[i] for call in calls]
        if place.is_scalar:
            # Noise schedulers count time in int64, float32 or float64; the modules themselves embed
            # it in float32, so that one type here changes nothing and lets them meet.
            columns.append(torch.cat(parts).float())  # type: ignore[arg-type]
        else:
            columns.append(_join(parts) if place.is_new else _join_once(parts))
    return columns


@dataclass(frozen=True)
class _Kept:
    """A joined column, and of which tensors in which state it was made."""

    parts: list[weakref.ref[Tensor]]
    versions: list[int]
    joined: Tensor

    def is_of(self, parts: Sequence[Any]) -> bool:
        return (
            len(parts) == len(self.parts)
            and all(ref() is part for ref, part in zip(self.parts, parts, strict=True))
            and self.versions == [part._version for part in parts]
        )


# By the first of the tensors, and gone with it.
_kept: MutableMapping[Tensor, _Kept] = WeakTensorKeyDictionary()


def _join_once(parts: Sequence[Any]) -> Column:
    """As `_join`, kept for the next step: embeddings stay the same, and often their company."""
    if len(parts) == 1 or not isinstance(parts[0], Tensor):
        return _join(parts)
    kept = _kept.get(parts[0])
    if kept is None or not kept.is_of(parts):
        kept = _Kept(
            [weakref.ref(part) for part in parts],
            [part._version for part in parts],
            torch.cat(parts),  # type: ignore[arg-type]
        )
        _kept[parts[0]] = kept
    return kept.joined


def _join(parts: Sequence[Column]) -> Column:
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)  # type: ignore[arg-type]
    return [entry for part in parts for entry in part]


def _padded(column: Column, missing: int) -> Column:
    """`column` with its last line repeated `missing` times."""
    if missing == 0:
        return column
    return _join([column, *[column[-1:]] * missing])


def _is_rows(call: StepCall, value: Any) -> bool:
    return call.returns_list and isinstance(value, list)


def _scatter(first: StepCall, output: Any, calls: Sequence[StepCall]) -> list[Any]:
    if len(calls) == 1:
        return [output]
    rows = [call.rows for call in calls]
    leaves, spec = pytree.tree_flatten(output, is_leaf=lambda value: _is_rows(first, value))
    parts = [
        torch.split(leaf, rows) if isinstance(leaf, Tensor) else _split(leaf, rows)
        for leaf in leaves
    ]
    return [pytree.tree_unflatten(own, spec) for own in zip(*parts, strict=True)]


def _split(entries: list[Any], rows: Sequence[int]) -> list[list[Any]]:
    rest = iter(entries)
    return [list(itertools.islice(rest, number)) for number in rows]


def _take(call: StepCall, output: Any, start: int, end: int) -> Any:
    return pytree.tree_map(
        lambda leaf: leaf[start:end], output, is_leaf=lambda value: _is_rows(call, value)
    )


def _join_outputs(call: StepCall, outputs: Sequence[Any]) -> Any:
    return pytree.tree_map(
        lambda *leaves: _join(leaves), *outputs, is_leaf=lambda value: _is_rows(call, value)
    )


def _per_row(value: Any, rows: int, sample: Any) -> Tensor:
    device = (sample if isinstance(sample, Tensor) else sample[0]).device
    times = torch.as_tensor(value, device=device)
    return (times if times.ndim == 0 else times.reshape(-1)).expand(rows)


def _line_key(leaf: Any, rows: int) -> Any:
    if isinstance(leaf, PLAIN):
        return leaf
    if isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == rows:
        return (leaf.shape[1:], leaf.dtype)
    return object()  # equal to nothing, so that the call shares with nobody


def _checked(name: str, value: Any, rows: int) -> list[Any]:
    if not isinstance(value, list) or len(value) != rows:
        raise ValueError(f"{name} is no list of {rows} entries, one per row")
    return value


def _entries_key(entries: Sequence[Any], multiple: int | None) -> Any:
    """Of what kind the entries are; of ragged ones, the lengths that the module pads them to.

    As a set: it is the longest that decides how far a whole forward is padded.
    """
    if multiple is None:
        return frozenset(
            (entry.shape, entry.dtype) if isinstance(entry, Tensor) else repr(entry)
            for entry in entries
        )
    return frozenset(-(-len(entry) // multiple) for entry in entries), entries[0].dtype


def _latents_per_row(sample: Any, declared: Arguments) -> int:
    if isinstance(sample, list):
        return int(sample[0].shape[1:].numel())
    if declared.packing is None:
        return int(sample.shape[2:].numel())
    return int(sample.shape[1]) * declared.packing**2


_contents: MutableMapping[Tensor, Any] = WeakTensorKeyDictionary()


def _content(tensor: Tensor) -> Any:
    """A key for the tensor's values. Read once per tensor, since that waits for the device."""
    key = _contents.get(tensor)
    if key is None:
        values = tensor.detach().float().cpu().numpy().tobytes()
        key = _contents[tensor] = (tensor.shape, tensor.dtype, hash(values))
    return key
