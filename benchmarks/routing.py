"""To which replica a request goes, and what small and large requests wait for it.

python benchmarks/routing.py

Simulated, as in autoscaling.py, with a fixed number of replicas and requests at random moments, so
many that their work is a share of what the replicas can do.
"""

import argparse
import itertools
import random

import simpy
from autoscaling import KINDS, measured_times, p95_s
from virtual_service import BY_BURDEN, ForwardTimes, Job, Routing, VirtualService

from shared.config import EngineConfig
from shared.cpu_workers import CPU_WORKER, restart_with

ROUTINGS = {
    "fewest requests, of two (Serve's)": Routing(lambda job: 1, most_compared=2),
    "fewest requests": Routing(lambda job: 1),
    "least work": Routing(lambda job: job.pixel_steps),
    "least root of work": BY_BURDEN,
}
REPLICAS = (2, 4, 16)
LOADS = (0.6, 0.9)
LARGE = (0.02, 0.1)  # share of all requests


def main() -> None:
    options = _parse()
    times = measured_times()
    print(f"{times}\np95 of {options.hours} hours, in seconds: small, large")
    print("| replicas | load | large ones |", *(f"{name} |" for name in ROUTINGS))
    for number, load, large in itertools.product(REPLICAS, LOADS, LARGE):
        cells = [
            simulate(times, each, number, load, large, options.hours) for each in ROUTINGS.values()
        ]
        print(f"| {number} | {load} | {large} |", *(f"{cell} |" for cell in cells), flush=True)


def simulate(
    times: ForwardTimes, routing: Routing, number: int, load: float, large: float, hours: float
) -> str:
    shares = {"small": 1 - large, "large": large}
    costs = {
        kind: times.share_s(side**2, steps, EngineConfig()) for kind, (side, steps) in KINDS.items()
    }
    chance = random.Random(0)

    def job() -> Job:
        (kind,) = chance.choices([*shares], [*shares.values()])
        side, steps = KINDS[kind]
        return Job(side**2, steps)

    clock = simpy.Environment()
    service = VirtualService(clock, times, num_replicas=number, routing=routing)
    per_s = number * load / sum(share * costs[kind] for kind, share in shares.items())
    clock.process(service.arrivals(job, per_s, lambda now: 1.0, random.Random(1)))
    clock.run(until=3600 * hours)
    assert not service.num_refused
    return ", ".join(f"{p95_s(service, kind):.1f}" for kind in KINDS)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=1.0, help="of each (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    restart_with(CPU_WORKER)
    main()
