"""What a second team of OpenMP workers costs the engine: the same picture without and with one.

python benchmarks/openmp_teams.py
"""

import statistics
import time

import torch
from diffusers import DiffusionPipeline

from shared.engine import DenoiseEngine
from shared.pipeline import load_pipeline

ROUNDS = 5


def main() -> None:
    pipeline = load_pipeline()
    alone = seconds_per_picture(pipeline)
    torch.rand(10_000_000).exp_()  # large enough that this thread starts a team of workers
    crowded = seconds_per_picture(pipeline)
    print(f"{torch.get_num_threads()} threads, 256 px, 20 steps, medians of {ROUNDS}")
    print(f"the engine's team alone     {alone:.2f} s")
    print(f"beside another thread's     {crowded:.2f} s ({crowded / alone:.2f} times)")


def seconds_per_picture(pipeline: DiffusionPipeline) -> float:
    seconds = []
    with DenoiseEngine(pipeline) as engine:
        for _ in range(ROUNDS + 1):
            started = time.perf_counter()
            engine.submit(prompt="twin peaks", num_inference_steps=20).result()
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])  # the first warms up


if __name__ == "__main__":
    main()
