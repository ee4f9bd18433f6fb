"""Seconds of a benchmark on a machine whose speed changes."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from benchmarks.machine_clock import MachineClock


class Machine:
    """Of which a piece of work takes so long, and by whose wall's clock it is so late."""

    def __init__(self) -> None:
        self.work_s, self.wall_s = 1.0, 100.0

    def clock(self) -> MachineClock:
        return MachineClock(lambda cpu: self.work_s, lambda: self.wall_s)


def test_a_second_of_a_machine_that_takes_twice_as_long_is_half_of_one() -> None:
    machine = Machine()
    clock = machine.clock()
    machine.wall_s += 10
    assert clock.now() == 10
    machine.work_s = 2
    clock.look()
    machine.wall_s += 10
    assert clock.now() == 15
    machine.work_s = 1
    clock.look()
    machine.wall_s += 10
    assert clock.now() == 25


def clock_of_a_machine_that_was_slow() -> MachineClock:
    """Ten seconds at its fastest, and thirty at a quarter of that."""
    machine = Machine()
    clock = machine.clock()
    machine.wall_s += 10
    machine.work_s = 4
    clock.look()
    machine.wall_s += 30
    clock.look()
    return clock


def test_the_speed_of_a_while_is_that_of_all_that_was_seen_in_it() -> None:
    assert clock_of_a_machine_that_was_slow().speed(100, 140) == 17.5 / 40


def test_what_it_said_at_a_moment_it_still_says_later() -> None:
    clock = clock_of_a_machine_that_was_slow()
    assert [clock.at(100 + seconds) for seconds in (-4, 0, 4, 10, 14, 40)] == [
        -4,
        0,
        4,
        10,
        11,
        17.5,
    ]


def test_cores_are_looked_at_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3})
    machine = Machine()
    took = {0: 1.0, 3: 1.0}
    clock = MachineClock(took.__getitem__, lambda: machine.wall_s)
    took[3] = 2.0
    clock.look()
    machine.wall_s += 8
    assert clock.now() == 6


def test_it_looks_as_long_as_it_is_entered_and_what_keeps_it_from_that_is_raised() -> None:
    machine = Machine()
    clock = machine.clock()

    def pace() -> float:
        before = clock.now()
        machine.wall_s += 1
        return clock.now() - before

    with clock:
        machine.work_s = 2
        while pace() != 0.5:
            pass
        machine.work_s = 0
        with pytest.raises(ZeroDivisionError):
            _ask_for_ever(clock)


def _ask_for_ever(clock: MachineClock) -> None:
    while True:
        clock.now()


def test_its_work_leaves_threads_and_cores_of_others_as_they_are() -> None:
    before = _of_a_new_thread()
    assert MachineClock().now() > 0
    assert _of_a_new_thread() == before


def _of_a_new_thread() -> tuple[int, set[int]]:
    with ThreadPoolExecutor(1) as pool:
        threads = pool.submit(torch.get_num_threads).result()
        return threads, pool.submit(os.sched_getaffinity, 0).result()
