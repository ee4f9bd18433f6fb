"""Online requests with and without a bulk job that renders through the same service, by turns.

Online callers come at random moments, at parts of the capacity: what the service makes for 16
callers who ask again and again. The same arrivals, alone and beside the job. Pictures are counted
as such of 30 steps, by the rows of forwards. What bulk_slack gives is of requests that the engine
remembers: each load has a service of its own, and those 16 callers, whom it must not remember, ask
at bulk priority.

make .venv/.bench
python benchmarks/hybrid.py --loads 0.3 0.7
python benchmarks/hybrid.py --num-generators 2 --compile openvino
"""

import argparse
import asyncio
import itertools
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from local_service import LocalService, local_service
from workloads import (
    MEAN_STEPS,
    Arrival,
    Call,
    Client,
    Outcome,
    calls,
    num_pictures,
    poisson,
    quantile,
)

from shared.arguments import add_compile
from shared.counters import EngineCounters, Priority

MIX = "steps"
_ROWS = 2 * MEAN_STEPS[MIX]  # of a picture, with guidance
_CALLERS = 16
_BETWEEN_SAMPLES_S = 0.5


class Rates(NamedTuple):
    """Pictures a second, and what becomes of an engine's time.

    `busy` is the part of it in forwards and decodes. Fuller forwards take less time for a row.
    """

    online: float
    bulk: float
    busy: float
    rows_per_forward: float
    row_ms: float

    def told(self) -> str:
        return (
            f"{self.rows_per_forward:.1f} rows a forward, {self.row_ms:.1f} ms a row, "
            f"busy for {self.busy:.0%} of the time"
        )


class Found(NamedTuple):
    """Of some slices of time."""

    latencies_s: list[float]
    num_failed: int
    rates: Rates

    def told(self) -> str:
        p50 = quantile(self.latencies_s, 0.5)
        return f"p50 {p50:.2f} s p95 {self.p95_s:.2f} s; {self.rates.told()}"

    @property
    def p95_s(self) -> float:
        return quantile(self.latencies_s, 0.95)


def main() -> None:
    options = _parse()
    wanted = calls(4096, MIX, options.size)
    engine = {"bulk_slack": options.bulk_slack, "compile": options.compile}
    for load in options.loads:
        with local_service(num_generators=options.num_generators, engine=engine) as service:
            ask_unseen(service, wanted[:_CALLERS])
            compare(load, service, wanted, options)


def compare(
    load: float, service: LocalService, wanted: Sequence[Call], options: argparse.Namespace
) -> None:
    """Rounds of all that is compared, since machines change while it is measured."""
    capacities = [capacity_of(service, wanted, options)]
    alone: list[Found] = []
    beside: list[Found] = []
    ever = itertools.cycle(wanted)
    of_a_call = statistics.mean(num_pictures(call, MEAN_STEPS[MIX]) for call in wanted)
    for i in range(options.rounds):
        calls_per_s = load * statistics.mean(capacities) / of_a_call
        number = round(calls_per_s * options.seconds / 2)
        assert number, f"{options.seconds} seconds are too few"
        slices = [
            list(poisson([*itertools.islice(ever, number)], calls_per_s, seed=2 * i + j))
            for j in (0, 1)
        ]
        alone.append(come(service, slices[0], options))
        with bulk_job(service, options.num_generators, wanted):
            beside += [come(service, each, options) for each in slices]
        alone.append(come(service, slices[1], options))
        capacities.append(capacity_of(service, wanted, options))
        tell(load, _together(alone), _together(beside), statistics.mean(capacities))


def come(service: LocalService, arrivals: Sequence[Arrival], options: argparse.Namespace) -> Found:
    client = Client(service.url, MEAN_STEPS[MIX])
    with rates(service, options.num_generators, arrivals[-1].at_s) as found:
        outcome = asyncio.run(client.open_loop(arrivals))
    return Found(outcome.latencies_s, outcome.num_failed, found[0])


def _together(slices: Sequence[Found]) -> Found:
    return Found(
        [latency for each in slices for latency in each.latencies_s],
        sum(each.num_failed for each in slices),
        Rates(
            *(
                sum(values) / len(slices)
                for values in zip(*(each.rates for each in slices), strict=True)
            )
        ),
    )


def ask_unseen(service: LocalService, wanted: Sequence[Call]) -> Outcome:
    client = Client(service.url, MEAN_STEPS[MIX], headers={"X-Priority": "bulk"})
    return asyncio.run(client.closed_loop(wanted, _CALLERS))


def capacity_of(
    service: LocalService, wanted: Sequence[Call], options: argparse.Namespace
) -> float:
    with rates(service, options.num_generators) as found:
        outcome = ask_unseen(service, wanted[: 12 * _CALLERS])
    print(f"capacity {outcome.pictures_per_s:.2f} pictures/s: {found[0].told()}", flush=True)
    return outcome.pictures_per_s


def tell(load: float, alone: Found, beside: Found, capacity: float) -> None:
    left = capacity - beside.rates.online
    print(
        f"{load:.1f} of {capacity:.2f} pictures/s, {len(alone.latencies_s)} calls, "
        f"{alone.num_failed + beside.num_failed} failed\n"
        f"  alone: {alone.told()}\n"
        f"  beside the job: {beside.told()}\n"
        f"  p95 {beside.p95_s / alone.p95_s:.2f} times; bulk {beside.rates.bulk:.2f} pictures/s, "
        f"{beside.rates.bulk / left:.0%} of the {left:.2f} that online left",
        flush=True,
    )


@contextmanager
def rates(
    service: LocalService, num_generators: int, seconds: float = math.inf
) -> Iterator[list[Rates]]:
    """Within it is counted, for so long at most; what was found is there at its end."""
    found: list[Rates] = []
    samples: defaultdict[str, list[tuple[float, EngineCounters]]] = defaultdict(list)
    over, until = threading.Event(), time.perf_counter() + seconds

    def sample() -> None:  # again and again, since each answer is of any one of them
        while not over.wait(_BETWEEN_SAMPLES_S) and time.perf_counter() < until:
            name, counters = service.engine()
            samples[name].append((time.perf_counter(), counters))

    with ThreadPoolExecutor(1) as pool:
        sampling = pool.submit(sample)
        try:
            yield found
        finally:
            over.set()
        sampling.result()
    assert len(samples) == num_generators, f"{len(samples)} of {num_generators} engines answered"

    def pace(count: Callable[[EngineCounters], float]) -> float:
        ends = [(each[0], each[-1]) for each in samples.values()]
        return sum(
            (count(last) - count(first)) / (end - begin) for (begin, first), (end, last) in ends
        )

    online, bulk = (pace(lambda engine, of=of: engine.of(of).num_rows) for of in Priority)
    decoding = pace(lambda engine: engine.decode_s)
    busy = pace(lambda engine: engine.busy_s)
    found.append(
        Rates(
            online=online / _ROWS,
            bulk=bulk / _ROWS,
            busy=busy / num_generators,
            rows_per_forward=(online + bulk) / pace(lambda engine: engine.num_forwards),
            row_ms=1000 * (busy - decoding) / (online + bulk),
        )
    )


@contextmanager
def bulk_job(service: LocalService, num_generators: int, wanted: Sequence[Call]) -> Iterator[None]:
    """A job in the service's cluster that has filled it once."""
    completed: dict[str, int] = {}

    def has_rendered() -> bool:
        name, counters = service.engine()
        number = counters.bulk.num_completed
        return number > completed.setdefault(name, number)

    with tempfile.TemporaryDirectory(prefix="bulk-") as folder:
        prompts = Path(folder) / "prompts.parquet"
        pq.write_table(pa.Table.from_pylist(list(wanted)), prompts)
        command = [sys.executable, "-m", "jobs.render", "--via-service", "imagine"]
        command += ["--input", str(prompts), "--output", f"{folder}/out"]
        environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        job = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
        )
        try:
            while not has_rendered():
                assert job.poll() is None, "the job ended"
                time.sleep(0.5)
            yield
            assert job.poll() is None, "the job ended"
        finally:
            job.terminate()
            job.wait()
            while any(each.bulk.num_in_flight for each in service.engines(num_generators).values()):
                time.sleep(0.5)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--loads", type=float, nargs="+", default=[0.3, 0.7])
    parser.add_argument("--seconds", type=float, default=90, help="of a load, in each round")
    parser.add_argument("--bulk-slack", type=float, default=0)
    add_compile(parser)
    parser.add_argument("--num-generators", type=int, default=1, help="that share the cores")
    parser.add_argument("--rounds", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
