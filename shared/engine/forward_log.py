"""The latest forwards of an engine, for those who want to see it work."""

from collections import deque
from collections.abc import Sequence

from shared.counters import Member, PastForward

# Some seconds of them, and little to send.
_NUM_KEPT = 48


class ForwardLog:
    def __init__(self) -> None:
        self._number = 0
        self._num_padding_rows = 0
        self._latest: deque[PastForward] = deque(maxlen=_NUM_KEPT)

    def add(self, pixels: int, num_padding_rows: int, members: Sequence[Member]) -> None:
        """Of all forwards so far, `num_padding_rows` were nobody's."""
        padding_rows = num_padding_rows - self._num_padding_rows
        self._num_padding_rows = num_padding_rows
        self._number += 1
        self._latest.append(PastForward(self._number, pixels, padding_rows, tuple(members)))

    def latest(self) -> tuple[PastForward, ...]:
        return tuple(self._latest)
