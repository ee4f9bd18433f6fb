"""Seconds of a shared machine as if it were always equally fast.

All work on a core of a virtual machine can take twice as long and longer for seconds or minutes,
whatever one does oneself, and no operating system says so. What is compared within minutes is then
compared on two machines. So a piece of work is timed all the while, and where it takes twice as
long, a second counts as half of one. machine_noise.py shows what that brings.
"""

import os
import statistics
import threading
import time
from bisect import bisect_right
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Self

import torch

from shared.engine.each_core import compute_alone
from shared.pipeline import default_dtype

_BETWEEN_S = 0.4
_NUM_TRIED = 100


class _Look(NamedTuple):
    """What both clocks said, and how fast the machine was, of its fastest."""

    wall_s: float
    at_s: float
    speed: float


class MachineClock:
    """`now` is in seconds of the machine at its fastest, as far as that was seen at the beginning.

    So seconds of two clocks are not the same. It looks how fast the machine is as long as it is
    entered, at one core after the other, so that it is for few, and remembers all it saw: moments
    that other processes tell by their `perf_counter` can be asked for later. Callable from any
    thread. `work_s` says how many seconds of a core its work takes. A GPU's speed is no matter of
    the cores: where there is one, seconds are the wall's.
    """

    def __init__(
        self,
        work_s: Callable[[int], float] | None = None,
        wall_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._work_s = work_s or (_always if torch.cuda.is_available() else _Work().seconds)
        self._wall_s = wall_s
        self._cpus = sorted(os.sched_getaffinity(0))
        self._fastest_s = min(self._work_s(cpu) for cpu in self._cpus * _NUM_TRIED)
        self._over, self._pool = threading.Event(), ThreadPoolExecutor(1)
        self._looking: Future[None] | None = None
        self._looks = [_Look(wall_s(), 0.0, 1.0)]
        self.look()

    def now(self) -> float:
        return self.at(self._wall_s())

    def at(self, wall_s: float) -> float:
        """Its seconds at that moment of the wall's clock. Raises what kept it from looking."""
        if self._looking is not None and self._looking.done():
            self._looking.result()
        before = bisect_right(self._looks, wall_s, key=lambda look: look.wall_s)
        last = self._looks[max(before - 1, 0)]
        return last.at_s + last.speed * (wall_s - last.wall_s)

    def between(self, begun_s: float, ended_s: float) -> float:
        """Its seconds from one moment of the wall's clock to another."""
        return self.at(ended_s) - self.at(begun_s)

    def speed(self, begun_s: float, ended_s: float) -> float:
        """The mean between two moments of the wall's clock; 1 is the fastest."""
        return self.between(begun_s, ended_s) / (ended_s - begun_s)

    def look(self) -> None:
        """Each core may have company of its own."""
        speed = statistics.mean(self._fastest_s / self._work_s(cpu) for cpu in self._cpus)
        now_s = self._wall_s()
        self._looks.append(_Look(now_s, self.at(now_s), speed))

    def _keep_looking(self) -> None:
        while not self._over.wait(_BETWEEN_S):
            self.look()

    def __enter__(self) -> Self:
        self._looking = self._pool.submit(self._keep_looking)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._pool.shutdown()


def _always(cpu: int) -> float:
    return 1.0


class _Work:
    """Products of matrices as in a forward, and a part of Python, by a thread of its own.

    What slows a machine slows either by its own part. In this mixture it slows them as it does
    forwards.
    """

    def __init__(self) -> None:
        dtype = default_dtype(torch.device("cpu"))
        number = torch.get_num_threads()
        self._thread = ThreadPoolExecutor(1, "machine-clock", compute_alone)
        self._matrix = self._thread.submit(torch.randn, 256, 256, dtype=dtype).result()
        torch.set_num_threads(number)  # it is the default of threads to come, too

    def seconds(self, cpu: int) -> float:
        """Of that core, whoever else of this machine has it in between."""
        return self._thread.submit(self._seconds, cpu).result()

    def _seconds(self, cpu: int) -> float:
        os.sched_setaffinity(0, {cpu})  # of this thread
        self._run()  # a core that has slept, or whose caches hold other things, is slower at first
        begun = time.thread_time()
        self._run()
        return time.thread_time() - begun

    def _run(self) -> None:
        for _ in range(16):
            torch.mm(self._matrix, self._matrix)
        total = 0
        for i in range(10_000):
            total += i
