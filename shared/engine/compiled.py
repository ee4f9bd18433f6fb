"""A module's forward compiled by torch: once, for all sizes and numbers of rows.

Compiling takes a minute or two; what comes of it torch keeps on disk, for the next process. While
requests run nothing is compiled: what does not fit (other adapters, a size that the module treats
in another way) goes through the module as it is.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from shared.engine.calls import replaced


class Compilable:
    """Calls a function, or what `compile` has made of it."""

    def __init__(self, own: Callable[..., Any], device: torch.device) -> None:
        self._own = own
        self._uses_graphs = device.type == "cuda"
        self._compiled: Callable[..., Any] | None = None
        self._stance = "default"
        functools.update_wrapper(self, own)

    def compile(self, call: Callable[[], Any]) -> None:
        """Compile for arguments as `call` calls this with, of whatever sizes.

        Sizes that are equal there are taken to be equal always. Raises what the compiler raises.
        """
        mode = "reduce-overhead" if self._uses_graphs else None
        self._stance = "default"
        self._compiled = torch.compile(self._own, dynamic=True, mode=mode)
        try:
            call()
        except BaseException:
            self._compiled = None
            raise
        self._stance = "eager_on_recompile"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._compiled is None:
            return self._own(*args, **kwargs)
        with torch.compiler.set_stance(self._stance):
            output = self._compiled(*args, **kwargs)
        return pytree.tree_map(_copied, output) if self._uses_graphs else output


@contextmanager
def compilable(module: nn.Module) -> Iterator[None]:
    """Within it, the module's forward is a Compilable."""
    device = next(module.parameters()).device
    with replaced(module, "forward", Compilable(module.forward, device)):
        yield


def _copied(leaf: Any) -> Any:
    """A CUDA graph puts its next output into the same memory."""
    return leaf.clone() if isinstance(leaf, Tensor) else leaf
