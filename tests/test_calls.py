import gc
import weakref
from contextvars import ContextVar, copy_context
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shared.engine.calls import ModuleCall, PipelineRun, parking


class Double(nn.Module):
    def forward(self, sample: Tensor, factor: int = 2) -> Tensor:
        return sample * factor


def run_twice(module: nn.Module) -> Any:
    return module(module(torch.ones(1)), factor=5).item()


def test_a_run_parks_at_each_call_and_goes_on_with_what_it_is_given() -> None:
    module = Double()
    with parking(module):
        run = PipelineRun(lambda: run_twice(module))
        first = run.start()
        assert isinstance(first, ModuleCall)
        assert (first.run, first.module) == (run, module)
        assert first.kwargs["sample"].item() == 1
        second = run.resume(torch.tensor([7.0]))
        assert second is not None
        assert {name: float(value) for name, value in second.kwargs.items()} == {
            "sample": 7,
            "factor": 5,
        }
        assert run.resume(second.method(**second.kwargs)) is None
    assert run.result == 35
    assert run.error is None


def test_a_thrown_error_ends_the_run_with_it() -> None:
    module = Double()
    with parking(module):
        run = PipelineRun(lambda: run_twice(module))
        run.start()
        assert run.throw(RuntimeError("enough")) is None
    assert isinstance(run.error, RuntimeError)


def test_a_run_may_catch_what_is_thrown_and_go_on() -> None:
    module = Double()

    def stubborn() -> float:
        try:
            return float(module(torch.ones(1)))
        except RuntimeError:
            return float(module(torch.zeros(1)))

    with parking(module):
        run = PipelineRun(stubborn)
        run.start()
        again = run.throw(RuntimeError("once"))
        assert again is not None
        assert run.resume(torch.tensor([4.0])) is None
    assert run.result == 4


def test_a_finished_run_is_freed_without_the_garbage_collector() -> None:
    gc.disable()
    try:
        run = PipelineRun(lambda: torch.ones(1))
        run.start()
        result = weakref.ref(run.result)
        del run
        assert result() is None
    finally:
        gc.enable()


def test_a_stop_iteration_ends_a_run_with_what_futures_take() -> None:
    run = PipelineRun(lambda: next(iter(())))
    assert run.start() is None
    assert isinstance(run.error, RuntimeError)
    assert isinstance(run.error.__cause__, StopIteration)


def test_calls_from_outside_a_run_go_through() -> None:
    module = Double()
    with parking(module):
        assert run_twice(module) == 10


def test_hooks_still_run_and_the_module_is_left_as_it_was() -> None:
    module, seen = Double(), []
    module.register_forward_pre_hook(lambda *_: seen.append("hook"))
    with parking(module):
        run = PipelineRun(lambda: module(torch.ones(1)))
        run.start()
        run.resume(torch.ones(1))
    assert seen == ["hook"]
    assert "forward" not in vars(module)


def test_a_wrapper_of_another_library_is_kept() -> None:
    module = Double()
    wrapper = module.forward
    module.forward = wrapper
    with parking(module):
        assert module.forward is not wrapper
    assert module.forward is wrapper


def test_two_engines_on_one_module_are_refused() -> None:
    module = Double()
    with parking(module), pytest.raises(ValueError, match="another engine"), parking(module):
        pass


def test_a_run_sees_the_context_that_it_is_given() -> None:
    request_id = ContextVar("request_id", default="none")
    module = Double()

    def read() -> str:
        module(torch.ones(1))
        return request_id.get()

    runs = []
    with parking(module):
        for name in ("first", "second"):
            request_id.set(name)
            runs.append(PipelineRun(read, copy_context()))
        request_id.set("engine")
        for run in runs:
            run.start()
        for run in runs:
            run.resume(torch.ones(1))
    assert [run.result for run in runs] == ["first", "second"]
    assert request_id.get() == "engine"
