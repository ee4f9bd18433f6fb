"""Seconds of a shared machine as if it were always equally fast.

A core of a virtual machine is often half of a core: while somebody else has the other half, for
seconds or minutes, all work takes up to twice as long, and no operating system says so. What is
compared within minutes is then compared on two machines. So a piece of work is timed all the while,
and where it takes twice as long, a second counts as half of one. machine_noise.py shows what that
brings.
"""

import os
import statistics
import threading
import time
from collections.abc import Callable
from typing import Self

import torch

from shared.pipeline import default_dtype

_BETWEEN_S = 0.25  # the work takes less than a hundredth of it
_NUM_TRIED = 100


class MachineClock:
    """Goes as long as it is entered, once. `now` is in seconds of the machine at its fastest.

    As far as that was seen when it was made. Callable from any thread. `work_s` says how many
    seconds of a core its work takes.
    """

    def __init__(self, work_s: Callable[[int], float] | None = None) -> None:
        self._cpus = sorted(os.sched_getaffinity(0))
        self._work_s = work_s or _Work().seconds
        self._fastest_s = min(self._work_s(cpu) for cpu in self._cpus * _NUM_TRIED)
        self._seen_s = time.perf_counter()
        self._seconds, self._speed = 0.0, self._look()  # then, and since then
        self._looking = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_looking, daemon=True)

    def now(self) -> float:
        with self._looking:
            return self._seconds + self._speed * (time.perf_counter() - self._seen_s)

    def _keep_looking(self) -> None:
        while not self._over.wait(_BETWEEN_S):
            speed = self._look()
            with self._looking:
                now_s = time.perf_counter()
                self._seconds += self._speed * (now_s - self._seen_s)
                self._seen_s, self._speed = now_s, speed

    def _look(self) -> float:
        """Each core may have company of its own."""
        return statistics.mean(self._fastest_s / self._work_s(cpu) for cpu in self._cpus)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


class _Work:
    """Matrices as a forward has them, and a part of Python: company slows these by its own each.

    In such parts it is slowed as forwards are.
    """

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._matrix = torch.randn(256, 256, dtype=default_dtype(torch.device("cpu")))

    def seconds(self, cpu: int) -> float:
        """Of that core, whoever else of this machine has it in between."""
        own = os.sched_getaffinity(0)  # of this thread
        os.sched_setaffinity(0, {cpu})
        begun, total = time.thread_time(), 0
        for _ in range(16):
            torch.mm(self._matrix, self._matrix)
        for i in range(10_000):
            total += i
        seconds = time.thread_time() - begun
        os.sched_setaffinity(0, own)
        return seconds
