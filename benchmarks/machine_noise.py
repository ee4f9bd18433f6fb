"""How much the same forward varies on this machine, by the wall's clock and by a machine clock.

One process for each core, of one thread, as a service has with a generator for each.

python benchmarks/machine_noise.py --seconds 120
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import torch
from machine_clock import MachineClock
from rows import UNTIL_RECORDED, forwards

from shared.config import ModelConfig
from shared.cpu_workers import CPU_WORKER, restart_with
from shared.engine.compiled import compilable
from shared.engine.layers import rows_kept_apart
from shared.pipeline import load_pipeline

_ROWS, _SIDE, _SLICE_S = 16, 16, 5


class Forward(NamedTuple):
    """Mean seconds by either clock."""

    wall_s: float
    machine_s: float


@torch.no_grad()
def render(seconds: float) -> list[Forward]:
    torch.set_num_threads(1)
    pipeline = load_pipeline(ModelConfig())
    with rows_kept_apart(pipeline.unet), compilable(pipeline.unet, lambda: False):
        forward = forwards(pipeline, _SIDE)["unet"]
        for _ in range(UNTIL_RECORDED):
            forward(_ROWS)
        with MachineClock() as clock:
            return [_slice(lambda: forward(_ROWS), clock) for _ in range(int(seconds / _SLICE_S))]


def _slice(forward: Callable[[], object], clock: MachineClock) -> Forward:
    wall_s, machine_s, number = time.perf_counter(), clock.now(), 0
    while time.perf_counter() < wall_s + _SLICE_S:
        forward()
        number += 1
    return Forward(
        (time.perf_counter() - wall_s) / number,
        (clock.now() - machine_s) / number,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args()
    number = os.cpu_count() or 1
    with ProcessPoolExecutor(number) as pool:
        of_cores = [*pool.map(render, [options.seconds] * number)]
    for name in Forward._fields:
        found = [
            1000 * statistics.mean(getattr(each, name) for each in at_once)
            for at_once in zip(*of_cores, strict=True)
        ]
        part = statistics.stdev(found) / statistics.mean(found)
        print(f"{name}: {min(found):.1f} to {max(found):.1f} ms, +- {part:.0%}")


if __name__ == "__main__":
    restart_with(CPU_WORKER)
    main()
