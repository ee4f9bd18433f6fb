"""The engine at saturation beside its raw limit: the same forwards in a bare loop.

Every call of denoiser and decoder that the engine makes is kept once. Then engine and a loop that
does nothing but these calls, with the same layers, recordings and numbers of rows, take turns; with
--service also a service on this machine, which is asked for the same pictures and is idle else. All
prompts are encoded before. The median of the rounds' ratios counts: the sides of a round have the
machine in one mood. The process has the memory settings that the doors give theirs.

python benchmarks/saturation.py --sizes 128 256
python benchmarks/saturation.py --service --num-cpus 1
"""

import argparse
import asyncio
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from arguments import add_num_cpus
from diffusers import DiffusionPipeline
from in_thread import in_thread
from rows import recorded
from workloads import Client

from shared.config import EngineConfig, ModelConfig
from shared.cpu_workers import CPU_WORKER, restart_with
from shared.engine import DenoiseEngine
from shared.engine.calls import replaced
from shared.engine.layers import rows_kept_apart
from shared.pipeline import load_pipeline

Forward = Callable[[], Any]


def main(options: argparse.Namespace) -> None:
    pipeline = load_pipeline(ModelConfig(name=options.model, dtype=options.dtype))
    print(
        f"{options.requests} requests of {options.steps} steps, {pipeline.dtype} on "
        f"{pipeline.device}, {torch.get_num_threads()} threads"
    )
    with service(options) if options.service else nullcontext() as url:
        for size in options.sizes:
            seconds = measure(pipeline, size, options, url)
            for name in [side for side in seconds if side != "bare"]:
                print(f"{size:4} px, {name}: {told(seconds[name], seconds['bare'], options)}")


@contextmanager
def service(options: argparse.Namespace) -> Iterator[str]:
    from local_service import local_service  # it starts what only this needs

    model = {"name": options.model, "dtype": options.dtype}
    with local_service(model=model, num_cpus=options.num_cpus) as found:
        yield found.url


def measure(
    pipeline: DiffusionPipeline, size: int, options: argparse.Namespace, url: str | None
) -> dict[str, list[float]]:
    """Seconds of each round, by side."""
    asked = wanted(size, options)
    forwards: list[Forward] = []
    with (
        kept(pipeline.unet, "forward", forwards),
        kept(pipeline.vae, "decode", forwards),
        DenoiseEngine(pipeline, EngineConfig(record_forwards=False)) as engine,
    ):
        render(engine, asked)

    def bare() -> float:
        return in_thread(lambda: bare_loop(pipeline, forwards))

    sides = {"engine": lambda: in_engine(pipeline, asked), "bare": bare}
    if url:
        over_http(url, asked, options.steps)
        sides["service"] = lambda: over_http(url, asked, options.steps)
    rounds = [{name: side() for name, side in sides.items()} for _ in range(options.rounds)]
    return {name: [each[name] for each in rounds] for name in sides}


def told(seconds: list[float], bare: list[float], options: argparse.Namespace) -> str:
    shares = [100 * limit / each for limit, each in zip(bare, seconds, strict=True)]
    low, median, high = statistics.quantiles(shares)
    return (
        f"{options.requests / statistics.median(seconds):.2f} images/s, "
        f"{median:.1f} % of the raw limit (half of the rounds {low:.1f} to {high:.1f})"
    )


def wanted(size: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    same = {"width": size, "height": size, "num_inference_steps": options.steps}
    return [{"prompt": f"twin peaks, view {i % 8}"} | same for i in range(options.requests)]


@contextmanager
def kept(module: torch.nn.Module, method: str, forwards: list[Forward]) -> Iterator[None]:
    own = getattr(module, method)

    @functools.wraps(own)
    def keep(*args: Any, **kwargs: Any) -> Any:
        forwards.append(lambda: getattr(module, method)(*args, **kwargs))
        return own(*args, **kwargs)

    with replaced(module, method, keep):
        yield


def in_engine(pipeline: DiffusionPipeline, asked: list[dict[str, Any]]) -> float:
    with DenoiseEngine(pipeline) as engine:
        return second_time(lambda: render(engine, asked))


def render(engine: DenoiseEngine, asked: list[dict[str, Any]]) -> None:
    for ticket in [engine.submit(**each) for each in asked]:
        ticket.result()


def over_http(url: str, asked: list[dict[str, Any]], steps: int) -> float:
    calls = [each | {"seed": 0} for each in asked]
    found = asyncio.run(Client(url, steps).closed_loop(calls, len(calls)))
    assert not found.num_failed
    return len(asked) / found.pictures_per_s


@torch.no_grad()
def bare_loop(pipeline: DiffusionPipeline, forwards: list[Forward]) -> float:
    with rows_kept_apart(pipeline.unet), recorded(pipeline):
        return second_time(lambda: [forward() for forward in forwards])


def second_time(work: Callable[[], Any]) -> float:
    """Its seconds; the first time forwards are recorded."""
    work()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="postcard")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--service", action="store_true", help="and over HTTP")
    add_num_cpus(parser, "for each side")
    return parser.parse_args()


if __name__ == "__main__":
    options = _parse()
    restart_with(CPU_WORKER | {"OMP_NUM_THREADS": str(options.num_cpus)})
    main(options)
