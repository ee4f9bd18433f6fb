"""How many rows a forward may carry for a row's bits not to depend on who else is in it."""

import functools
from dataclasses import dataclass


@dataclass(frozen=True)
class RowRule:
    """The row `counts` that give a row the same bits, ascending. Empty: any number will do."""

    counts: tuple[int, ...] = ()

    def chunks(self, rows: int, max_rows: int | None = None) -> tuple[int, ...]:
        """The forwards that `rows` rows take: as little padding as can be, then as few as can be.

        The sizes are from `counts` and add up to `rows` or more; what is more is padding.
        Where no count is as small as `max_rows`, memory comes first: plain pieces of that size.
        """
        most = max_rows or rows
        allowed = tuple(count for count in self.counts if max_rows is None or count <= max_rows)
        if not allowed:
            return tuple(min(most, rows - start) for start in range(0, rows, most))
        whole = max(0, rows // allowed[-1] - 1)
        return (allowed[-1],) * whole + _best(rows - whole * allowed[-1], allowed)


@functools.lru_cache(maxsize=4096)
def _best(rows: int, counts: tuple[int, ...]) -> tuple[int, ...]:
    candidates = [
        (count, *(_best(rows - count, counts) if rows > count else ())) for count in counts[::-1]
    ]
    return min(candidates, key=lambda sizes: (sum(sizes), len(sizes)))
