"""What benchmarks count: a wrong figure looks like any other."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Response

from benchmarks.engine_rates import Rates, Sample, rates
from benchmarks.workloads import (
    Answer,
    Arrival,
    Client,
    bursts,
    calls,
    num_pictures,
    outcome,
    poisson,
    quantile,
    trace,
)
from shared.counters import EngineCounters, RequestCounters
from tests.conftest import REPO
from tests.http_server import serving_app


def answers(number: int) -> list[Answer]:
    """One a second, of a picture each."""
    return [Answer(True, 1, at_s=1.0 + i, seconds=0.5) for i in range(number)]


def test_pictures_a_second_are_of_the_time_until_the_last_answer() -> None:
    found = outcome(answers(4), begun=-3)
    assert found.pictures_per_s == 4 / 7
    assert found.latencies_s == [0.5] * 4


def test_what_failed_is_counted_and_no_picture() -> None:
    found = outcome([*answers(3), Answer(False, 1, at_s=4, seconds=0.1)], begun=0)
    assert (found.num_failed, found.latencies_s, found.pictures_per_s) == (1, [0.5] * 3, 3 / 4)


def test_a_closed_loop_is_counted_while_it_is_full() -> None:
    """Not while it fills, here for 100 seconds, nor while it drains, here for 50."""
    late = [Answer(True, 1, at_s=100 + each.at_s, seconds=1) for each in answers(8)]
    late[-1] = Answer(True, 1, at_s=158, seconds=50)
    found = outcome(late, begun=0, num_callers=2)
    assert found.pictures_per_s == 1
    assert max(found.latencies_s) == 1


def test_a_closed_loop_of_few_calls_is_counted_as_a_whole() -> None:
    assert len(outcome(answers(7), begun=0, num_callers=2).latencies_s) == 7


def test_a_quantile_of_one_is_that_one() -> None:
    assert quantile([3.0], 0.95) == 3
    assert quantile([float(i) for i in range(101)], 0.95) == 95


def test_a_call_is_so_many_pictures_of_the_mean_number_of_steps() -> None:
    assert num_pictures({"n": 4, "num_inference_steps": 15}, mean_steps=30) == 2


def test_calls_are_the_same_for_each_seed_and_none_is_asked_twice() -> None:
    once = calls(50, "all", 128, seed=3)
    assert once == calls(50, "all", 128, seed=3)
    assert len({each["prompt"] for each in once + calls(50, "all", 128, seed=4)}) == 100


def test_random_arrivals_have_their_rate_and_are_the_same_for_each_seed() -> None:
    wanted = calls(40, "equal", 128)
    arrivals = [*poisson(wanted, calls_per_s=2, seed=1)]
    assert arrivals == [*poisson(wanted, calls_per_s=2, seed=1)]
    assert arrivals != [*poisson(wanted, calls_per_s=2, seed=2)]
    assert arrivals[-1].at_s == pytest.approx(20)
    assert [each.call for each in arrivals] == wanted


def test_bursts_come_when_those_before_have_had_their_time() -> None:
    arrivals = bursts(calls(5, "equal", 128), number=2, calls_per_s=0.5)
    assert [each.at_s for each in arrivals] == [0, 0, 4, 4, 8]


def test_a_trace_brings_its_calls_for_text_to_image(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(
        "arrival_s,num_inference_steps,n,type\n"
        "0.5,30,2,text-to-image\n1,20,1,inpainting\n2.25,50,1,text-to-image\n"
    )
    arrivals = [*trace(file, size=64)]
    assert [each.at_s for each in arrivals] == [0.5, 2.25]
    asked = [(each.call["num_inference_steps"], each.call["n"]) for each in arrivals]
    assert asked == [(30, 2), (50, 1)]
    assert {each.call["width"] for each in arrivals} == {64}


def test_the_trace_of_the_repository_is_one() -> None:
    assert len([*trace(REPO / "benchmarks" / "example_trace.csv", size=128)]) == 28


@pytest.mark.parametrize("takes_n", [False, True])
def test_a_client_asks_for_all_pictures_of_a_call_and_says_which_calls_failed(
    takes_n: bool,
) -> None:
    app = FastAPI()
    asked: list[tuple[Any, Any]] = []

    @app.post("/imagine")
    async def imagine(call: dict[str, Any]) -> Response:
        asked.append((call["seed"], call.get("n")))
        return Response(status_code=500 if call["seed"] == 100 else 200)

    wanted = [call | {"n": 2} for call in calls(2, "equal", 64)]  # of seeds 0 and 100
    with serving_app(app) as url:
        client = Client(url, mean_steps=20, takes_n=takes_n)
        found = asyncio.run(client.closed_loop(wanted, concurrency=1))
    assert sorted(asked) == (
        [(0, 2), (100, 2)] if takes_n else [(s, None) for s in (0, 1, 100, 101)]
    )
    assert (len(found.latencies_s), found.num_failed) == (1, 1)


def test_callers_come_and_are_timed_by_the_clock_that_their_client_has() -> None:
    app, came = FastAPI(), []

    @app.post("/imagine")
    async def imagine() -> None:
        came.append(time.perf_counter())
        await asyncio.sleep(0.1)

    (call,) = calls(1, "equal", 64)
    with serving_app(app) as url:
        client = Client(url, mean_steps=20, now=lambda: 10 * time.perf_counter())
        begun = time.perf_counter()
        found = asyncio.run(client.open_loop([Arrival(0, call), Arrival(5, call)]))
    assert 0.5 <= came[1] - begun < 4
    assert min(found.latencies_s) >= 1
    assert found.pictures_per_s <= 2 / 6


def test_what_engines_make_is_told_of_the_machines_seconds_and_how_busy_they_are_of_the_walls() -> (
    None
):
    """Two engines of which one was looked at for twice as long, at half of the machine's speed."""
    first = EngineCounters(forwards_by_requests={1: 5})

    def after(wall_s: int) -> EngineCounters:
        return EngineCounters(
            online=RequestCounters(num_rows=20 * wall_s),
            bulk=RequestCounters(num_rows=60 * wall_s),
            busy_s=0.9 * wall_s,
            decode_s=0.1 * wall_s,
            forwards_by_requests={1: 5 + wall_s, 4: 9 * wall_s},
        )

    ends = [
        (Sample(0, 0, first), Sample(5, 10, after(10))),
        (Sample(1, 2, first), Sample(11, 22, after(20))),
    ]
    found = rates(ends, rows_of_a_picture=40)
    assert found == Rates(
        online=2 * 1.0, bulk=2 * 3.0, busy=0.9, rows_per_forward=8.0, row_ms=5.0, speed=0.5
    )
