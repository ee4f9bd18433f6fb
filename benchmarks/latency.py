"""Who waits for whom: small beside large, many sizes at once, online requests beside bulk work.

python benchmarks/latency.py
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from diffusers import DiffusionPipeline
from workloads import MEAN_STEPS, Call, calls, num_pictures, quantile

from shared.config import EngineConfig, ModelConfig
from shared.engine import DenoiseEngine, Priority, Ticket
from shared.pipeline import load_pipeline

SMALL = {"prompt": "twin peaks", "width": 128, "height": 128, "num_inference_steps": 10}
LARGE = {"prompt": "twin peaks", "width": 640, "height": 640, "num_inference_steps": 50}
NUM_SMALL, NUM_BULK, NUM_ONLINE = 40, 64, 20
NUM_MIXED, NUM_CALLERS = 64, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="postcard")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    pipeline = load_pipeline(ModelConfig(name=options.model))
    fairness(pipeline, options.rounds)
    many_sizes(pipeline, options.rounds)
    priority(pipeline, options.rounds)


def fairness(pipeline: DiffusionPipeline, rounds: int) -> None:
    print(f"one request of 640 px and 50 steps among {NUM_SMALL} of 128 px and 10 steps")
    ratios = []
    for _ in range(rounds):
        with DenoiseEngine(pipeline) as engine:
            engine.submit(**SMALL).result()
            (large_alone,) = seconds(engine, [LARGE])
            alone = seconds(engine, [SMALL] * NUM_SMALL)
            large, *beside = seconds(engine, [LARGE] + [SMALL] * NUM_SMALL)
        ratios.append(p95(beside) / p95(alone))
        print(
            f"  small: p95 {p95(alone):.2f} s alone, {p95(beside):.2f} s beside the large one: "
            f"{ratios[-1]:.2f} times; large: {large_alone:.1f} s alone, {large:.1f} s here"
        )
    print(f"  median of the small ones' ratios: {statistics.median(ratios):.2f}")


def seconds(engine: DenoiseEngine, requests: Sequence[dict[str, Any]]) -> list[float]:
    """Of each request, from its submission to its picture; all are submitted at once."""
    with ThreadPoolExecutor(len(requests)) as threads:
        started = time.perf_counter()
        tickets = [engine.submit(**request) for request in requests]
        return list(threads.map(lambda ticket: finish(ticket) - started, tickets))


def finish(ticket: Ticket) -> float:
    ticket.result()
    return time.perf_counter()


def many_sizes(pipeline: DiffusionPipeline, rounds: int) -> None:
    print(f"{NUM_MIXED} requests of 128 to 256 px a side and 10 to 50 steps, {NUM_CALLERS} at once")
    wanted = calls(NUM_MIXED, "all", 128)
    pictures = sum(num_pictures(call, MEAN_STEPS["all"]) for call in wanted)
    for _ in range(rounds):
        started = time.perf_counter()
        latencies = asked_by_callers(pipeline, wanted)
        rate = pictures / (time.perf_counter() - started)
        print(
            f"  {rate:.2f} pictures/s, p50 {quantile(latencies, 0.5):.1f} s, "
            f"p95 {quantile(latencies, 0.95):.1f} s"
        )


def asked_by_callers(pipeline: DiffusionPipeline, wanted: Sequence[Call]) -> list[float]:
    with DenoiseEngine(pipeline) as engine, ThreadPoolExecutor(NUM_CALLERS) as callers:

        def ask(call: Call) -> float:
            arguments = {name: value for name, value in call.items() if name != "seed"}
            return seconds(engine, [arguments])[0]

        return list(callers.map(ask, wanted))


def priority(pipeline: DiffusionPipeline, rounds: int) -> None:
    print(f"{NUM_ONLINE} online requests in a row, without and with {NUM_BULK} bulk ones in flight")
    for _ in range(rounds):
        with DenoiseEngine(
            pipeline, EngineConfig(max_in_flight=NUM_BULK, max_queued_bulk=NUM_BULK)
        ) as engine:
            engine.submit(**SMALL).result()
            without = one_by_one(engine)
            bulk = [
                engine.submit(**SMALL | {"num_inference_steps": 150}, priority=Priority.BULK)
                for _ in range(NUM_BULK)
            ]
            while engine.counters().bulk.num_in_flight < NUM_BULK:
                time.sleep(0.05)
            forward_s = bulk_forward_s(engine)
            beside = one_by_one(engine)
            unfinished = sum(not ticket.done() for ticket in bulk)
            engine.close(cancel=True)
        bound = 1.25 * p95(without) + forward_s
        print(
            f"  p95 {p95(without):.2f} s without, {p95(beside):.2f} s with; 1.25 times and one "
            f"forward of {forward_s:.2f} s would be {bound:.2f} s ({unfinished} bulk left)"
        )


def one_by_one(engine: DenoiseEngine) -> list[float]:
    return [seconds(engine, [SMALL])[0] for _ in range(NUM_ONLINE)]


def bulk_forward_s(engine: DenoiseEngine) -> float:
    """Seconds of a forward while only bulk work runs."""
    before = engine.counters()
    time.sleep(3)
    after = engine.counters()
    forwards = [each.num_forwards for each in (before, after)]
    return (after.busy_s - before.busy_s) / max(1, forwards[1] - forwards[0])


def p95(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


if __name__ == "__main__":
    main()
