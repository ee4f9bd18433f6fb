from dataclasses import dataclass

from shared.engine.step_scheduler import StepScheduler


@dataclass(frozen=True, eq=False)
class Call:
    name: str
    key: str
    latents: int = 1


def names(calls: list[Call]) -> list[str]:
    return [call.name for call in calls]


def scheduler(*calls: Call, budget: int = 100) -> StepScheduler[Call]:
    step_scheduler = StepScheduler[Call](budget)
    for call in calls:
        step_scheduler.add(call)
    return step_scheduler


def test_nothing_parked_is_nothing_to_do() -> None:
    assert scheduler().next_calls() == []


def test_calls_of_one_lane_go_together() -> None:
    step_scheduler = scheduler(Call("a1", "a"), Call("b1", "b"), Call("a2", "a"))
    assert names(step_scheduler.next_calls()) == ["a1", "a2"]
    assert names(step_scheduler.next_calls()) == ["b1"]
    assert step_scheduler.next_calls() == []


def test_lanes_take_turns() -> None:
    a, b = Call("a", "a"), Call("b", "b")
    step_scheduler = scheduler(a, b)
    turns = []
    for _ in range(4):
        calls = step_scheduler.next_calls()
        turns += names(calls)
        for call in calls:
            step_scheduler.add(call)
    assert turns == ["a", "b", "a", "b"]


def test_a_forward_stays_within_its_budget() -> None:
    calls = [Call(str(i), "a", latents=4) for i in range(5)]
    step_scheduler = scheduler(*calls, budget=8)
    assert [names(step_scheduler.next_calls()) for _ in range(3)] == [["0", "1"], ["2", "3"], ["4"]]


def test_a_call_over_the_budget_goes_alone() -> None:
    step_scheduler = scheduler(Call("large", "a", latents=50), Call("small", "a"), budget=8)
    assert names(step_scheduler.next_calls()) == ["large"]
    assert names(step_scheduler.next_calls()) == ["small"]


def test_a_removed_call_does_not_go() -> None:
    gone, stays = Call("gone", "a"), Call("stays", "a")
    step_scheduler = scheduler(gone, stays)
    step_scheduler.remove(gone)
    assert names(step_scheduler.next_calls()) == ["stays"]
