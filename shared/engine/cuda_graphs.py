"""A forward replayed as a CUDA graph: its thousand kernels are started by a single call.

A GPU is done with a small forward sooner than Python has started it (docs/decisions.md).
"""

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from shared.engine.row_rule import RowRule

logger = logging.getLogger(__name__)

# A graph is of one number of rows. With these, forwards of any number are few, and without padding.
GRAPHED_ROWS = RowRule((1, 2, 4, 6, 8, 12, 16, 24, 32))

# Each holds its own arguments, of a few MB; what comes after so many sizes is not recorded.
_MOST_GRAPHS = 128

_PLAIN = (type(None), bool, int, float, str)


@dataclass(frozen=True)
class _Graph:
    """A recorded forward, from the memory of its arguments to that of its output."""

    graph: torch.cuda.CUDAGraph
    arguments: Sequence[Any]
    output: Any

    def replay(self, arguments: Sequence[Any]) -> Any:
        """A copy of its output for these; the next replay of any graph overwrites the original."""
        for own, given in zip(self.arguments, arguments, strict=True):
            if isinstance(own, Tensor):
                own.copy_(given)
        self.graph.replay()
        return pytree.tree_map(_copied, self.output)


class CudaGraphs:
    """Calls `forward`, and replays it from the second call on that has arguments of these sizes.

    What cannot be recorded, because it waits for the device say, is called as it is. Arguments
    beside tensors are part of what was recorded. For one thread, whose forwards follow one another.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward = forward
        self._graphs: dict[Hashable, _Graph | None] = {}
        self._seen: set[Hashable] = set()
        self._memory = torch.cuda.graph_pool_handle()  # one for all: they never run at once

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        arguments, spec = pytree.tree_flatten((args, kwargs))
        key = _key(arguments, spec)
        if key is not None and key not in self._graphs and self._is_to_be_recorded(key):
            self._graphs[key] = self._record(arguments, spec)
        graph = self._graphs.get(key)
        return self._forward(*args, **kwargs) if graph is None else graph.replay(arguments)

    def _is_to_be_recorded(self, key: Hashable) -> bool:
        """Not at the first call, which readies on its way what must not be recorded."""
        if key in self._seen:
            return True
        if len(self._seen) < _MOST_GRAPHS:
            self._seen.add(key)
        return False

    def _record(self, arguments: Sequence[Any], spec: pytree.TreeSpec) -> _Graph | None:
        """None where that is not possible."""
        own = [_copied(argument) for argument in arguments]
        args, kwargs = pytree.tree_unflatten(own, spec)
        graph = torch.cuda.CUDAGraph()
        noise = torch.cuda.default_generators[torch.cuda.current_device()]
        state = noise.clone_state()
        try:
            # Other threads may use the device meanwhile: previews are drawn by one.
            with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
                output = self._forward(*args, **kwargs)
        except RuntimeError as error:
            noise.graphsafe_set_state(state)  # its own would wait for the end of the recording
            logger.warning("a forward cannot be recorded as a CUDA graph: %s", error)
            return None
        return _Graph(graph, own, output)


def _key(arguments: Sequence[Any], spec: pytree.TreeSpec) -> Hashable | None:
    """Equal for calls that one graph serves; None where none can."""
    parts: list[Hashable] = [spec]
    for argument in arguments:
        if isinstance(argument, Tensor):
            if argument.device.type != "cuda":
                return None
            parts.append((argument.shape, argument.dtype))
        elif isinstance(argument, _PLAIN):
            parts.append(argument)
        else:
            return None
    return tuple(parts)


def _copied(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf
