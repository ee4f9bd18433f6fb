"""A module's forward as a compiler made it: once, for all sizes and numbers of rows.

`torch` takes a minute or two on two cores, keeps what it made on disk, and needs a C++ compiler.
`openvino` takes some seconds, for UNets on a CPU. Nothing is compiled while requests run: what does
not fit (adapters, a size that the module treats in another way) goes through the module as it is.
"""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from shared.config import Compiler
from shared.engine.calls import replaced
from shared.engine.cuda_graphs import CudaGraphs
from shared.engine.declarations import arguments_of
from shared.engine.layers import device_type
from shared.engine.recorded_forward import RecordedForward

Forward = Callable[..., Any]


class Compilable:
    """Calls a module's own `method`, or what `compile` has made of it while no adapter is active.

    With `record_forwards` either is recorded where that saves time: on a CUDA device as graphs, the
    module's own on a CPU by TorchScript. Whoever calls it from another thread than made it gets the
    module's own: recordings are for one thread.
    """

    def __init__(
        self,
        module: nn.Module,
        is_adapted: Callable[[], bool],
        method: str = "forward",
        *,
        record_forwards: bool,
    ) -> None:
        self._module, self._method, self._own = module, method, getattr(module, method)
        self._is_adapted = is_adapted
        self._thread = threading.get_ident()
        self._compiled: Forward | None = None
        self._records_on = device_type(module) if record_forwards else None
        self._started = self._recorded(self._own)
        functools.update_wrapper(self, self._own)

    def compile(self, compiler: Compiler, kwargs: dict[str, Any]) -> None:
        """Compile for arguments such as `kwargs`, of whatever sizes.

        Sizes that are equal there are taken to be equal always. Raises what the compiler raises;
        ModuleNotFoundError where OpenVINO is not installed.
        """
        if compiler == "torch":
            self._compiled = _by_torch(self._own, kwargs)
        else:
            from shared.engine.openvino_forward import OpenVinoForward  # of an extra

            self._compiled = OpenVinoForward(self._module, self._own, kwargs)
        self._started = self._recorded(self._compiled)

    @property
    def ways(self) -> list[Forward]:
        """Those that a call may go, by their bits."""
        return [self._own] if self._compiled is None else [self._compiled, self._own]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        is_plain = self._is_adapted() or threading.get_ident() != self._thread
        forward = self._own if is_plain else self._started
        return forward(*args, **kwargs)

    @property
    def is_adapted(self) -> bool:
        """Whether an adapter is active."""
        return self._is_adapted()

    @property
    def is_graphed(self) -> bool:
        """Whether a call would be a graph."""
        return self._records_on == "cuda" and not self._is_adapted()

    @property
    def num_tries(self) -> int:
        """How many calls took longer, to be recorded or compared."""
        started = self._started
        return started.num_tries if isinstance(started, CudaGraphs | RecordedForward) else 0

    def _recorded(self, forward: Forward) -> Forward:
        if self._records_on == "cuda":
            return CudaGraphs(forward)
        if self._records_on == "cpu" and forward is self._own:
            # A decoder's layers do not see to it that a row's bits are the same in a part.
            return RecordedForward(self._module, forward, in_parts=self._method == "forward")
        return forward


@contextmanager
def compilable(
    module: nn.Module, is_adapted: Callable[[], bool], *, record_forwards: bool = True
) -> Iterator[None]:
    """Within it, the module's forward is a Compilable."""
    compilable = Compilable(module, is_adapted, record_forwards=record_forwards)
    with replaced(module, "forward", compilable):
        yield


@contextmanager
def recorded_decode(vae: nn.Module, *, record_forwards: bool = True) -> Iterator[None]:
    """Within it, the autoencoder's `decode` is a Compilable that is recorded on a CPU.

    On a GPU it was not tried.
    """
    is_known = arguments_of(vae, "decode") is not None and device_type(vae) == "cpu"
    decode = Compilable(vae, lambda: False, "decode", record_forwards=record_forwards and is_known)
    with replaced(vae, "decode", decode):
        yield


def _by_torch(own: Forward, kwargs: dict[str, Any]) -> Forward:
    compiled = torch.compile(own, dynamic=True)
    compiled(**kwargs)

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch.compiler.set_stance("eager_on_recompile"):
            return compiled(*args, **kwargs)

    return call
