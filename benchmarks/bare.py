"""The same calls on the same model without a service: what scripts do, and what hardware could.

python benchmarks/bare.py --size 128 --mix steps

pipe            `pipe()` in a loop, a call after the other
pipe-list       `pipe([...])` of as many equal calls as there are, up to 16
limit           denoiser and decoder alone, each at the number of rows where one takes least, with
                diffusers' layers or the engine's, whichever are faster
limit-replayed  the same with the denoiser's forwards recorded, as the engine does

compare.py runs it beside the services. Prints JSON: pictures a second, and the seconds of each call
of the loop; and of datasets of so many `--rows`, pictures a second by lists.
"""

import argparse
import itertools
import json
import time
from collections.abc import Sequence

import torch
from alternatives import MAX_BATCH, Model, Wanted
from rows import ROW_COUNTS, forwards, milliseconds
from workloads import MEAN_STEPS, MIXES, Call, calls, num_pictures

from shared.cpu_workers import CPU_WORKER, restart_with
from shared.engine.compiled import compilable
from shared.engine.layers import rows_kept_apart

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
        **{name: (rate, []) for name, rate in limits(model, options.size, mean_steps).items()},
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


@torch.no_grad()
def limits(model: Model, size: int, steps: int) -> dict[str, float]:
    """Pictures a second, if only guided forwards and decodes took time."""
    unet = model.pipeline.unet
    found = [_least_milliseconds(model, size)]
    with rows_kept_apart(unet):
        found.append(_least_milliseconds(model, size))
        with compilable(unet, lambda: False):
            replayed = [*found, _least_milliseconds(model, size)]
    return {"limit": _rate(found, steps), "limit-replayed": _rate(replayed, steps)}


def _rate(found: Sequence[dict[str, float]], steps: int) -> float:
    unet, decode = (min(each[name] for each in found) for name in ("unet", "decode"))
    return 1000 / (2 * steps * unet + decode)


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
    parser.add_argument("--rows", type=int, nargs="*", default=[], help="of datasets")
    return parser.parse_args()


if __name__ == "__main__":
    restart_with(CPU_WORKER)
    main()
