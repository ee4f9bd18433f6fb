"""How much the same forward varies on this machine, by the wall's clock and by a machine clock.

One process for each core, of one thread, as a service has with a generator for each.

python benchmarks/machine_noise.py --seconds 120
"""

import argparse
import functools
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing.synchronize import Barrier
from typing import NamedTuple

import torch
from machine_clock import MachineClock
from rows import UNTIL_RECORDED, forwards

from shared.config import ModelConfig
from shared.cpu_workers import CPU_WORKER, restart_with
from shared.engine.compiled import compilable
from shared.engine.layers import rows_kept_apart
from shared.pipeline import load_pipeline

_ROWS, _SIDE = 16, 16
_SLICE_S = 5


class Milliseconds(NamedTuple):
    """Of a forward, by either clock."""

    wall: float
    machine: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args()
    found = [*slices(max(2, int(options.seconds / _SLICE_S)))]
    for name in Milliseconds._fields:
        ms = [getattr(each, name) for each in found]
        part = statistics.stdev(ms) / statistics.mean(ms)
        print(f"{name}: {min(ms):.1f} to {max(ms):.1f} ms, +- {part:.0%}")


def slices(number: int) -> Iterator[Milliseconds]:
    num_cpus = os.cpu_count() or 1
    spawn = multiprocessing.get_context("spawn")
    ready = (spawn.Barrier(num_cpus),)
    with ProcessPoolExecutor(num_cpus, spawn, prepare, ready) as pool, MachineClock() as clock:
        for i in range(number + 1):
            begun_s = time.perf_counter()
            num_forwards = sum(pool.map(count, [begun_s + _SLICE_S] * num_cpus))
            ended_s = time.perf_counter()
            if i:  # they load the model in the first
                ms = 1000 * (ended_s - begun_s) * num_cpus / num_forwards
                yield Milliseconds(ms, ms * clock.speed(begun_s, ended_s))


_as_in_the_engine = ExitStack()
_forward: Callable[[], object]


def prepare(all_are_ready: Barrier) -> None:
    """In each process."""
    global _forward
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    pipeline = load_pipeline(ModelConfig())
    _as_in_the_engine.enter_context(rows_kept_apart(pipeline.unet))
    _as_in_the_engine.enter_context(compilable(pipeline.unet, lambda: False))
    _forward = functools.partial(forwards(pipeline, _SIDE)["unet"], _ROWS)
    for _ in range(UNTIL_RECORDED):
        _forward()
    all_are_ready.wait()


def count(until_s: float) -> int:
    """Forwards until then, which is the same moment in all processes."""
    number = 0
    while time.perf_counter() < until_s:
        _forward()
        number += 1
    return number


if __name__ == "__main__":
    restart_with(CPU_WORKER)
    main()
