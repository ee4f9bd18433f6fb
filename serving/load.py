"""Whether there is room for more work, and how long until what is under way is done."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# The last finished requests that the speed is taken from.
_WINDOW = 64
# What is answered while nothing was finished yet, and the least there is.
_LEAST_S = 1.0
# So long a refusal stands, unless something ends before: room may have come that is not seen here.
_FULL_FOR_S = 1.0


class Load:
    """Work under way, and the speed at which it gets done; in pixel steps.

    Time counts only while there is work, so that an idle hour does not look like a slow one.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._now = clock()
        self._busy_s = 0.0
        self._under_way = 0
        self._done: deque[tuple[float, int]] = deque()  # when, in busy seconds, and how much
        self._window_start = 0.0
        self._full_until = clock()

    @contextmanager
    def carrying(self, work: int) -> Iterator[None]:
        """Within it, `work` is under way; it counts as done unless it ends by an exception."""
        self._tick()
        self._under_way += work
        try:
            yield
            self._tick()
            self._done.append((self._busy_s, work))
            if len(self._done) > _WINDOW:
                self._window_start, _ = self._done.popleft()
        finally:
            self._tick()
            self._under_way -= work
            self._full_until = self._now

    def refused(self) -> None:
        """A generator had no room: nobody else need ask until something ends, or for a second."""
        self._full_until = self._clock() + _FULL_FOR_S

    @property
    def is_full(self) -> bool:
        return self._clock() < self._full_until

    def seconds_to_clear(self) -> float:
        """Until all that is under way is done, at the speed so far; at least a second."""
        self._tick()
        done = sum(work for _, work in self._done)
        if not done:
            return _LEAST_S
        return max(_LEAST_S, self._under_way * (self._busy_s - self._window_start) / done)

    def _tick(self) -> None:
        now = self._clock()
        if self._under_way:
            self._busy_s += now - self._now
        self._now = now
