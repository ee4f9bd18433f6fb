"""Serve's autoscaling by requests beside ours by seconds of work: the same hours of mixed load.

python benchmarks/autoscaling.py
python benchmarks/autoscaling.py --kinds large --plot autoscaling.png

Simulated, with forwards that take what an engine takes on this machine. Small requests and large
ones come in waves that do not keep step; either kind alone keeps up to four replicas busy.
"""

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import simpy
from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy
from ray.serve.config import AutoscalingConfig
from virtual_service import ForwardTimes, Job, Policy, VirtualService, wave
from workloads import quantile

from serving.autoscaling import ReplicasByWork
from shared.config import EngineConfig
from shared.cpu_workers import CPU_WORKER, restart_with
from shared.engine import DenoiseEngine
from shared.pipeline import load_pipeline

HOURS = 4
KINDS = {"small": (128, 20), "large": (512, 50)}  # pixels a side, and steps
PERIODS = {"small": 1.0, "large": 1.7}  # hours from wave to wave
PEAK = 4.0
BY_REQUESTS, BY_WORK = "target_ongoing_requests", "clear_within_s"
SETTINGS = {BY_REQUESTS: (1, 2, 4, 8, 16, 32), BY_WORK: (2, 5, 10, 20, 40, 80)}


@dataclass(frozen=True)
class Found:
    """Of one policy and setting; p95 by kind, and `refused` is a share of all requests."""

    policy: str
    setting: int
    replica_hours: float
    p95_s: dict[str, float]
    refused: float

    def __str__(self) -> str:
        p95 = ", ".join(f"{seconds:5.1f} s ({kind})" for kind, seconds in self.p95_s.items())
        return (
            f"{self.policy} {self.setting:2}: {self.replica_hours:5.1f} hours of replicas, "
            f"p95 {p95}, {self.refused:.1%} refused"
        )


def main() -> None:
    options = _parse()
    times = measured_times()
    print(times)
    found = []
    for name, settings in SETTINGS.items():
        for setting in settings:
            found.append(simulate(times, name, setting, options.kinds))
            print(found[-1], flush=True)
    if options.plot:
        plot(found, options.plot)


def measured_times() -> ForwardTimes:
    """Of an engine with the bundled model, in this process."""
    side, _ = KINDS["small"]
    request = {"prompt": "twin peaks", "width": side, "height": side, "num_inference_steps": 20}
    with DenoiseEngine(load_pipeline()) as engine:

        def ask(number: int) -> None:
            for ticket in [engine.submit(**request) for _ in range(number)]:
                ticket.result()

        return ForwardTimes.measured(side * side, engine.counters, ask)


def simulate(times: ForwardTimes, name: str, setting: int, kinds: Sequence[str]) -> Found:
    policy: Policy = replica_queue_length_autoscaling_policy
    config = AutoscalingConfig(min_replicas=1, max_replicas=20)
    if name == BY_WORK:
        policy = ReplicasByWork(setting)
    else:
        config = config.model_copy(update={name: setting})
    clock = simpy.Environment()
    service = VirtualService(clock, times)
    clock.process(service.autoscale(config, policy))
    for kind in kinds:
        clock.process(arrivals(service, times, kind))
    clock.run(until=HOURS * 3600)
    num_finished = len(service.finished)
    return Found(
        name,
        setting,
        service.replica_s / 3600,
        {kind: p95_s(service, kind) for kind in kinds},
        service.num_refused / (service.num_refused + num_finished),
    )


def arrivals(service: VirtualService, times: ForwardTimes, kind: str) -> Iterator[simpy.Event]:
    """A process: at a rate that rises and falls."""
    side, steps = KINDS[kind]
    return service.arrivals(
        lambda: Job(side**2, steps),
        PEAK / times.share_s(side**2, steps, EngineConfig()),
        lambda now: wave(now, 3600 * PERIODS[kind]),
        random.Random(kind),
    )


def p95_s(service: VirtualService, kind: str) -> float:
    side, _ = KINDS[kind]
    return quantile([job.latency_s for job in service.finished if job.size == side**2], 0.95)


def plot(found: list[Found], file: Path) -> None:
    from matplotlib import pyplot  # the bench extra; only this needs it

    kinds = [*found[0].p95_s]
    figure, panels = pyplot.subplots(
        1, len(kinds), figsize=(4.5 * len(kinds), 3.5), layout="constrained", squeeze=False
    )
    for panel, kind in zip(panels[0], kinds, strict=True):
        for policy in SETTINGS:
            some = [each for each in found if each.policy == policy]
            hours = [each.replica_hours for each in some]
            panel.plot(hours, [each.p95_s[kind] for each in some], "o-", label=policy)
            for each in some:
                place = (each.replica_hours, each.p95_s[kind])
                panel.annotate(f" {each.setting}", place, fontsize=8)
        panel.set_yscale("log")
        panel.set_xlabel("hours of replicas")
        panel.set_ylabel(f"p95 of {kind} requests, s")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].legend(frameon=False)
    figure.savefig(file, dpi=120)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS])
    parser.add_argument("--plot", type=Path, help="a PNG file to draw it into")
    return parser.parse_args()


if __name__ == "__main__":
    restart_with(CPU_WORKER)
    main()
