"""A forward's rows in parts: each part alone on its core, where that takes no longer."""

import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from shared.engine import each_core
from shared.engine.each_core import EachCore, Faster, Replay


class Clock:
    """Of ways that take their time by it."""

    def __init__(self) -> None:
        self.now, self.num_calls = 0.0, Counter[float]()

    def way(self, seconds: float) -> Replay:
        def replay(tensors: Sequence[Tensor]) -> Tensor:
            self.now += seconds
            self.num_calls[seconds] += 1
            return tensors[0]

        return replay


@pytest.fixture
def cores() -> EachCore:
    if torch.get_num_threads() == 1:
        pytest.skip("one core has no parts")
    return EachCore()


def test_parts_are_computed_at_once_by_one_thread_each(cores: EachCore) -> None:
    met = threading.Barrier(cores.num, timeout=60)

    def replay(tensors: Sequence[Tensor]) -> Tensor:
        met.wait()
        torch.ones(1_000_000).sin()  # an operation for several threads
        number, needs_grad = torch.get_num_threads(), torch.is_grad_enabled()
        return torch.tensor([[number, needs_grad, *map(len, tensors)]])

    rows, num_threads = 2 * cores.num + 1, torch.get_num_threads()
    found = cores.parts(replay)([torch.ones(rows, 4), torch.ones(rows)]).tolist()
    assert found == [[1, 0, 3, 3]] + (cores.num - 1) * [[1, 0, 2, 2]]
    with ThreadPoolExecutor() as new:
        in_a_new_thread = new.submit(torch.get_num_threads).result()
    assert [torch.get_num_threads(), in_a_new_thread] == 2 * [num_threads]


def test_rows_come_back_in_their_order(cores: EachCore) -> None:
    rows = torch.randn(2 * cores.num + 1, 4)
    assert torch.equal(cores.parts(lambda tensors: tensors[0])([rows]), rows)


def test_an_error_of_a_part_is_raised_and_the_next_are_not_hurt(cores: EachCore) -> None:
    def fail_at_none(tensors: Sequence[Tensor]) -> Tensor:
        assert bool(tensors[0].all())
        return tensors[0]

    replay = cores.parts(fail_at_none)
    with pytest.raises(AssertionError):
        replay([torch.arange(cores.num)])
    assert len(replay([torch.ones(cores.num)])) == cores.num


@pytest.mark.parametrize(
    ("parts_s", "whole_s", "are_kept"), [(1.0, 3.0, True), (2.01, 2.0, True), (3.0, 2.0, False)]
)
def test_the_faster_way_is_kept_and_parts_where_neither_is(
    parts_s: float, whole_s: float, are_kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(each_core.time, "perf_counter", lambda: clock.now)
    faster = Faster(clock.way(parts_s), clock.way(whole_s))
    for _ in range(16):
        faster([torch.ones(2)])
    kept, left = (parts_s, whole_s) if are_kept else (whole_s, parts_s)
    assert clock.num_calls == {kept: 13, left: 3}
