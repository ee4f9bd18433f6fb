"""The row rule of this machine, and what equal bytes cost: throughput with them and without.

python benchmarks/row_rules.py --dtype float32 --sizes 64 128 256
"""

import argparse
import statistics
import time

import torch
from diffusers import DiffusionPipeline

from shared.config import EngineConfig, ModelConfig
from shared.engine import DenoiseEngine
from shared.pipeline import load_pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="postcard")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    pipeline = load_pipeline(ModelConfig(name=options.model, dtype=options.dtype))
    print(f"{pipeline.dtype} on {pipeline.device}, {torch.get_num_threads()} threads")
    for size in options.sizes:
        with DenoiseEngine(pipeline) as engine:
            rules = engine.find_row_rules(
                prompt="a", width=size, height=size, num_inference_steps=1
            )
        for module, rule in rules.items():
            print(f"{size:4} px  {module}: row counts of equal bits: {shown(rule.counts)}")
    for size in options.sizes:
        for number in (1, 5, 16):
            ratio = cost(pipeline, size, number, options.rounds)
            print(f"{size:4} px, {number:2} at once: with equal bytes {ratio:.3f} times as fast")


def shown(counts: tuple[int, ...]) -> str:
    return " ".join(map(str, counts))


def cost(pipeline: DiffusionPipeline, size: int, number: int, rounds: int) -> float:
    """Speed with equal bytes over speed without: the median over rounds that run both."""
    ratios = []
    for _ in range(rounds):
        seconds = [render(pipeline, size, number, equal) for equal in (True, False)]
        ratios.append(seconds[1] / seconds[0])
    return statistics.median(ratios)


def render(pipeline: DiffusionPipeline, size: int, number: int, byte_identical: bool) -> float:
    request = {"prompt": "a", "width": size, "height": size, "num_inference_steps": 8}
    with DenoiseEngine(pipeline, EngineConfig(byte_identical=byte_identical)) as engine:
        engine.submit(**request).result()  # warms it up
        started = time.perf_counter()
        for ticket in [engine.submit(**request) for _ in range(number)]:
            ticket.result()
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
