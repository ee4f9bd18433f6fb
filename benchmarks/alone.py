"""Seconds of one request alone: the plain pipeline, and the engine, by turns.

The engine as it is, with its forwards not recorded, and compiled.

make .venv/.bench
python benchmarks/alone.py --size 256 --steps 20
"""

import argparse
import functools
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from in_thread import in_thread

from shared.config import Compiler, EngineConfig, ModelConfig
from shared.cpu_workers import CPU_WORKER, restart_with
from shared.engine import DenoiseEngine
from shared.pipeline import load_pipeline


def main() -> None:
    options = _parse()
    request = {
        "prompt": "twin peaks sf in basquiat painting style",
        "width": options.size,
        "height": options.size,
        "num_inference_steps": options.steps,
    }
    pipeline = load_pipeline(ModelConfig(name=options.model, dtype=options.dtype))
    pipeline.set_progress_bar_config(disable=True)
    print(
        f"{options.size} px, {options.steps} steps, {pipeline.dtype} on {pipeline.device}, "
        f"{torch.get_num_threads()} threads; median (and least to most) of "
        f"{options.rounds} rounds of {options.requests}"
    )

    def plain() -> list[float]:
        return timed(lambda: pipeline(**request), options.requests)

    def engine(compiler: Compiler | None = None, *, record_forwards: bool = True) -> list[float]:
        with DenoiseEngine(pipeline, EngineConfig(record_forwards=record_forwards)) as engine:
            if compiler:
                engine.compile(compiler, prompt="a", width=128, height=256, num_inference_steps=1)
            return timed(lambda: engine.submit(**request).result(), options.requests)

    sides = {
        "pipe()": plain,
        "engine": engine,
        "engine, not recorded": functools.partial(engine, record_forwards=False),
    }
    if pipeline.device.type == "cpu" and importlib.util.find_spec("openvino"):
        sides["engine, openvino"] = functools.partial(engine, "openvino")
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, side in sides.items():
            seconds[name] += in_thread(side)
    base = statistics.median(seconds["pipe()"])
    for name, each in seconds.items():
        median = statistics.median(each)
        print(
            f"{name:20} {median:6.2f} s ({min(each):.2f} to {max(each):.2f}), "
            f"{median / base:.2f} of pipe()"
        )


def timed(render: Callable[[], Any], number: int) -> list[float]:
    """Seconds of each, after one that warms up."""
    seconds = []
    for _ in range(number + 1):
        started = time.perf_counter()
        render()
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="postcard")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--size", type=int, default=256, help="pixels per side (%(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="(%(default)s)")
    parser.add_argument("--requests", type=int, default=5, help="per round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    restart_with(CPU_WORKER)  # as workers of both doors run
    main()
