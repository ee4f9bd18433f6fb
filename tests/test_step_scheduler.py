import random
from collections import Counter
from dataclasses import dataclass

from shared.engine.step_scheduler import StepScheduler


@dataclass(frozen=True, eq=False)
class Call:
    name: str
    key: str
    pixels: int = 1
    priority: int = 0
    kind: str = "denoise"
    setup: tuple[str, ...] = ()


def names(calls: list[Call]) -> list[str]:
    return [call.name for call in calls]


def scheduler(*calls: Call, budget: int = 100) -> StepScheduler[Call]:
    step_scheduler = StepScheduler[Call]({"denoise": budget, "decode": 0})
    for call in calls:
        step_scheduler.add(call)
    return step_scheduler


def turns(step_scheduler: StepScheduler[Call], number: int) -> list[list[Call]]:
    """The calls of the next forwards, when each parks again after it was served."""
    served = []
    for _ in range(number):
        served.append(step_scheduler.next_calls())
        for call in served[-1]:
            step_scheduler.add(call)
    return served


def test_nothing_parked_is_nothing_to_do() -> None:
    assert scheduler().next_calls() == []
    assert scheduler().first_priority() is None


def test_calls_of_one_lane_go_together() -> None:
    step_scheduler = scheduler(Call("a1", "a"), Call("b1", "b"), Call("a2", "a"))
    assert names(step_scheduler.next_calls()) == ["a1", "a2"]
    assert names(step_scheduler.next_calls()) == ["b1"]
    assert step_scheduler.next_calls() == []


def test_lanes_are_served_equal_pixels_however_many_requests_they_have() -> None:
    large = Call("large", "l", pixels=90)
    small = [Call(f"small{i}", "s", pixels=10) for i in range(3)]
    served: Counter[str] = Counter()
    for calls in turns(scheduler(large, *small), 40):
        served[calls[0].key] += sum(call.pixels for call in calls)
    assert abs(served["l"] - served["s"]) <= 90


def test_a_new_lane_neither_waits_nor_catches_up() -> None:
    old, new = Call("old", "a"), Call("new", "b")
    step_scheduler = scheduler(old)
    turns(step_scheduler, 50)
    step_scheduler.add(new)
    assert Counter(calls[0].name for calls in turns(step_scheduler, 10)) == {"old": 5, "new": 5}


def test_a_lane_that_ended_has_no_claim_later() -> None:
    step_scheduler = scheduler(Call("stays", "a"), Call("ends", "b"))
    while names(step_scheduler.next_calls()) != ["ends"]:
        step_scheduler.add(Call("stays", "a"))
    for _ in range(20):
        step_scheduler.add(Call("stays", "a"))
        step_scheduler.next_calls()
    step_scheduler.add(Call("stays", "a"))
    step_scheduler.add(Call("ends", "b"))
    assert len(set(Counter(calls[0].name for calls in turns(step_scheduler, 10)).values())) == 1


def test_the_first_priority_goes_first() -> None:
    bulk, online = Call("bulk", "a", priority=1), Call("online", "b", priority=0)
    step_scheduler = scheduler(bulk, online)
    assert step_scheduler.first_priority() == 0
    assert {calls[0].name for calls in turns(step_scheduler, 10)} == {"online"}
    step_scheduler.remove(online)
    assert step_scheduler.first_priority() == 1
    assert names(step_scheduler.next_calls()) == ["bulk"]


def test_priorities_do_not_share_a_forward() -> None:
    step_scheduler = scheduler(Call("bulk", "a", priority=1), Call("online", "a", priority=0))
    assert names(step_scheduler.next_calls()) == ["online"]


def test_a_forward_stays_within_its_budget() -> None:
    calls = [Call(str(i), "a", pixels=4) for i in range(5)]
    step_scheduler = scheduler(*calls, budget=8)
    assert [names(step_scheduler.next_calls()) for _ in range(3)] == [["0", "1"], ["2", "3"], ["4"]]


def test_a_call_over_the_budget_goes_alone() -> None:
    step_scheduler = scheduler(Call("large", "a", pixels=50), Call("small", "a"), budget=8)
    assert names(step_scheduler.next_calls()) == ["large"]
    assert names(step_scheduler.next_calls()) == ["small"]


def test_kinds_have_budgets_of_their_own() -> None:
    step_scheduler = scheduler(*(Call(str(i), "d", kind="decode") for i in range(2)))
    assert names(step_scheduler.next_calls()) == ["0"]


def test_a_lowered_limit_stays() -> None:
    step_scheduler = scheduler(*(Call(str(i), "a", pixels=4) for i in range(4)))
    step_scheduler.lower_limit("denoise", 9)
    step_scheduler.lower_limit("denoise", 50)
    assert names(step_scheduler.next_calls()) == ["0", "1"]


def test_a_setup_is_kept_until_the_others_have_waited_for_what_a_change_costs() -> None:
    a, b = Call("a", "k", setup=("x",)), Call("b", "k", setup=("y",))
    step_scheduler = scheduler(a, b)
    step_scheduler.setup_pixels = 4
    served = "".join(calls[0].name for calls in turns(step_scheduler, 100))
    assert abs(served.count("a") - served.count("b")) <= 10
    assert 10 <= step_scheduler.num_lane_switches <= 34


def test_a_removed_call_does_not_go() -> None:
    gone, stays = Call("gone", "a"), Call("stays", "a")
    step_scheduler = scheduler(gone, stays)
    step_scheduler.remove(gone)
    assert names(step_scheduler.next_calls()) == ["stays"]


def test_whatever_parks_is_served_once() -> None:
    chance = random.Random(0)
    for _ in range(200):
        calls = [
            Call(str(i), chance.choice("abc"), chance.randint(1, 60), chance.randint(0, 1))
            for i in range(chance.randint(1, 20))
        ]
        step_scheduler = scheduler(*calls)
        served: list[Call] = []
        while forward := step_scheduler.next_calls():
            served += forward
            assert len({(call.key, call.priority) for call in forward}) == 1
        assert sorted(names(served)) == sorted(names(calls))
