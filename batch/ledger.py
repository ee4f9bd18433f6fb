"""What the engines of a job are at: pictures done, and which rows were in an engine that died.

A process may die of a row that it renders: a fault in a kernel, memory that the system takes back.
The next try of its shard is in halves, each alone in its engine, and so on down to the row that
kills; after some tries of that row alone it is given up, and all others are rendered.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# As a row may be hit by deaths that it is not the reason of, one is not enough.
_MAX_TRIES_ALONE = 3


class ProcessDied(RuntimeError):
    """Of a row that was given up."""

    def __init__(self) -> None:
        super().__init__(f"its process died of it {_MAX_TRIES_ALONE} times, alone")


Rows = tuple[int, ...]


@dataclass(frozen=True)
class Assignment:
    """How to render a shard: these groups of its rows, and without those that were given up.

    Of a shard that a process died of, each group has the engine to itself.
    """

    groups: Sequence[Rows]
    given_up: frozenset[int] = frozenset()
    is_suspect: bool = False


@dataclass
class _Tries:
    groups: list[Rows]
    entered: int | None = None
    has_killed: bool = False
    tries_alone: Counter[int] = field(default_factory=Counter)
    given_up: set[int] = field(default_factory=set)


class Ledger:
    """Of one job. Its methods are coroutines so that it can be an actor of Ray."""

    def __init__(self) -> None:
        self._counts = Counter[str]()
        self._tries: dict[str, _Tries] = {}

    async def count(self, statuses: Mapping[str, int]) -> None:
        """So many pictures are finished, by status: "ok" or "error"."""
        self._counts.update(statuses)

    async def counts(self) -> Counter[str]:
        """The pictures that are finished, by status."""
        return self._counts

    async def begin(self, shard: str, num_rows: int) -> Assignment:
        """An engine starts with this shard; if one has before and not ended it, that one died."""
        tries = self._tries.setdefault(shard, _Tries([tuple(range(num_rows))]))
        if tries.entered is not None:
            _narrow(tries)
        return Assignment(tuple(tries.groups), frozenset(tries.given_up), tries.has_killed)

    async def enter(self, shard: str, group: int) -> None:
        """This group of the shard is given to an engine now."""
        if tries := self._tries.get(shard):  # else this process follows one that died
            tries.entered = group

    async def leave(self, shard: str) -> None:
        """None of the shard is in the engine any more: later deaths are not of its rows."""
        if tries := self._tries.get(shard):
            tries.entered = None

    async def end(self, shard: str) -> None:
        """The shard is committed."""
        self._tries.pop(shard, None)


def _narrow(tries: _Tries) -> None:
    """Of the group that was in the engine that died."""
    assert tries.entered is not None
    at, rows = tries.entered, tries.groups[tries.entered]
    tries.entered, tries.has_killed = None, True
    if len(rows) > 1:
        middle = len(rows) // 2
        tries.groups[at : at + 1] = [rows[:middle], rows[middle:]]
        return
    (row,) = rows
    tries.tries_alone[row] += 1
    if tries.tries_alone[row] == _MAX_TRIES_ALONE:
        del tries.groups[at]
        tries.given_up.add(row)
