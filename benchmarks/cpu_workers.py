"""What the workers' environment brings: the same pictures in processes with a setting and without.

python benchmarks/cpu_workers.py --sizes 64 96 128
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

from shared.cpu_workers import KEEP_FREED_MEMORY, KEEP_MADE_CODE, SLEEP_BETWEEN_FORWARDS
from shared.engine import DenoiseEngine
from shared.pipeline import load_pipeline

SETTINGS = {
    "keep freed memory": KEEP_FREED_MEMORY,
    "sleep between forwards": SLEEP_BETWEEN_FORWARDS,
    "keep made code": KEEP_MADE_CODE,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[128], help="mixed")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3, help="pairs of processes")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(render(options.sizes, options.requests)))
        return
    sizes = ", ".join(map(str, options.sizes))
    for name, settings in SETTINGS.items():
        pairs = [
            [in_process(options.sizes, options.requests, env) for env in (settings, {})]
            for _ in range(options.rounds)
        ]
        runs = dict(zip(("with", "without"), zip(*pairs, strict=True), strict=True))
        print(f"{sizes} px, {options.requests} requests of 10 to 30 steps: {name}")
        for side, each in runs.items():
            print(
                f"  {side:8} {median(each, 'seconds'):6.2f} s, "
                f"{median(each, 'page_faults') / 1000:8.1f} thousand page faults, "
                f"at most {median(each, 'max_mb'):.0f} MB"
            )
        ratios = [without["seconds"] / with_it["seconds"] for with_it, without in pairs]
        print(f"  {statistics.median(ratios):.3f} times as fast (pair by pair)", flush=True)


def median(runs: tuple[dict[str, float], ...], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def in_process(sizes: list[int], requests: int, env: dict[str, str]) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", f"--requests={requests}"]
    command += ["--sizes", *map(str, sizes)]
    done = subprocess.run(
        command, env=os.environ | env, check=True, stdout=subprocess.PIPE, text=True
    )
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def render(sizes: list[int], requests: int) -> dict[str, float]:
    with DenoiseEngine(load_pipeline()) as engine:
        render_all(engine, sizes, requests)  # what is made once is made then
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        started = time.perf_counter()
        render_all(engine, sizes, requests)
        seconds = time.perf_counter() - started
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": seconds,
        "page_faults": usage.ru_minflt - faults,
        "max_mb": usage.ru_maxrss / 1024,
    }


def render_all(engine: DenoiseEngine, sizes: list[int], requests: int) -> None:
    """Of 10 to 30 steps, every fourth without guidance: forwards have any number of rows."""
    tickets = [
        engine.submit(
            prompt=f"view {i}",
            width=sizes[i % len(sizes)],
            height=sizes[i % len(sizes)],
            num_inference_steps=10 + i % 21,
            guidance_scale=4.0 if i % 4 else 1.0,
        )
        for i in range(requests)
    ]
    for ticket in tickets:
        ticket.result()


if __name__ == "__main__":
    main()
