"""Milliseconds per row of a UNet forward and of a decode, for each number of rows and size.

The UNet's layers are the engine's, and its forwards and decodes are recorded as there.

python benchmarks/rows.py --sizes 128 256
python benchmarks/rows.py --sizes 128 256 --compile openvino
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline

from shared.arguments import add_compile
from shared.config import Compiler, ModelConfig
from shared.cpu_workers import CPU_WORKER, restart_with
from shared.engine.compiled import compilable, recorded_decode
from shared.engine.layers import rows_kept_apart
from shared.pipeline import load_pipeline

_ROW_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)
UNTIL_RECORDED = 8  # calls, and the faster way to replay it is known
_MAX_LATENTS = 40_000  # larger forwards take too long, or too much memory, to tell anything


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="postcard")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256, 512, 640])
    add_compile(parser)
    options = parser.parse_args()
    pipeline = load_pipeline(ModelConfig(name=options.model, dtype=options.dtype))
    print(f"{pipeline.dtype} on {pipeline.device}, {torch.get_num_threads()} threads")
    with rows_kept_apart(pipeline.unet), recorded(pipeline):
        if options.compile:
            compile_(pipeline, options.compile)
        report(pipeline, options.sizes)


def compile_(pipeline: DiffusionPipeline, compiler: Compiler) -> None:
    config, of = pipeline.unet.config, {"device": pipeline.device, "dtype": pipeline.dtype}
    example = {
        "sample": torch.randn(10, config.in_channels, 16, 32, **of),
        "timestep": torch.full((10,), 500.0, device=pipeline.device),
        "encoder_hidden_states": torch.randn(10, 77, config.cross_attention_dim, **of),
        "return_dict": False,
    }
    started = time.perf_counter()
    pipeline.unet.forward.compile(compiler, example)
    print(f"compiled by {compiler} in {time.perf_counter() - started:.1f} s")


def report(pipeline: DiffusionPipeline, sizes: Sequence[int]) -> None:
    for size in sizes:
        side = size // pipeline.vae_scale_factor
        for name, forward in forwards(pipeline, side).items():
            cells = [f"{n}: {milliseconds(forward, n) / n:.1f}" for n in row_counts(side)]
            print(f"{name:6} {size:4} px  {'  '.join(cells)}")


def row_counts(side: int) -> list[int]:
    return [n for n in _ROW_COUNTS if n * side**2 <= _MAX_LATENTS]


@contextmanager
def recorded(pipeline: DiffusionPipeline) -> Iterator[None]:
    with compilable(pipeline.unet, lambda: False), recorded_decode(pipeline.vae):
        yield


def forwards(pipeline: DiffusionPipeline, side: int) -> dict[str, Callable[[int], Any]]:
    """Of so many rows, as they are now."""
    config, device, dtype = pipeline.unet.config, pipeline.device, pipeline.dtype
    denoise, decode = pipeline.unet.forward, pipeline.vae.decode
    most = max(_ROW_COUNTS)
    latents = torch.randn(most, config.in_channels, side, side, device=device, dtype=dtype)
    text = torch.randn(most, 77, config.cross_attention_dim, device=device, dtype=dtype)
    time_of_row = torch.full((most,), 500.0, device=device)
    return {
        "unet": lambda n: denoise(
            sample=latents[:n],
            timestep=time_of_row[:n],
            encoder_hidden_states=text[:n],
            return_dict=False,
        ),
        "decode": lambda n: decode(z=latents[:n], return_dict=False),
    }


def milliseconds(forward: Callable[[int], Any], rows: int) -> float:
    for _ in range(UNTIL_RECORDED):
        forward(rows)
    return 1000 * statistics.median(seconds(forward, rows) for _ in range(max(3, 12 // rows)))


def seconds(forward: Callable[[int], Any], rows: int) -> float:
    """Of one call."""
    _wait_for_device()
    started = time.perf_counter()
    forward(rows)
    _wait_for_device()
    return time.perf_counter() - started


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    restart_with(CPU_WORKER)
    main()
