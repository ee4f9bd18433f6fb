import pytest

from shared.engine.guest_time import GuestTime


def test_a_part_of_the_time_is_saved_and_spent() -> None:
    guests, rows = GuestTime(0.1), 0
    for _ in range(1000):
        taken = min(2, guests.rows(own_s=0.02, row_s=0.004))
        guests.spend(taken * 0.004)
        rows += taken
    assert rows * 0.004 == pytest.approx(0.1 * 1000 * 0.02, rel=0.01)


def test_no_more_is_kept_than_one_forward_takes() -> None:
    guests = GuestTime(0.5)
    for _ in range(1000):
        guests.rows(own_s=0.02, row_s=0.004)
    assert guests.rows(own_s=0.02, row_s=0.004) == 5
    assert guests.rows(own_s=0.008, row_s=0.004) == 2


def test_what_was_spent_too_much_is_saved_first() -> None:
    guests = GuestTime(0.5)
    guests.spend(0.034)
    assert [guests.rows(own_s=0.02, row_s=0.005) for _ in range(6)] == [0, 0, 0, 1, 3, 4]


def test_nothing_is_spent_where_no_part_or_nothing_ran() -> None:
    assert GuestTime(0.0).rows(own_s=0.02, row_s=0.004) == 0
    assert GuestTime(1.0).rows(own_s=0.0, row_s=0.0) == 0
