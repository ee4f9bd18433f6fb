"""The same calls on the same model without a service: what scripts do, and what hardware could.

python benchmarks/bare.py --size 128 --mix steps

pipe       `pipe()` in a loop, a call after the other
pipe-list  `pipe([...])` of as many equal calls as there are, up to 16
limit      denoiser and decoder alone, each at the number of rows where one takes least, with
           diffusers' layers or the engine's, whichever are faster

compare.py runs it beside the services. Prints JSON: pictures a second, and the seconds of each call
of the loop.
"""

import argparse
import itertools
import json
import time
from collections.abc import Sequence

import torch
from alternatives import MAX_BATCH, Model, Wanted
from rows import ROW_COUNTS, forwards, milliseconds
from workloads import MIXES, calls

from shared.cpu_workers import CPU_WORKER, restart_with
from shared.engine.layers import rows_kept_apart

SQUARE_MIXES = [mix for mix in MIXES if mix != "all"]


def main() -> None:
    options = _parse()
    model = Model()
    wanted = [Wanted(**call) for call in calls(options.calls, options.mix, options.size, seed=1)]
    model.one(wanted[0])
    latencies = [_seconds(model, [each]) for each in wanted]
    found = {
        "pipe": (sum(each.n for each in wanted) / sum(latencies), latencies),
        "pipe-list": (lists(model, wanted), []),
        "limit": (limit(model, wanted), []),
    }
    print(json.dumps(found))


def lists(model: Model, wanted: Sequence[Wanted]) -> float:
    """Pictures a second, of calls that are sorted by what has to be equal."""
    in_order = sorted(wanted, key=Wanted.alike)
    seconds = 0.0
    for _, group in itertools.groupby(in_order, key=Wanted.alike):
        equal = list(group)
        for start in range(0, len(equal), MAX_BATCH):
            seconds += _seconds(model, equal[start : start + MAX_BATCH])
    return sum(each.n for each in wanted) / seconds


@torch.no_grad()
def limit(model: Model, wanted: Sequence[Wanted]) -> float:
    """Pictures a second of one size, if only guided forwards and decodes took time."""
    plain = _least_milliseconds(model, wanted[0].width)
    with rows_kept_apart(model.pipeline.unet):
        best = {
            name: min(plain[name], found)
            for name, found in _least_milliseconds(model, wanted[0].width).items()
        }
    pictures = [each for each in wanted for _ in range(each.n)]
    steps = sum(each.num_inference_steps for each in pictures)
    return 1000 * len(pictures) / (2 * steps * best["unet"] + len(pictures) * best["decode"])


def _least_milliseconds(model: Model, size: int) -> dict[str, float]:
    """Per row, of denoiser and decoder, with its layers as they are now."""
    side = size // model.pipeline.vae_scale_factor
    return {
        name: min(milliseconds(forward, rows) / rows for rows in ROW_COUNTS)
        for name, forward in forwards(model.pipeline, side).items()
    }


def _seconds(model: Model, batch: Sequence[Wanted]) -> float:
    begun = time.perf_counter()
    model.many(batch)
    return time.perf_counter() - begun


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mix", choices=SQUARE_MIXES, default="steps", help="(%(default)s)")
    parser.add_argument("--size", type=int, default=128, help="pixels a side (%(default)s)")
    parser.add_argument("--calls", type=int, default=64, help="(%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    restart_with(CPU_WORKER)
    main()
