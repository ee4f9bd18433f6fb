"""A module's forward as a compiler made it: once, for all sizes and numbers of rows.

`torch` takes a minute or two on two cores, keeps what it made on disk, and needs a C++ compiler.
`openvino` takes some seconds, for UNets on a CPU. Nothing is compiled while requests run: what does
not fit (adapters, a size that the module treats in another way) goes through the module as it is.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from shared.config import Compiler
from shared.engine.calls import replaced

Forward = Callable[..., Any]


class Compilable:
    """Calls a module's own forward, or what `compile` has made of it while no adapter is active."""

    def __init__(self, module: nn.Module, is_adapted: Callable[[], bool]) -> None:
        self._module, self._own = module, module.forward
        self._is_adapted = is_adapted
        self._compiled: Forward | None = None
        functools.update_wrapper(self, self._own)

    def compile(self, compiler: Compiler, kwargs: dict[str, Any]) -> None:
        """Compile for arguments such as `kwargs`, of whatever sizes.

        Sizes that are equal there are taken to be equal always. Raises what the compiler raises;
        ModuleNotFoundError where OpenVINO is not installed.
        """
        if compiler == "torch":
            self._compiled = _by_torch(self._own, next(self._module.parameters()).device, kwargs)
        else:
            from shared.engine.openvino_forward import OpenVinoForward  # of an extra

            self._compiled = OpenVinoForward(self._module, self._own, kwargs)

    @property
    def ways(self) -> list[Forward]:
        """Those that a call may go."""
        return [self._own] if self._compiled is None else [self._compiled, self._own]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._compiled is None or self._is_adapted():
            return self._own(*args, **kwargs)
        return self._compiled(*args, **kwargs)


@contextmanager
def compilable(module: nn.Module, is_adapted: Callable[[], bool]) -> Iterator[None]:
    """Within it, the module's forward is a Compilable."""
    with replaced(module, "forward", Compilable(module, is_adapted)):
        yield


def _by_torch(own: Forward, device: torch.device, kwargs: dict[str, Any]) -> Forward:
    uses_graphs = device.type == "cuda"
    mode = "reduce-overhead" if uses_graphs else None
    compiled = torch.compile(own, dynamic=True, mode=mode)
    compiled(**kwargs)

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch.compiler.set_stance("eager_on_recompile"):
            output = compiled(*args, **kwargs)
        return pytree.tree_map(_copied, output) if uses_graphs else output

    return call


def _copied(leaf: Any) -> Any:
    """A CUDA graph puts its next output into the same memory."""
    return leaf.clone() if isinstance(leaf, Tensor) else leaf
