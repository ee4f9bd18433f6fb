"""The engine beside the plain pipeline, in one run: the same requests, both sides in turn.

python benchmarks/throughput.py --size 128 --rounds 3 --plot throughput.png
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DiffusionPipeline
from in_thread import in_thread

from shared.config import ModelConfig
from shared.engine import DenoiseEngine
from shared.pipeline import load_pipeline


def main() -> None:
    options = _parse()
    pipeline = load_pipeline(ModelConfig(name=options.model, dtype=options.dtype))
    pipeline.set_progress_bar_config(disable=True)
    requests = mixed_requests(options.requests, options.size)
    sides = {"plain pipe() in a loop": one_by_one, "engine": in_engine}
    seconds = measure(sides, pipeline, requests, options.rounds)
    rates = {name: [len(requests) / s for s in each] for name, each in seconds.items()}
    print(
        f"{len(requests)} requests of {options.size} px, 10 to 30 steps, guidance 2 to 7, "
        f"{pipeline.dtype} on {pipeline.device}, {torch.get_num_threads()} threads"
    )
    for name, each in rates.items():
        print(
            f"{name:24} {statistics.median(each):6.2f} images/s "
            f"({min(each):.2f} to {max(each):.2f})"
        )
    plain, engine = rates.values()
    ratios = [fast / slow for fast, slow in zip(engine, plain, strict=True)]
    print(f"{'engine / plain':24} {statistics.median(ratios):6.2f} (round by round)")
    if options.plot:
        plot(rates, options.plot, f"{options.size} px, mixed steps and guidance")


def mixed_requests(number: int, size: int) -> list[dict[str, Any]]:
    chance = random.Random(0)
    return [
        {
            "prompt": "twin peaks sf in basquiat painting style",
            "width": size,
            "height": size,
            "num_inference_steps": chance.randint(10, 30),
            "guidance_scale": chance.uniform(2, 7),
        }
        for _ in range(number)
    ]


def measure(
    sides: dict[str, Callable[[DiffusionPipeline, list[dict[str, Any]]], float]],
    pipeline: DiffusionPipeline,
    requests: list[dict[str, Any]],
    rounds: int,
) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, render in sides.items():
            taken = render(pipeline, requests if number else requests[:4])
            if number:  # the first round, a short one, warms both sides up
                seconds[name].append(taken)
    return seconds


def one_by_one(pipeline: DiffusionPipeline, requests: list[dict[str, Any]]) -> float:
    def render() -> float:
        started = time.perf_counter()
        for request in requests:
            pipeline(**request)
        return time.perf_counter() - started

    return in_thread(render)  # one that ends, as the engine's does


def in_engine(pipeline: DiffusionPipeline, requests: list[dict[str, Any]]) -> float:
    with DenoiseEngine(pipeline) as engine:
        engine.submit(**requests[0]).result()  # a service does so before it takes any
        started = time.perf_counter()
        for ticket in [engine.submit(**request) for request in requests]:
            ticket.result()
        return time.perf_counter() - started


def plot(rates: dict[str, list[float]], file: str, title: str) -> None:
    from matplotlib import pyplot  # the bench extra; only this needs it

    figure, axes = pyplot.subplots(figsize=(6, 2.2), layout="constrained")
    axes.barh(list(rates), [statistics.median(each) for each in rates.values()], color="#b5451b")
    axes.set_xlabel("images/s")
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=120)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="postcard")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--size", type=int, default=128, help="pixels per side (%(default)s)")
    parser.add_argument("--requests", type=int, default=24, help="per round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plot", help="a PNG file to draw the result into")
    return parser.parse_args()


if __name__ == "__main__":
    main()
