import pytest

from shared.engine.guest_time import GuestTime

PIXELS = 128 * 128


def guests_among(latencies: list[float], part: float = 1.0) -> GuestTime:
    guests = GuestTime(part)
    for latency in latencies:
        guests.learn(PIXELS, latency)
    return guests


@pytest.mark.parametrize("part", [1.0, 0.25])
def test_guests_get_a_part_of_the_slack_however_often_they_ask(part: float) -> None:
    guests = guests_among([2.0] * 50, part)
    own_s, had_s = 0.8, 0.0
    for steps_left in range(40, 0, -1):
        had_s += guests.slack_s(PIXELS, own_s, had_s) / steps_left
    assert had_s == pytest.approx(part * (2.0 - own_s))


def test_who_is_late_has_none() -> None:
    guests = guests_among([2.0] * 50)
    assert guests.slack_s(PIXELS, own_s=2.1, guests_s=0.0) == 0
    assert guests.slack_s(PIXELS, own_s=1.5, guests_s=0.6) == 0


def test_a_deadline_is_kept() -> None:
    guests = guests_among([2.0] * 50)
    assert guests.slack_s(PIXELS, own_s=0.5, guests_s=0.1, spare_s=0.2) == 0.2
    assert guests.slack_s(PIXELS, own_s=0.5, guests_s=0.1, spare_s=-0.2) == 0


def test_it_is_the_slowest_twentieth_that_counts() -> None:
    assert guests_among([0.5] * 47 + [2.0] * 3).slack_s(PIXELS, 0.0, 0.0) == 2.0
    assert guests_among([0.5] * 48 + [2.0] * 2).slack_s(PIXELS, 0.0, 0.0) == 0.5


def test_what_is_usual_is_of_late_and_of_about_the_size() -> None:
    guests = guests_among([9.0] * 200 + [2.0] * 200)
    assert guests.slack_s(PIXELS, 1.0, 0.0) == pytest.approx(1)
    assert guests.slack_s(PIXELS * 5 // 4, 1.0, 0.0) == pytest.approx(1)
    assert guests.slack_s(PIXELS * 4, 1.0, 0.0) == 0


def test_nothing_is_known_of_few() -> None:
    assert guests_among([2.0] * 19).slack_s(PIXELS, 0.1, 0.0) == 0
    assert guests_among([2.0] * 20).slack_s(PIXELS, 0.1, 0.0) > 0
