"""Thousands of requests on a tiny model, some cancelled, some failing: is all memory given back?

python benchmarks/soak.py --requests 10000
"""

import argparse
import collections
import gc
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for the tests' tiny model

from shared.config import EngineConfig
from shared.engine import DenoiseEngine, Priority, Ticket
from shared.errors import DeadlineExceeded
from tests.small_models import small_stable_diffusion

WINDOW = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    options = parser.parse_args()
    chance = random.Random(0)
    ends: collections.Counter[str] = collections.Counter()
    started = time.perf_counter()
    with DenoiseEngine(small_stable_diffusion(), EngineConfig(max_queued=WINDOW)) as engine:
        open_tickets: collections.deque[Ticket] = collections.deque()
        for number in range(1, options.requests + 1):
            if number % (options.requests // 10) == 0:
                gc.collect()
                rate = number / (time.perf_counter() - started)
                print(f"{number:6} requests, {rss_mb():.1f} MB, {rate:.0f} requests/s", flush=True)
            try:
                open_tickets.append(submit(engine, chance, number))
            except DeadlineExceeded:
                ends["refused"] += 1
                continue
            if chance.random() < 0.1:
                chance.choice(open_tickets).cancel()
            if len(open_tickets) == WINDOW:
                ends[end_of(open_tickets.popleft())] += 1
        ends.update(end_of(ticket) for ticket in open_tickets)
    print(f"all ended: {dict(ends)}")
    print(engine.counters())


def submit(engine: DenoiseEngine, chance: random.Random, number: int) -> Ticket:
    fate = chance.random()

    def fail(*_: Any) -> dict[str, Any]:
        raise ZeroDivisionError

    return engine.submit(
        prompt=f"view {number % 500}",
        width=chance.choice([32, 64]),
        height=64,
        num_inference_steps=chance.randint(1, 4),
        guidance_scale=chance.choice([1.0, 4.0]),
        generator=torch.Generator().manual_seed(number),
        priority=chance.choice(list(Priority)),
        timeout_s=0.0001 if 0.9 < fate < 0.95 else 60,
        callback_on_step_end=fail if fate > 0.95 else None,
    )


def end_of(ticket: Ticket) -> str:
    try:
        ticket.result(timeout=60)
    except Exception as error:
        return type(error).__name__
    return "picture"


def rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
