"""A line every few seconds for whoever waits, in a terminal or in the log of a job."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

# A line comes after this part of the time that has passed, but not more or less often than so.
_EVERY, _SOONEST_S, _LATEST_S = 0.05, 5.0, 60.0
# Lines back that the speed is taken from.
_NUM_RECENT = 6


class Progress:
    """Of a number of pictures. `counts` gives those that are done, by status, or None.

    `at_first` is told as long as there are none.
    """

    def __init__(
        self,
        num_images: int,
        counts: Callable[[], Mapping[str, int] | None],
        at_first: str = "loading the model and rendering the first pictures",
    ) -> None:
        self._num_images = num_images
        self._at_first = at_first
        self._counts = counts
        self._started = time.monotonic()
        self._recent: deque[tuple[float, int]] = deque([(0.0, 0)], maxlen=_NUM_RECENT)

    def line(self) -> str | None:
        """How far it is now."""
        counts = self._counts()
        return None if counts is None else self._line(counts, time.monotonic() - self._started)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Within it lines are printed, and one at its end."""
        finished = threading.Event()
        watcher = threading.Thread(target=self._show, args=(finished,), name="progress")
        watcher.start()
        try:
            yield
        finally:
            finished.set()
            watcher.join()

    def _show(self, finished: threading.Event) -> None:
        ended = False
        while not ended:
            elapsed = time.monotonic() - self._started
            ended = finished.wait(min(max(_EVERY * elapsed, _SOONEST_S), _LATEST_S))
            if (line := self.line()) is not None:
                print(line, flush=True)

    def _line(self, counts: Mapping[str, int], elapsed_s: float) -> str:
        done = counts["ok"] + counts["error"]
        if not done:
            self._recent[0] = (elapsed_s, 0)  # no speed is taken from loading the model
            return f"{duration(elapsed_s)}: {self._at_first}"
        then, done_then = self._recent[0]
        self._recent.append((elapsed_s, done))
        rate = (done - done_then) / (elapsed_s - then)
        left = f"about {duration((self._num_images - done) / rate)} left" if rate else "waiting"
        return (
            f"{duration(elapsed_s)}: {done} of {self._num_images} pictures, {rate:.2f}/s, "
            f"{counts['error']} failed, {left}"
        )


def duration(seconds: float) -> str:
    """As people say it: 42 s, 3 min 20 s, 2 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
