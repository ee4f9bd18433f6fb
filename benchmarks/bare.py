"""The same calls on the same model without a service: what scripts do.

python benchmarks/bare.py --size 128 --mix steps

pipe       `pipe()` in a loop, a call after the other, those of few steps first
pipe-list  `pipe([...])` of as many equal calls as there are, up to 16

compare.py runs it beside the services. Prints JSON: the pictures, and when each call of `pipe()`
began and ended; and the same of datasets of so many `--rows`, by lists.
"""

import argparse
import itertools
import json
import time
from collections.abc import Sequence
from typing import NamedTuple

from alternatives import MAX_BATCH, Model, Wanted
from machine_clock import MachineClock
from workloads import MEAN_STEPS, MIXES, Call, calls, num_pictures

from shared.cpu_workers import CPU_WORKER, restart_with

SQUARE_MIXES = [mix for mix in MIXES if mix != "all"]


class Ran(NamedTuple):
    """So many pictures of the mean number of steps, by calls that began and ended then."""

    num_pictures: float
    spans: Sequence[tuple[float, float]]

    def latencies_s(self, clock: MachineClock) -> list[float]:
        return [clock.between(begun_s, ended_s) for begun_s, ended_s in self.spans]

    def pictures_per_s(self, clock: MachineClock) -> float:
        return self.num_pictures / sum(self.latencies_s(clock))


def main() -> None:
    options = _parse()
    model = Model()
    asked = calls(options.calls, options.mix, options.size, seed=1)
    model.one(Wanted(**asked[0]))
    found = {
        "pipe": run(model, asked, options.mix, max_batch=1),
        "pipe-list": run(model, asked, options.mix, MAX_BATCH),
        "rows": {
            number: run(
                model, calls(number, options.mix, options.size, seed=1), options.mix, MAX_BATCH
            )
            for number in options.rows
        },
    }
    print(json.dumps(found))


def run(model: Model, asked: Sequence[Call], mix: str, max_batch: int) -> Ran:
    """All calls, sorted by what has to be equal in a batch."""
    in_order = sorted((Wanted(**call) for call in asked), key=Wanted.alike)
    spans = []
    for _, group in itertools.groupby(in_order, key=Wanted.alike):
        equal = list(group)
        for start in range(0, len(equal), max_batch):
            begun_s = time.perf_counter()
            model.many(equal[start : start + max_batch])
            spans.append((begun_s, time.perf_counter()))
    return Ran(sum(num_pictures(call, MEAN_STEPS[mix]) for call in asked), spans)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mix", choices=SQUARE_MIXES, default="steps", help="(%(default)s)")
    parser.add_argument("--size", type=int, default=128, help="pixels a side (%(default)s)")
    parser.add_argument("--calls", type=int, default=64, help="(%(default)s)")
    parser.add_argument("--rows", type=int, nargs="*", default=[], help="of datasets")
    return parser.parse_args()


if __name__ == "__main__":
    restart_with(CPU_WORKER)
    main()
