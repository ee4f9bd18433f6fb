"""The same calls on the same model without a service: what scripts do.

python benchmarks/bare.py --size 128 --mix steps

pipe       `pipe()` in a loop, a call after the other
pipe-list  `pipe([...])` of as many equal calls as there are, up to 16

compare.py runs it beside the services. Prints JSON: pictures a second, and the seconds of each call
of the loop; and of datasets of so many `--rows`, pictures a second by lists.
"""

import argparse
import itertools
import json
import time
from collections.abc import Sequence

from alternatives import MAX_BATCH, Model, Wanted
from workloads import MEAN_STEPS, MIXES, Call, calls, num_pictures

from shared.cpu_workers import CPU_WORKER, restart_with

SQUARE_MIXES = [mix for mix in MIXES if mix != "all"]


def main() -> None:
    options = _parse()
    model = Model()
    mean_steps = MEAN_STEPS[options.mix]
    asked = calls(options.calls, options.mix, options.size, seed=1)
    pictures = sum(num_pictures(call, mean_steps) for call in asked)
    wanted = [Wanted(**call) for call in asked]
    model.one(wanted[0])
    latencies = [_seconds(model, [each]) for each in wanted]
    rows = {
        number: lists_rate(model, calls(number, options.mix, options.size, seed=1), mean_steps)
        for number in options.rows
    }
    found = {
        "pipe": (pictures / sum(latencies), latencies),
        "pipe-list": (lists_rate(model, asked, mean_steps), []),
        "rows": rows,
    }
    print(json.dumps(found))


def lists_rate(model: Model, asked: Sequence[Call], mean_steps: int) -> float:
    """Pictures a second of all calls, sorted by what has to be equal."""
    in_order = sorted((Wanted(**call) for call in asked), key=Wanted.alike)
    seconds = 0.0
    for _, group in itertools.groupby(in_order, key=Wanted.alike):
        equal = list(group)
        for start in range(0, len(equal), MAX_BATCH):
            seconds += _seconds(model, equal[start : start + MAX_BATCH])
    return sum(num_pictures(call, mean_steps) for call in asked) / seconds


def _seconds(model: Model, batch: Sequence[Wanted]) -> float:
    begun = time.perf_counter()
    model.many(batch)
    return time.perf_counter() - begun


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
