"""What the hardware could do: forwards of denoiser and decoder by turns, and nothing else.

echo | python benchmarks/limit.py --size 128 --mix steps

limit           the modules' own forwards, the denoiser's with diffusers' layers or the engine's,
                whichever are faster
limit-replayed  the same, recorded as the engine does

Each has the number of rows where one takes least. For each line of its input it measures for some
seconds and prints pictures a second, as JSON. compare.py has it measure just before and after each
system, as machines that are shared change from minute to minute; meanwhile it sleeps.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from alternatives import Model
from diffusers import DiffusionPipeline
from machine_clock import MachineClock
from rows import UNTIL_RECORDED, forwards, recorded, row_counts, seconds
from workloads import MEAN_STEPS

from shared.cpu_workers import CPU_WORKER, restart_with
from shared.engine.layers import rows_kept_apart

LIMIT, REPLAYED = "limit", "limit-replayed"
_TURNS = 5


class Forward(NamedTuple):
    run: Callable[[int], Any]
    rows: int
    row_s: float  # the least that was seen


class Modules(NamedTuple):
    unet: Forward
    decode: Forward


class Limits:
    """Processes of this file: one on all cores and, with `each_core`, one for each."""

    def __init__(
        self,
        arguments: list[str],
        environment: Mapping[str, str],
        clock: MachineClock,
        *,
        each_core: bool,
    ) -> None:
        self._command = [sys.executable, __file__, *arguments]
        self._environment, self._clock = {**environment}, clock
        self._teams = {"": [self._start()]}
        self.rates()  # once it is ready, since it tries numbers of rows before
        if each_core:
            self._environment["OMP_NUM_THREADS"] = "1"
            self._teams["/each-core"] = [self._start() for _ in range(os.cpu_count() or 1)]
            self.rates()

    def rates(self) -> dict[str, float]:
        """Pictures a second of each kind; the processes of a team at once, the teams by turns."""
        found = {}
        for kind, team in self._teams.items():
            begun_s = time.perf_counter()
            for process in team:
                print(file=process.stdin, flush=True)
            answers = [json.loads(process.stdout.readline()) for process in team]  # type: ignore[union-attr]
            speed = self._clock.speed(begun_s, time.perf_counter())
            for name in (LIMIT, REPLAYED):
                found[name + kind] = sum(answer[name] for answer in answers) / speed
        return found

    def close(self) -> None:
        for process in [each for team in self._teams.values() for each in team]:
            process.communicate()  # its input ends

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )


@torch.no_grad()
def main() -> None:
    options = _parse()
    with bare_forwards(Model(), options.size) as ways:
        for _ in sys.stdin:
            print(json.dumps(measure(ways, options)), flush=True)


@contextmanager
def bare_forwards(model: Model, size: int) -> Iterator[dict[str, Modules]]:
    pipeline = model.pipeline
    unet, side = pipeline.unet, size // pipeline.vae_scale_factor
    theirs = _best(forwards(pipeline, side)["unet"], side)
    with ExitStack() as stack:
        with rows_kept_apart(unet):
            ours = _best(forwards(pipeline, side)["unet"], side)
        if ours.row_s < theirs.row_s:
            stack.enter_context(rows_kept_apart(unet))
        own = _best_of_each(pipeline, side)
        stack.enter_context(recorded(pipeline))
        yield {LIMIT: own, REPLAYED: _best_of_each(pipeline, side, warm_up=UNTIL_RECORDED)}


def measure(ways: Mapping[str, Modules], options: argparse.Namespace) -> dict[str, float]:
    """Pictures a second, if only guided forwards and decodes took time."""
    spent: Counter[Forward] = Counter()
    rows: Counter[Forward] = Counter()
    until = time.perf_counter() + options.seconds
    while time.perf_counter() < until:
        for forward in itertools.chain(*ways.values()):
            spent[forward] += seconds(forward.run, forward.rows)
            rows[forward] += forward.rows
    a_row = {forward: spent[forward] / rows[forward] for forward in rows}
    return {
        name: 1 / (2 * MEAN_STEPS[options.mix] * a_row[unet] + a_row[decode])
        for name, (unet, decode) in ways.items()
    }


def _best_of_each(pipeline: DiffusionPipeline, side: int, warm_up: int = 1) -> Modules:
    found = forwards(pipeline, side)
    return Modules(_best(found["unet"], side, warm_up), _best(found["decode"], side, warm_up))


def _best(run: Callable[[int], Any], side: int, warm_up: int = 1) -> Forward:
    """With as many rows as had the fastest row of some turns."""
    counts = row_counts(side)
    for rows in counts:
        for _ in range(warm_up):
            run(rows)
    turns = [{rows: seconds(run, rows) / rows for rows in counts} for _ in range(_TURNS)]
    row_s = {rows: min(turn[rows] for turn in turns) for rows in counts}
    best = min(counts, key=row_s.__getitem__)
    return Forward(run, best, row_s[best])


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mix", choices=MEAN_STEPS, default="steps", help="(%(default)s)")
    parser.add_argument("--size", type=int, default=128, help="pixels a side (%(default)s)")
    parser.add_argument("--seconds", type=float, default=8, help="of measuring (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    restart_with(CPU_WORKER)
    main()
