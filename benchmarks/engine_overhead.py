"""What the engine adds to each step of each request, beside what the pipeline's own code takes.

The forwards cost nothing here: the denoiser gives its input back. What is left on one side is the
pipeline's Python (guidance, noise scheduler), on the other the same and the engine's.

python benchmarks/engine_overhead.py --requests 16
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

from diffusers import DiffusionPipeline
from in_thread import in_thread
from torch import Tensor

from shared.engine import DenoiseEngine
from shared.engine.calls import replaced
from shared.pipeline import load_pipeline

FEW, MANY = 10, 110


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    pipeline = load_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    own: list[float] = []
    engine: list[float] = []
    with replaced(pipeline.unet, "forward", free_forward(pipeline)):
        for _ in range(options.rounds + 1):
            own.append(in_thread(lambda: step_us(plain, pipeline, options)))
            engine.append(in_thread(lambda: step_us(in_engine, pipeline, options)))
    # The first round warms both sides up.
    added = statistics.median(b - a for a, b in zip(own[1:], engine[1:], strict=True))
    print(f"{options.requests} requests of {options.size} px, medians of {options.rounds} rounds")
    print(f"the pipeline's own code   {statistics.median(own[1:]):6.1f} us per request and step")
    print(f"in the engine             {statistics.median(engine[1:]):6.1f}")
    print(f"the engine adds           {added:6.1f}")


def free_forward(pipeline: DiffusionPipeline) -> Callable[..., tuple[Tensor]]:
    @functools.wraps(pipeline.unet.forward)
    def forward(sample: Tensor, *_: Any, **__: Any) -> tuple[Tensor]:
        return (sample,)

    return forward


def step_us(
    render: Callable[[DiffusionPipeline, list[dict[str, Any]]], None],
    pipeline: DiffusionPipeline,
    options: argparse.Namespace,
) -> float:
    """Microseconds of a step, from runs of few steps and of many: what comes once falls out."""
    seconds = []
    for steps in (FEW, MANY):
        request = {
            "prompt": "a",
            "width": options.size,
            "height": options.size,
            "num_inference_steps": steps,
            "output_type": "latent",
        }
        started = time.perf_counter()
        render(pipeline, [request] * options.requests)
        seconds.append(time.perf_counter() - started)
    return (seconds[1] - seconds[0]) / (MANY - FEW) / options.requests * 1e6


def plain(pipeline: DiffusionPipeline, requests: list[dict[str, Any]]) -> None:
    for request in requests:
        pipeline(**request)


def in_engine(pipeline: DiffusionPipeline, requests: list[dict[str, Any]]) -> None:
    with DenoiseEngine(pipeline) as engine:
        for ticket in [engine.submit(**request) for request in requests]:
            ticket.result()


if __name__ == "__main__":
    main()
