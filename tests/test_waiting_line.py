from dataclasses import dataclass

from shared.engine.waiting_line import WaitingLine


@dataclass(frozen=True, eq=False)
class Request:
    name: str
    priority: int = 0
    pixels: int = 10


def line(*requests: Request) -> WaitingLine[Request]:
    waiting = WaitingLine[Request](max_waiting={0: 3, 1: 2}, max_in_flight=2, max_pixels=25)
    for request in requests:
        waiting.add(request)
    return waiting


def test_first_come_first_served() -> None:
    waiting = line(Request("1"), Request("2"))
    assert [getattr(waiting.take(0, []), "name", None) for _ in range(3)] == ["1", "2", None]


def test_only_so_many_run_at_once() -> None:
    assert line(Request("new")).take(0, [Request("a"), Request("b")]) is None


def test_only_so_many_pixels_run_at_once() -> None:
    waiting = line(Request("large", pixels=20), Request("small"))
    assert waiting.take(0, [Request("a")]) is None  # nor does the small one pass the large one
    assert waiting.take(0, []) is not None


def test_what_is_larger_than_all_the_room_runs_alone() -> None:
    assert line(Request("huge", pixels=1000)).take(0, []) is not None


def test_priorities_have_room_of_their_own() -> None:
    bulk = [Request(str(i), priority=1) for i in range(2)]
    waiting = line(*bulk, Request("online"), Request("online"))
    assert waiting.is_full(1)
    assert [waiting.num_waiting(priority) for priority in (0, 1)] == [2, 2]
    assert waiting.first(1) is bulk[0]
    assert not waiting.is_full(0)
    assert waiting.take(0, bulk) is not None
    assert waiting.take(1, bulk) is None


def test_those_of_the_first_priority_are_listed_first() -> None:
    waiting = line(Request("bulk", priority=1), Request("online"))
    assert [request.name for request in waiting] == ["online", "bulk"]
    assert len(waiting) == 2


def test_the_unwanted_are_taken_out() -> None:
    waiting = line(Request("a"), Request("b"), Request("a"))
    assert len(waiting.take_all(lambda request: request.name == "a")) == 2
    assert [request.name for request in waiting] == ["b"]
    assert waiting.take_all(lambda request: request.name == "a") == []
