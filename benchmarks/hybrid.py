"""Online requests with and without a bulk job that renders through the same service, by turns.

Online callers come at random moments, at parts of the capacity: what the service makes for 16
callers who ask again and again. The same arrivals, alone and beside the job. Pictures are counted
as such of 30 steps, by the rows of forwards. All seconds are those of a machine clock: a machine
that is slow for a while gets fewer calls, and is not told to have made less. What bulk_slack gives
is of requests that the engine remembers: each load has a service of its own, and those 16 callers,
whom it must not remember, ask at bulk priority.

make .venv/.bench
python benchmarks/hybrid.py --loads 0.3 0.7
python benchmarks/hybrid.py --num-generators 2 --bulk-slack 0.7
python benchmarks/hybrid.py --num-cpus 1  # of two: the other is Ray's and the callers'
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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from engine_rates import Rates, Sample, rates
from local_service import NUM_CPUS, LocalService, local_service
from machine_clock import MachineClock
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

MIX = "steps"
_ROWS = 2 * MEAN_STEPS[MIX]  # of a picture, with guidance
_CALLERS = 16
_BETWEEN_SAMPLES_S = 0.5


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
    args: dict[str, Any] = {
        "engine": {"bulk_slack": options.bulk_slack, "compile": options.compile}
    }
    if options.num_cpus:
        args["num_cpus"] = options.num_cpus
    with MachineClock() as clock:
        for load in options.loads:
            with local_service(num_generators=options.num_generators, **args) as service:
                bench = Bench(service, options.num_generators, clock)
                bench.ask_unseen(wanted[:_CALLERS])
                compare(load, bench, wanted, options)


def compare(
    load: float, bench: "Bench", wanted: Sequence[Call], options: argparse.Namespace
) -> None:
    """Rounds of all that is compared, since machines change while it is measured."""
    capacities = [bench.capacity(wanted)]
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
        alone.append(bench.come(slices[0]))
        with bulk_job(bench.service, options.num_generators, wanted):
            beside += [bench.come(each) for each in slices]
        alone.append(bench.come(slices[1]))
        capacities.append(bench.capacity(wanted))
        tell(load, _together(alone), _together(beside), statistics.mean(capacities))


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


class Bench(NamedTuple):
    service: LocalService
    num_generators: int
    clock: MachineClock

    def capacity(self, wanted: Sequence[Call]) -> float:
        with self._rates() as found:
            outcome = self.ask_unseen(wanted[: 12 * _CALLERS])
        print(f"capacity {outcome.pictures_per_s:.2f} pictures/s: {found[0].told()}", flush=True)
        return outcome.pictures_per_s

    def ask_unseen(self, wanted: Sequence[Call]) -> Outcome:
        client = self._client(headers={"X-Priority": "bulk"})
        return asyncio.run(client.closed_loop(wanted, _CALLERS))

    def come(self, arrivals: Sequence[Arrival]) -> Found:
        with self._rates(arrivals[-1].at_s) as found:
            outcome = asyncio.run(self._client().open_loop(arrivals))
        return Found(outcome.latencies_s, outcome.num_failed, found[0])

    def _client(self, **options: Any) -> Client:
        return Client(self.service.url, MEAN_STEPS[MIX], now=self.clock.now, **options)

    @contextmanager
    def _rates(self, seconds: float = math.inf) -> Iterator[list[Rates]]:
        """Within it is counted, for so long at most; what was found is there at its end."""
        found: list[Rates] = []
        samples: defaultdict[str, list[Sample]] = defaultdict(list)
        over, until = threading.Event(), self.clock.now() + seconds

        def sample() -> None:  # again and again, since each answer is of any one of them
            while not over.wait(_BETWEEN_SAMPLES_S) and self.clock.now() < until:
                name, counters = self.service.engine()
                wall_s = time.perf_counter()
                samples[name].append(Sample(self.clock.at(wall_s), wall_s, counters))

        with ThreadPoolExecutor(1) as pool:
            sampling = pool.submit(sample)
            try:
                yield found
            finally:
                over.set()
            sampling.result()
        ends = [(each[0], each[-1]) for each in samples.values() if len(each) > 1]
        number = len(ends)
        assert number == self.num_generators, f"{number} of {self.num_generators} engines answered"
        found.append(rates(ends, _ROWS))


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
    parser.add_argument("--num-generators", type=int, default=1)
    parser.add_argument(
        "--num-cpus", type=float, help="of each generator (default: its part of all)"
    )
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    if (options.num_cpus or 0) * options.num_generators > NUM_CPUS:
        parser.error(f"--num-cpus, --num-generators: there are {NUM_CPUS}")
    return options


if __name__ == "__main__":
    main()
