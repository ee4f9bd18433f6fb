"""A day of traffic on up to a thousand replicas, simulated by the service's own rules.

python benchmarks/day.py --plot day.png

Requests come at random moments, from a tenth of the peak at night to the peak at noon, which would
keep `--peak` replicas busy. `clear_within_s` decides how many there are. Forwards take what an
engine takes on this machine. A thousand replicas take it 11 minutes.
"""

import argparse
import random
import resource
import time
from functools import partial
from pathlib import Path

import simpy
from autoscaling import measured_times
from ray.serve.config import AutoscalingConfig
from virtual_service import DECIDE_S, Job, VirtualService, wave
from workloads import quantile

from serving.autoscaling import ReplicasByWork
from shared.config import EngineConfig
from shared.cpu_workers import CPU_WORKER, restart_with

HOUR = 3600
NIGHT = 0.1


def main() -> None:
    options = _parse()
    times = measured_times()
    print(times)
    work_s = times.share_s(options.side**2, options.steps, EngineConfig())
    print(f"{options.side} px and {options.steps} steps are {work_s:.1f} s of a replica's work")
    clock = simpy.Environment()
    service = VirtualService(clock, times)
    config = AutoscalingConfig(min_replicas=1, max_replicas=options.max_replicas)
    clock.process(service.autoscale(config, ReplicasByWork(options.clear_within_s)))
    jobs = partial(Job, options.side**2, options.steps)
    clock.process(service.arrivals(jobs, options.peak / work_s, load, random.Random(0)))
    begun = time.perf_counter()
    for hour in range(1, options.hours + 1):
        clock.run(until=hour * HOUR)
        print(
            f"{hour:2} h: {service.replicas[-1]} replicas, {len(service.finished)} pictures",
            flush=True,
        )
    report(service, work_s, time.perf_counter() - begun)
    if options.plot:
        plot(service, options)


def load(now: float) -> float:
    """What share of the peak's work comes now."""
    return NIGHT + (1 - NIGHT) * wave(now, 24 * HOUR)


def report(service: VirtualService, work_s: float, took_s: float) -> None:
    latencies = [job.latency_s for job in service.finished]
    needed = len(latencies) * work_s / HOUR
    hours = service.replica_s / HOUR
    print(
        f"{len(latencies)} pictures, {service.num_refused} refused, p50 "
        f"{quantile(latencies, 0.5):.0f} s, p95 {quantile(latencies, 0.95):.0f} s\n"
        f"up to {max(service.replicas)} replicas, {hours:.0f} hours of replicas, of which "
        f"{needed / hours:.0%} were work: {1000 * hours / len(latencies):.2f} hours for 1,000\n"
        f"simulated in {took_s:.0f} s, "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB"
    )


def plot(service: VirtualService, options: argparse.Namespace) -> None:
    from matplotlib import pyplot  # the bench extra; only this needs it

    hours = [DECIDE_S * turn / HOUR for turn in range(1, len(service.replicas) + 1)]
    figure, axes = pyplot.subplots(figsize=(8, 3), layout="constrained")
    axes.plot(hours, service.replicas, color="#b5451b", label="replicas")
    work = [options.peak * load(HOUR * each) for each in hours]
    axes.plot(hours, work, "k--", lw=1, label="work that comes")
    axes.set_xlabel("hour of the day")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(options.plot, dpi=120)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peak", type=float, default=850, help="replicas' work (%(default)s)")
    parser.add_argument("--max-replicas", type=int, default=1000, help="(%(default)s)")
    parser.add_argument("--hours", type=int, default=24, help="(%(default)s)")
    parser.add_argument("--side", type=int, default=1024, help="pixels (%(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="(%(default)s)")
    parser.add_argument("--clear-within-s", type=float, default=300, help="(%(default)s)")
    parser.add_argument("--plot", type=Path, help="a PNG file to draw it into")
    return parser.parse_args()


if __name__ == "__main__":
    restart_with(CPU_WORKER)
    main()
