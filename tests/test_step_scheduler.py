import random
from collections import Counter
from dataclasses import dataclass

import pytest

from shared.engine.step_scheduler import StepScheduler


@dataclass(frozen=True, eq=False)
class Call:
    name: str
    key: str
    pixels: int = 1
    priority: int = 0
    kind: str = "denoise"
    setup: tuple[str, ...] | None = ()
    submitted_at: float = 0.0
    seconds_alone: float = 100.0


def names(calls: list[Call]) -> list[str]:
    return [call.name for call in calls]


def scheduler(*calls: Call, budget: int = 100) -> StepScheduler[Call]:
    step_scheduler = StepScheduler[Call]({"denoise": budget, "decode": 0})
    for call in calls:
        step_scheduler.add(call)
    return step_scheduler


def turns(step_scheduler: StepScheduler[Call], now: float, number: int) -> list[str]:
    """Who goes in the next forwards of a second each, when all park again after they went."""
    served = []
    for i in range(number):
        calls = step_scheduler.next_calls(now + i)
        served.append("+".join(names(calls)))
        for call in calls:
            step_scheduler.add(call)
    return served


def test_nothing_parked_is_nothing_to_do() -> None:
    assert scheduler().next_calls(0) == []
    assert scheduler().first_priority() is None


def test_calls_of_one_lane_go_together() -> None:
    step_scheduler = scheduler(Call("a1", "a"), Call("b1", "b"), Call("a2", "a"))
    assert names(step_scheduler.next_calls(0)) == ["a1", "a2"]
    assert names(step_scheduler.next_calls(0)) == ["b1"]
    assert step_scheduler.next_calls(0) == []


def test_the_most_delayed_goes_next_for_what_it_takes_alone() -> None:
    short = Call("short", "s", submitted_at=90, seconds_alone=10)
    long = Call("long", "l", submitted_at=0, seconds_alone=200)
    assert turns(scheduler(long, short), now=91, number=3) == ["long"] * 3
    assert turns(scheduler(long, short), now=97, number=3) == ["short"] * 3


def test_who_is_delayed_alike_goes_by_turns() -> None:
    calls = [Call(each, each, seconds_alone=20) for each in "ab"]
    running, served = scheduler(*calls), Counter[str]()
    for i in range(40):
        (call,) = running.next_calls(now=i)
        served[call.name] += 1
        done = served[call.name] == 20
        if not done:
            running.add(call)
    assert served == {"a": 20, "b": 20}


def test_nobody_waits_for_ever_for_those_who_come_later() -> None:
    step_scheduler = scheduler(Call("long", "l", seconds_alone=50))
    for now in range(200):
        step_scheduler.add(Call("short", f"s{now}", submitted_at=now - 1, seconds_alone=1))
        if names(step_scheduler.next_calls(now)) == ["long"]:
            break
    assert 40 <= now <= 110


def test_the_most_delayed_of_a_lane_go_where_not_all_fit() -> None:
    calls = [Call(str(i), "a", pixels=4, submitted_at=-i) for i in range(4)]
    assert turns(scheduler(*calls, budget=8), now=0, number=2) == ["3+2", "3+2"]


def test_a_company_keeps_its_order_whoever_is_more_delayed() -> None:
    slow = Call("slow", "a", submitted_at=0, seconds_alone=10)
    soon = Call("soon", "a", submitted_at=5, seconds_alone=1)
    assert turns(scheduler(soon, slow), now=5, number=10) == ["slow+soon"] * 10


def test_the_first_priority_goes_first() -> None:
    bulk, online = Call("bulk", "a", priority=1), Call("online", "b", priority=0)
    step_scheduler = scheduler(bulk, online)
    assert step_scheduler.first_priority() == 0
    assert turns(step_scheduler, now=1000, number=10) == ["online"] * 10
    step_scheduler.remove(online)
    assert step_scheduler.first_priority() == 1
    assert names(step_scheduler.next_calls(0)) == ["bulk"]


def with_room(spare: int, *calls: Call, budget: int = 100) -> StepScheduler[Call]:
    step_scheduler = StepScheduler[Call]({"denoise": budget, "decode": 0}, lambda own, room: spare)
    for call in calls:
        step_scheduler.add(call)
    return step_scheduler


def test_a_later_priority_goes_as_a_guest_where_there_is_room_to_spare() -> None:
    online = Call("online", "a", pixels=2)
    bulk = [Call(str(i), "a", pixels=2, priority=1, submitted_at=i - 9) for i in range(4)]
    assert turns(with_room(0, online, *bulk), now=0, number=3) == ["online"] * 3
    assert turns(with_room(5, online, *bulk), now=0, number=3) == ["0+1+online"] * 3
    assert turns(with_room(50, online, *bulk, budget=8), now=0, number=1) == ["0+1+2+online"]


def test_a_decode_of_a_later_priority_goes_between_two_forwards_that_can_wait() -> None:
    decode = {"kind": "decode", "setup": None, "priority": 1}
    calls = [
        Call("online", "a"),
        Call("small", "d", **decode, submitted_at=-1),
        Call("other small", "d", **decode),
        Call("large", "e", **decode, pixels=9, submitted_at=-2),
        Call("other", "b", priority=1),
    ]

    def served(most_pixels: int) -> list[str]:
        step_scheduler = StepScheduler[Call](
            {"denoise": 100, "decode": 100}, can_pass=lambda call: call.pixels <= most_pixels
        )
        for call in calls:
            step_scheduler.add(call)
        return turns(step_scheduler, now=0, number=4)

    assert served(most_pixels=9) == ["large", "online", "large", "online"]
    assert served(most_pixels=1) == ["online"] * 4
    step_scheduler = StepScheduler[Call]({"denoise": 1, "decode": 9}, can_pass=lambda _: True)
    for call in calls[:3]:
        step_scheduler.add(call)
    assert turns(step_scheduler, now=0, number=2) == ["small", "online"]  # what was asked for


def test_guests_are_of_the_same_lane() -> None:
    guests = [Call("size", "b", priority=1), Call("adapter", "a", priority=1, setup=("ink",))]
    step_scheduler = with_room(50, Call("online", "a"), *guests)
    assert turns(step_scheduler, now=0, number=3) == ["online"] * 3


def test_who_can_go_soon_may_start() -> None:
    step_scheduler = with_room(5)
    assert step_scheduler.may_start(1, pixels=2)  # nobody else is there
    step_scheduler.add(Call("online", "a"))
    assert not step_scheduler.may_start(1, pixels=2)  # no forward has shown room
    turns(step_scheduler, now=0, number=1)
    assert step_scheduler.may_start(1, pixels=5)
    assert not step_scheduler.may_start(1, pixels=6)
    step_scheduler.add(Call("bulk", "a", pixels=4, priority=1))
    turns(step_scheduler, now=0, number=1)
    assert not step_scheduler.may_start(1, pixels=2)  # the guest took the room
    assert step_scheduler.may_start(0, pixels=1000)


def test_a_floor_is_kept_and_no_more() -> None:
    calls = [Call("online", "a"), Call("bulk", "b", priority=1)]
    step_scheduler = StepScheduler[Call]({"denoise": 100, "decode": 0}, floor=0.25)
    for call in calls:
        step_scheduler.add(call)
    served = Counter(turns(step_scheduler, now=0, number=400))
    assert served["bulk"] == pytest.approx(100, abs=1)
    # Nothing is owed for the time in which nobody was there, nor for that of others' absence.
    step_scheduler.remove(calls[1])
    turns(step_scheduler, now=400, number=400)
    step_scheduler.add(calls[1])
    served = Counter(turns(step_scheduler, now=800, number=40))
    assert served["bulk"] == pytest.approx(10, abs=1)


def test_what_guests_have_counts_towards_the_floor() -> None:
    calls = [Call("online", "a", pixels=2), Call("bulk", "a", pixels=2, priority=1)]
    step_scheduler = StepScheduler[Call](
        {"denoise": 8, "decode": 0}, lambda own, room: 2, floor=0.4
    )
    for call in calls:
        step_scheduler.add(call)
    assert set(turns(step_scheduler, now=0, number=50)) == {"online+bulk"}


def test_of_a_floor_one_may_start_and_more_when_they_are_due() -> None:
    step_scheduler = StepScheduler[Call]({"denoise": 8, "decode": 0}, floor=0.25)
    online, bulk = Call("online", "a"), Call("bulk", "b", priority=1)
    step_scheduler.add(online)
    assert step_scheduler.may_start(1, pixels=2)
    step_scheduler.add(bulk)
    may = []
    for now in range(8):
        may.append(step_scheduler.may_start(1, pixels=2))
        for call in step_scheduler.next_calls(now):
            step_scheduler.add(call)
    assert not all(may)
    assert any(may)


def test_a_forward_stays_within_its_budget() -> None:
    calls = [Call(str(i), "a", pixels=4) for i in range(5)]
    step_scheduler = scheduler(*calls, budget=8)
    served = [names(step_scheduler.next_calls(0)) for _ in range(3)]
    assert served == [["0", "1"], ["2", "3"], ["4"]]


def test_a_call_over_the_budget_goes_alone() -> None:
    step_scheduler = scheduler(Call("large", "a", pixels=50), Call("small", "a"), budget=8)
    assert names(step_scheduler.next_calls(0)) == ["large"]
    assert names(step_scheduler.next_calls(0)) == ["small"]


def test_kinds_have_budgets_of_their_own() -> None:
    step_scheduler = scheduler(*(Call(str(i), "d", kind="decode") for i in range(2)))
    assert names(step_scheduler.next_calls(0)) == ["0"]


def test_decodes_go_first_whoever_is_more_delayed() -> None:
    late = Call("late", "a", submitted_at=0, seconds_alone=1)
    decodes = [
        Call(str(i), "d", kind="decode", setup=None, submitted_at=9, seconds_alone=100)
        for i in range(2)
    ]
    step_scheduler = scheduler(late, *decodes)
    assert [names(step_scheduler.next_calls(10)) for _ in range(3)] == [["0"], ["1"], ["late"]]


def test_what_needs_no_setup_leaves_it_as_it_is() -> None:
    step_scheduler = scheduler(Call("active", "k", setup=("x",)))
    step_scheduler.setup_s = 4
    assert turns(step_scheduler, now=1, number=1) == ["active"]
    step_scheduler.add(Call("decode", "d", kind="decode", setup=None))
    step_scheduler.add(Call("other", "k", setup=("y",), submitted_at=-1))
    assert names(step_scheduler.next_calls(1)) == ["decode"]
    assert turns(step_scheduler, now=1, number=3) == ["active"] * 3


def test_a_lowered_limit_stays() -> None:
    step_scheduler = scheduler(*(Call(str(i), "a", pixels=4) for i in range(4)))
    step_scheduler.lower_limit("denoise", 9)
    step_scheduler.lower_limit("denoise", 50)
    assert names(step_scheduler.next_calls(0)) == ["0", "1"]


def test_a_setup_is_changed_for_one_who_would_wait_longer_even_if_it_took_no_time() -> None:
    active = Call("active", "k", setup=("x",), submitted_at=0)
    other = Call("other", "k", setup=("y",), submitted_at=-5)
    step_scheduler = scheduler(active)
    step_scheduler.setup_s = 4
    assert turns(step_scheduler, now=1, number=1) == ["active"]
    step_scheduler.add(Call("younger", "k", setup=("y",), submitted_at=-3))
    assert turns(step_scheduler, now=2, number=5) == ["active"] * 5
    step_scheduler.add(other)
    assert turns(step_scheduler, now=7, number=5) == ["other+younger"] * 5
    assert step_scheduler.num_lane_switches == 1


def test_a_removed_call_does_not_go() -> None:
    gone, stays = Call("gone", "a"), Call("stays", "a")
    step_scheduler = scheduler(gone, stays)
    step_scheduler.remove(gone)
    assert names(step_scheduler.next_calls(0)) == ["stays"]


def test_whatever_parks_is_served_once() -> None:
    chance = random.Random(0)
    for _ in range(200):
        calls = [
            Call(str(i), chance.choice("abc"), chance.randint(1, 60), chance.randint(0, 1))
            for i in range(chance.randint(1, 20))
        ]
        step_scheduler = scheduler(*calls)
        served: list[Call] = []
        while forward := step_scheduler.next_calls(0):
            served += forward
            assert len({(call.key, call.priority) for call in forward}) == 1
        assert sorted(names(served)) == sorted(names(calls))
