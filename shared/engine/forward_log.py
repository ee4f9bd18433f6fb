"""The latest forwards of an engine, for those who want to see it work."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from shared.engine.tickets import EngineCounters

# Some seconds of them, and little to send.
_NUM_KEPT = 48


@dataclass(frozen=True)
class Member:
    """The part of one request in a forward: `rows` of it, in its `step` of `num_steps`.

    `request` counts the engine's requests from 1, in the order in which they were let in.
    """

    request: int
    priority: str
    rows: int
    step: int
    num_steps: int


@dataclass(frozen=True)
class PastForward:
    """One forward of the denoiser: rows of `pixels` each, `padding_rows` of which are nobody's.

    `number` counts them from 1.
    """

    number: int
    pixels: int
    padding_rows: int
    members: tuple[Member, ...]


@dataclass(frozen=True)
class EngineForwards:
    """Of one engine: what it has done, whom it is at, and its latest forwards, the oldest first.

    `engine` tells it from others.
    """

    engine: str
    counters: EngineCounters
    in_flight: tuple[Member, ...]
    latest: tuple[PastForward, ...]


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
