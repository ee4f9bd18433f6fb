"""Seconds of a benchmark on a machine whose speed changes."""

import asyncio
import time

import pytest
from fastapi import FastAPI

from benchmarks.engine_rates import Sample, rates
from benchmarks.machine_clock import MachineClock
from benchmarks.workloads import Arrival, Client, calls
from shared.counters import EngineCounters, RequestCounters
from tests.http_server import serving_app


class Machine:
    """Of which a piece of work takes so long."""

    work_s = 1.0

    def seconds(self, cpu: int) -> float:
        return self.work_s


def pace(clock: MachineClock) -> float:
    """Seconds of `clock` in one of the wall's."""
    wall_s, seconds = time.perf_counter(), clock.now()
    time.sleep(0.2)
    return (clock.now() - seconds) / (time.perf_counter() - wall_s)


def test_a_second_of_a_machine_that_takes_twice_as_long_is_half_of_one() -> None:
    machine = Machine()
    with MachineClock(machine.seconds) as clock:
        assert pace(clock) == pytest.approx(1, rel=0.1)
        machine.work_s = 2
        time.sleep(0.5)  # until it was looked at again
        assert pace(clock) == pytest.approx(0.5, rel=0.1)


def test_it_never_goes_back() -> None:
    machine = Machine()
    with MachineClock(machine.seconds) as clock:
        seen = [clock.now()]
        while seen[-1] < 1:
            machine.work_s = 3 - machine.work_s
            seen.append(clock.now())
    assert seen == sorted(seen)


def test_a_core_says_how_long_its_own_work_takes() -> None:
    with MachineClock() as clock:
        assert 0 < pace(clock) < 2


def test_callers_come_and_are_timed_by_the_clock_that_a_client_has() -> None:
    app, came = FastAPI(), []

    @app.post("/imagine")
    async def imagine() -> None:
        came.append(time.perf_counter())
        await asyncio.sleep(0.1)

    first, second = calls(2, "equal", 64)
    with serving_app(app) as url:
        client = Client(url, mean_steps=20, now=lambda: 10 * time.perf_counter())
        found = asyncio.run(client.open_loop([Arrival(0, first), Arrival(5, second)]))
    assert 0.4 < came[1] - came[0] < 4
    assert all(seconds >= 1 for seconds in found.latencies_s)
    assert found.pictures_per_s < 2 / 6


def test_what_engines_make_is_of_the_machines_seconds_and_their_work_of_the_walls() -> None:
    """Two engines that do the same for ten seconds, at half of the machine's speed."""
    first = EngineCounters(forwards_by_requests={1: 5})
    last = EngineCounters(
        online=RequestCounters(num_rows=200),
        bulk=RequestCounters(num_rows=600),
        busy_s=9,
        decode_s=1,
        forwards_by_requests={1: 15, 4: 90},
    )
    found = rates([(Sample(0, 0, first), Sample(5, 10, last))] * 2, rows_of_a_picture=40)
    assert found == (
        2 * 1.0,  # pictures a second
        2 * 3.0,
        0.9,
        8.0,
        5.0,
        0.5,
    )
