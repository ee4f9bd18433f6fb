"""A line now and then: how far it is, and how long it will take."""

import time

from torch import Tensor

from jobs.progress import duration

_EVERY_S = 30.0


class News:
    def __init__(self, name: str, unit: str, total: int, done: int = 0) -> None:
        self._name, self._unit, self._total = name, unit, total
        self._told, self._told_at = done, time.monotonic()
        self._losses: list[Tensor] = []

    def tell(self, done: int, loss: Tensor | None = None) -> None:
        """So many are done. The rest is taken to go as fast as those since the line before."""
        if loss is not None:
            self._losses.append(loss)
        passed = time.monotonic() - self._told_at
        if passed < _EVERY_S and done < self._total:
            return
        each = passed / (done - self._told)
        mean = f", loss {float(sum(self._losses)) / len(self._losses):.4f}" if self._losses else ""
        print(
            f"{self._name}: {done} of {self._total} {self._unit}{mean}, {each:.3f} s each, "
            f"about {duration(each * (self._total - done))} left",
            flush=True,
        )
        self._told, self._told_at, self._losses = done, time.monotonic(), []
