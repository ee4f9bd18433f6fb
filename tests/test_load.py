import pytest

from serving.load import Load


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_what_is_under_way_is_divided_by_the_speed_so_far(clock: Clock) -> None:
    load = Load(clock)
    for _ in range(3):
        with load.carrying(50):
            clock.now += 5
    with load.carrying(300), load.carrying(100):
        assert load.seconds_to_clear() == pytest.approx(400 / 10)


def test_idle_time_does_not_count(clock: Clock) -> None:
    load = Load(clock)
    with load.carrying(50):
        clock.now += 5
    clock.now += 3600
    with load.carrying(200):
        assert load.seconds_to_clear() == pytest.approx(200 / 10)


def test_time_without_results_counts(clock: Clock) -> None:
    load = Load(clock)
    with load.carrying(50):
        clock.now += 5
    with load.carrying(100):
        clock.now += 45  # 50 in 50 seconds
        assert load.seconds_to_clear() == pytest.approx(100)


def test_what_failed_was_not_done(clock: Clock) -> None:
    load = Load(clock)
    with load.carrying(50):
        clock.now += 5

    def fail() -> None:
        with load.carrying(1000):
            clock.now += 5
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with load.carrying(50):
        assert load.seconds_to_clear() == pytest.approx(50 / (50 / 10))


def test_the_speed_is_that_of_late(clock: Clock) -> None:
    load = Load(clock)
    for seconds in [100] * 100 + [1] * 64:
        with load.carrying(10):
            clock.now += seconds
    with load.carrying(500):
        assert load.seconds_to_clear() == pytest.approx(50)


def test_nobody_is_told_to_come_back_at_once(clock: Clock) -> None:
    load = Load(clock)
    assert load.seconds_to_clear() == 1
    with load.carrying(10):
        clock.now += 5
    assert load.seconds_to_clear() == 1


def test_a_refusal_stands_until_something_ends(clock: Clock) -> None:
    load = Load(clock)
    with load.carrying(50):
        load.refused()
        assert load.is_full
        clock.now += 0.5
        assert load.is_full
    assert not load.is_full


def test_a_refusal_stands_for_no_longer_than_a_second(clock: Clock) -> None:
    load = Load(clock)
    with load.carrying(50):
        load.refused()
        clock.now += 1.1
        assert not load.is_full


def test_a_caller_who_leaves_makes_room_too(clock: Clock) -> None:
    load = Load(clock)

    def leave() -> None:
        with load.carrying(50):
            load.refused()
            raise KeyError

    with pytest.raises(KeyError):
        leave()
    assert not load.is_full


def test_who_is_refused_does_not_make_room(clock: Clock) -> None:
    load = Load(clock)

    def refuse() -> None:
        try:
            with load.carrying(50):
                raise KeyError
        except KeyError:
            load.refused()

    refuse()
    clock.now += 0.5
    assert load.is_full
