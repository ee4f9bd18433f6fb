"""A forward's rows in parts: each part alone on its core, where that is no later done."""

import threading
import time
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from shared.engine.each_core import EachCore, Sooner


class Sleeping:
    def __init__(self, seconds: float) -> None:
        self.seconds, self.num_calls = seconds, 0

    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        self.num_calls += 1
        time.sleep(self.seconds)
        return tensors[0]


def num_threads_of_a_new_thread() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


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
    assert [torch.get_num_threads(), num_threads_of_a_new_thread()] == 2 * [num_threads]


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


@pytest.mark.parametrize(("parts_s", "are_taken"), [(0.01, True), (0.02, True), (0.06, False)])
def test_the_way_that_is_sooner_done_is_gone_and_parts_if_neither(
    parts_s: float, are_taken: bool
) -> None:
    parts, whole = Sleeping(parts_s), Sleeping(0.03 if parts_s != 0.02 else 0.02)
    sooner = Sooner(parts, whole)
    for _ in range(16):
        sooner([torch.ones(2)])
    assert (parts.num_calls, whole.num_calls) == ((13, 3) if are_taken else (3, 13))
