import random

import pytest

from shared.engine.step_times import StepTimes, Work


def learned(per_forward: float = 0.01, per_row: float = 0.002, noise: float = 0.0) -> StepTimes:
    times, chance = StepTimes(), random.Random(0)
    for _ in range(500):
        rows = chance.randint(1, 32)
        seconds = (per_forward + per_row * rows) * chance.uniform(1 - noise, 1 + noise)
        times.observe("denoise", 100, rows, seconds)
        times.observe("decode", 100, 1, 0.05)
    return times


def test_a_request_alone_takes_its_forwards_and_its_decode() -> None:
    work = Work(pixels=100, rows=2, steps=20)
    assert learned().seconds_left(work, []) == pytest.approx(20 * 0.014 + 0.05)


def test_noise_is_averaged_out() -> None:
    work = Work(pixels=100, rows=2, steps=20)
    assert learned(noise=0.2).seconds_left(work, []) == pytest.approx(20 * 0.014 + 0.05, rel=0.2)


@pytest.mark.parametrize("seed", range(5))
def test_forwards_of_nearly_equal_rows_do_not_say_what_a_row_takes(seed: int) -> None:
    times, chance = learned(), random.Random(seed)
    for _ in range(400):
        rows = chance.randint(14, 16)
        seconds = (0.01 + 0.002 * rows) * chance.uniform(0.8, 1.2)
        times.observe("denoise", 100, rows, seconds)
    assert times.of_row("denoise", 100) == pytest.approx(0.002, rel=0.15)


def test_a_machine_that_gets_slower_is_known_to_be_soon() -> None:
    times = learned()
    for _ in range(100):
        times.observe("denoise", 100, 16, 2 * (0.01 + 0.002 * 16))
    assert times.of_forward("denoise", 100, 16) == pytest.approx(2 * 0.042, rel=0.1)


def test_old_times_are_forgotten() -> None:
    times = learned()
    for _ in range(400):
        times.observe("decode", 100, 1, 0.5)
    assert times.seconds_left(Work(100, 2, 0), []) == pytest.approx(0.5, rel=0.01)


def test_company_costs_its_rows_until_one_is_done() -> None:
    times = learned()
    mine = Work(pixels=100, rows=2, steps=10)
    alone = times.seconds_left(mine, [])
    longer = Work(pixels=100, rows=2, steps=1000)
    shorter = Work(pixels=100, rows=2, steps=5)
    assert times.seconds_left(mine, [longer]) - alone == pytest.approx(10 * 2 * 0.002)
    assert times.seconds_left(mine, [shorter]) - alone == pytest.approx(5 * 2 * 0.002)


def test_what_is_unknown_takes_no_time() -> None:
    assert StepTimes().seconds_left(Work(100, 2, 20), [Work(100, 2, 20)]) == 0
    assert learned().seconds_left(Work(pixels=50, rows=2, steps=20), []) == 0


def test_a_share_is_that_of_full_forwards_and_a_decode() -> None:
    times, work = learned(), Work(100, 2, 20)
    full = 0.01 + 0.002 * 32
    assert times.share_s(work, 16, 10_000) == pytest.approx(20 * 2 / 32 * full + 0.05)
    assert times.share_s(work, 99, 3200) == pytest.approx(20 * 2 / 32 * full + 0.05)
    assert times.share_s(work, 16, 1) == pytest.approx(20 * 0.014 + 0.05)
    assert StepTimes().share_s(work, 16, 10_000) == 0


def test_an_unknown_size_has_the_share_of_the_nearest_for_its_pixels() -> None:
    times = learned()
    times.observe("denoise", 1000, 2, 0.5)

    def share(pixels: int) -> float:
        return times.share_s(Work(pixels, 2, 20), max_requests=1, max_pixels=10_000)

    assert share(300) == pytest.approx(3 * share(100))
    assert share(50) == pytest.approx(share(100) / 2)
    assert share(500) == pytest.approx(20 * 0.25 + 5 * 0.05)


def test_company_gains_nothing_until_it_was_seen_to() -> None:
    times, work = StepTimes(), Work(100, 2, 20)
    times.observe("denoise", 100, 2, 0.1)
    assert times.share_s(work, 16, 10_000) == pytest.approx(20 * 0.1)
    times.observe("denoise", 100, 32, 0.4)
    assert times.share_s(work, 16, 10_000) == pytest.approx(20 * 2 / 32 * 0.4)
    assert times.share_s(work, 1, 10_000) == pytest.approx(20 * 0.1)


def test_a_forward_with_less_company_than_was_ever_seen_takes_as_long() -> None:
    times = StepTimes()
    times.observe("denoise", 100, 32, 0.4)
    assert times.share_s(Work(100, 2, 20), 1, 10_000) == pytest.approx(20 * 0.4)


def test_a_larger_picture_takes_at_least_as_long_as_a_smaller_one() -> None:
    times = learned()
    small, large = Work(100, 2, 20), Work(400, 2, 20)
    assert times.seconds_left(large, []) == times.seconds_left(small, [])


def test_forwards_of_one_row_count_say_nothing_of_a_row() -> None:
    times = StepTimes()
    for _ in range(50):
        times.observe("denoise", 100, 2, 0.1)
    one = Work(100, 2, 10)
    assert times.seconds_left(one, [one] * 20) == pytest.approx(1.0)


def test_a_row_takes_what_was_learned_or_at_most_its_part_of_a_forward() -> None:
    assert learned().of_row("denoise", 100) == pytest.approx(0.002)
    assert learned().of_row("denoise", 50) == 0
    times = StepTimes()
    times.observe("denoise", 100, 2, 0.1)
    assert times.of_row("denoise", 100) == pytest.approx(0.05)
    times.observe("denoise", 100, 8, 0.1)  # a first forward is slow: rows seem to cost nothing
    assert times.of_row("denoise", 100) == pytest.approx(0.02, rel=0.03)
