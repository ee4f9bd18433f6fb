"""The engine at saturation beside its raw limit: the same forwards in a bare loop.

Every forward that the engine runs, of text encoder, denoiser and decoder, is recorded once. Then
engine and a loop that does nothing but these forwards, with the same layers and numbers of rows,
take turns. The median of the rounds' ratios counts: the two sides of a round have the machine in
one mood. The process has the memory settings that the doors give theirs.

python benchmarks/saturation.py --sizes 128 256
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline
from in_thread import in_thread

from shared.config import ModelConfig
from shared.cpu_workers import CPU_WORKER, restart_with
from shared.engine import DenoiseEngine
from shared.engine.calls import replaced
from shared.engine.layers import rows_kept_apart
from shared.pipeline import load_pipeline

Forward = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="postcard")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    pipeline = load_pipeline(ModelConfig(name=options.model, dtype=options.dtype))
    print(
        f"{options.requests} requests of {options.steps} steps, {pipeline.dtype} on "
        f"{pipeline.device}, {torch.get_num_threads()} threads"
    )
    for size in options.sizes:
        engine_s, bare_s = measure(pipeline, size, options)
        shares = [100 * bare / engine for bare, engine in zip(bare_s, engine_s, strict=True)]
        low, median, high = statistics.quantiles(shares)
        print(
            f"{size:4} px: {options.requests / statistics.median(engine_s):.2f} images/s, "
            f"{median:.1f} % of the raw limit (half of the rounds {low:.1f} to {high:.1f})"
        )


def measure(
    pipeline: DiffusionPipeline, size: int, options: argparse.Namespace
) -> tuple[list[float], list[float]]:
    forwards: list[Forward] = []
    with (
        recorded(pipeline.text_encoder, "forward", forwards),
        recorded(pipeline.unet, "forward", forwards),
        recorded(pipeline.vae, "decode", forwards),
    ):
        in_engine(pipeline, size, options)
    engine_s, bare_s = [], []
    for _ in range(options.rounds):
        engine_s.append(in_engine(pipeline, size, options))
        with rows_kept_apart(pipeline.unet):
            bare_s.append(in_thread(lambda: bare_loop(forwards)))
    return engine_s, bare_s


@contextmanager
def recorded(module: torch.nn.Module, method: str, forwards: list[Forward]) -> Iterator[None]:
    own = getattr(module, method)

    @functools.wraps(own)
    def record(*args: Any, **kwargs: Any) -> Any:
        forwards.append(functools.partial(own, *args, **kwargs))
        return own(*args, **kwargs)

    with replaced(module, method, record):
        yield


def in_engine(pipeline: DiffusionPipeline, size: int, options: argparse.Namespace) -> float:
    prompts = [f"twin peaks, view {i % 8}" for i in range(options.requests)]
    with DenoiseEngine(pipeline) as engine:
        started = time.perf_counter()
        tickets = [
            engine.submit(prompt=prompt, width=size, height=size, num_inference_steps=options.steps)
            for prompt in prompts
        ]
        for ticket in tickets:
            ticket.result()
        return time.perf_counter() - started


@torch.no_grad()
def bare_loop(forwards: list[Forward]) -> float:
    started = time.perf_counter()
    for forward in forwards:
        forward()
    return time.perf_counter() - started


if __name__ == "__main__":
    restart_with(CPU_WORKER)
    main()
