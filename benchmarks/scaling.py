"""What the simulated service says beside what a real one does, with one replica and with two.

python benchmarks/scaling.py

Each replica has one core. How long forwards take is measured with equal requests of 1 to 32
callers for each replica, since these and Ray share the machine; then loads of other steps follow,
by the service and in virtual time.
"""

import argparse
import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence

import simpy
from local_service import ROOM, LocalService, local_service
from virtual_service import ForwardTimes, Job, VirtualService
from workloads import (
    MEAN_STEPS,
    Answer,
    Arrival,
    Call,
    Client,
    Outcome,
    calls,
    outcome,
    poisson,
    quantile,
)

from shared.counters import EngineCounters, RequestCounters

SIZE = 128
CALLERS = 16
REPLICAS = (1, 2)
_CORE = {"num_cpus": 1}
_STEPS = MEAN_STEPS["steps"]


def main() -> None:
    options = _parse()
    with local_service(cluster_cpus=ROOM, **_CORE) as service:
        for number in REPLICAS:
            if number > 1:
                service.deploy(num_generators=number, **_CORE)
            times = measured_times(service, number)
            print(f"{number} replicas: {times}", flush=True)
            compare(service, times, number, options.calls)


def compare(service: LocalService, times: ForwardTimes, number: int, num_calls: int) -> None:
    client = Client(service.url, _STEPS)
    wanted = calls(num_calls * number, "steps", SIZE, seed=7)
    callers = CALLERS * number
    foreseen = virtual_closed_loop(times, number, wanted, callers)
    tell(
        f"{number} replicas, {callers} callers",
        foreseen,
        asyncio.run(client.closed_loop(wanted, callers)),
    )
    arrivals = [*poisson(wanted, 0.7 * foreseen.pictures_per_s)]
    tell(
        f"{number} replicas, {0.7 * foreseen.pictures_per_s:.2f} calls a second",
        virtual_open_loop(times, number, arrivals),
        asyncio.run(client.open_loop(arrivals)),
    )


def tell(name: str, foreseen: Outcome, found: Outcome) -> None:
    assert not found.num_failed
    print(name)
    for label, value in {
        "pictures/s": lambda each: each.pictures_per_s,
        "p50, s": lambda each: quantile(each.latencies_s, 0.5),
        "p95, s": lambda each: quantile(each.latencies_s, 0.95),
    }.items():
        said, was = value(foreseen), value(found)
        print(f"  {label:10}  foreseen {said:6.2f}  found {was:6.2f}  {said / was:.2f}", flush=True)


def measured_times(service: LocalService, number: int) -> ForwardTimes:
    """Of replicas that all have as many callers."""
    client = Client(service.url, _STEPS)

    def ask(callers: int) -> None:
        wanted = calls(3 * callers * number, "equal", SIZE)
        asyncio.run(client.closed_loop(wanted, callers * number))

    return ForwardTimes.measured(SIZE * SIZE, lambda: counters(service, number), ask)


def counters(service: LocalService, number: int) -> EngineCounters:
    """Of all replicas together."""
    found = service.engines(number).values()
    forwards = sum((Counter(each.forwards_by_requests) for each in found), Counter())
    return EngineCounters(
        forwards_by_requests=dict(forwards),
        online=RequestCounters(num_rows=sum(each.online.num_rows for each in found)),
        num_decodes=sum(each.num_decodes for each in found),
        busy_s=sum(each.busy_s for each in found),
        decode_s=sum(each.decode_s for each in found),
    )


def virtual_closed_loop(
    times: ForwardTimes, number: int, wanted: Sequence[Call], callers: int
) -> Outcome:
    clock = simpy.Environment()
    service = VirtualService(clock, times, num_replicas=number)
    left = iter(wanted)

    def keep_asking() -> Iterator[simpy.Event]:
        for call in left:
            yield from service.ask(_job(call))

    for _ in range(callers):
        clock.process(keep_asking())
    clock.run()
    return _outcome(service, callers)


def virtual_open_loop(times: ForwardTimes, number: int, arrivals: Sequence[Arrival]) -> Outcome:
    clock = simpy.Environment()
    service = VirtualService(clock, times, num_replicas=number)

    def come(arrival: Arrival) -> Iterator[simpy.Event]:
        yield clock.timeout(arrival.at_s)
        yield from service.ask(_job(arrival.call))

    for arrival in arrivals:
        clock.process(come(arrival))
    clock.run()
    return _outcome(service)


def _job(call: Call) -> Job:
    return Job(call["width"] * call["height"], call["num_inference_steps"])


def _outcome(service: VirtualService, callers: int = 0) -> Outcome:
    answers = [
        Answer(True, job.num_steps / _STEPS, job.finished_at, job.latency_s)
        for job in service.finished
    ]
    return outcome(answers, 0.0, callers)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=64, help="for each replica (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
