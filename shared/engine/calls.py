"""Park and resume: a pipeline runs in a greenlet that stops at every call of a parked method."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass
from typing import Any

from greenlet import getcurrent, greenlet
from torch import nn


@dataclass(frozen=True, eq=False)
class ModuleCall:
    """A module's call that a pipeline run waits for. `kwargs` holds every argument by name."""

    run: "PipelineRun"
    module: nn.Module
    method: Callable[..., Any]  # the module's own, which does not park
    kwargs: dict[str, Any]


class PipelineRun:
    """`function` in a greenlet. Each step runs it to its next call (returned) or its end (None).

    It sees the context variables of `context`. At the end either `result` or `error` is set. Only
    one thread may step a run, and only from outside any run.
    """

    def __init__(self, function: Callable[[], Any], context: Context | None = None) -> None:
        self._function = function
        self._greenlet = _RunGreenlet(self)
        self._greenlet.gr_context = context
        self.result: Any = None
        self.error: BaseException | None = None

    def start(self) -> ModuleCall | None:
        return self._parked(self._greenlet.switch())

    def resume(self, output: Any) -> ModuleCall | None:
        """Go on with what the awaited call gave."""
        return self._parked(self._greenlet.switch(output))

    def throw(self, error: BaseException) -> ModuleCall | None:
        """Go on with `error` raised out of the awaited call."""
        return self._parked(self._greenlet.throw(error))

    def execute(self) -> None:
        """The greenlet's body; nothing escapes it, so a failing pipeline ends its own run alone."""
        try:
            self.result = self._function()
        except StopIteration as error:  # asyncio's futures take none, and would never be done
            self.error = RuntimeError("StopIteration")
            self.error.__cause__ = error
        except BaseException as error:
            self.error = error

    def _parked(self, switched: Any) -> ModuleCall | None:
        if isinstance(switched, ModuleCall):
            return switched
        del self._greenlet  # it holds this run: let go, so that the pictures are freed at once
        return None


class _RunGreenlet(greenlet):
    def __init__(self, pipeline_run: PipelineRun) -> None:
        super().__init__(pipeline_run.execute)
        self.pipeline_run = pipeline_run


def current_run() -> PipelineRun | None:
    """The run whose pipeline is executing now; None outside of any."""
    current = getcurrent()
    return current.pipeline_run if isinstance(current, _RunGreenlet) else None


@contextmanager
def parking(module: nn.Module, method: str = "forward") -> Iterator[None]:
    """Within it, calling `method` inside a PipelineRun parks; any other call goes through."""
    own = getattr(module, method)
    if hasattr(own, "parks"):
        raise ValueError(f"another engine already runs this {type(module).__name__}")
    names = list(inspect.signature(own).parameters)

    @functools.wraps(own)
    def park(*args: Any, **kwargs: Any) -> Any:
        current = getcurrent()
        if not isinstance(current, _RunGreenlet):
            return own(*args, **kwargs)
        named = dict(zip(names, args, strict=False)) | kwargs
        assert current.parent is not None
        return current.parent.switch(ModuleCall(current.pipeline_run, module, own, named))

    park.parks = True  # type: ignore[attr-defined]
    with replaced(module, method, park):
        yield


@contextmanager
def replaced(module: nn.Module, method: str, function: Callable[..., Any]) -> Iterator[None]:
    """Within it, this one module runs `function`; its hooks and its class stay as they are."""
    own = vars(module).get(method)  # set where another library already wraps this instance
    setattr(module, method, function)
    try:
        yield
    finally:
        delattr(module, method)
        if own is not None:
            setattr(module, method, own)
