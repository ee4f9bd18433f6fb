"""A forward replayed as a CUDA graph: its thousand kernels are started by a single call.

A GPU is done with a small forward sooner than Python has started it (docs/decisions.md).
"""

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from shared.engine.flat_forward import PLAIN
from shared.engine.row_rule import RowRule

logger = logging.getLogger(__name__)

# A graph is of one number of rows. With these, forwards of any number are few, and without padding.
GRAPHED_ROWS = RowRule((1, 2, 4, 6, 8, 12, 16, 24, 32))

# Each holds its own arguments and output, of a few MB. Beyond, all are recorded anew.
_MOST_GRAPHS = 128
# Sizes that came once. Prompts of any length could be without end.
_MOST_SEEN = 4096


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

    Arguments beside tensors are part of what was recorded. Once something could not be recorded,
    because it waits for the device say, nothing more is. For one thread, with the device as its
    current one, whose forwards follow one another.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward = forward
        self._is_recording = True
        self._graphs: dict[Hashable, _Graph] = {}
        self._seen: set[Hashable] = set()
        self.num_tries = 0
        self._stream: torch.cuda.Stream | None = None
        self._memory: Any = None  # one for all: they never run at once
        _all.add(self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        arguments, spec = pytree.tree_flatten((args, kwargs))
        key = _key(arguments, spec)
        graph = self._graphs.get(key)
        if graph is None and self._is_to_be_recorded(key):
            graph = self._record(key, arguments, spec)
        return self._forward(*args, **kwargs) if graph is None else graph.replay(arguments)

    def forget(self) -> None:
        """Give back the memory of all graphs; they are recorded anew as they come."""
        if self._graphs:
            torch.cuda.synchronize()  # one may be running
        self._graphs.clear()
        self._memory = None

    def _is_to_be_recorded(self, key: Hashable | None) -> bool:
        """Not at the first call, which readies on its way what must not be recorded."""
        if key is None or not self._is_recording:
            return False
        if key in self._seen:
            return True
        if len(self._seen) >= _MOST_SEEN:
            self._seen.clear()
        self._seen.add(key)
        return False

    def _record(
        self, key: Hashable, arguments: Sequence[Any], spec: pytree.TreeSpec
    ) -> _Graph | None:
        """None where that is not possible."""
        self.num_tries += 1
        if len(self._graphs) >= _MOST_GRAPHS:
            self.forget()
        self._stream = self._stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._memory = self._memory or torch.cuda.graph_pool_handle()
        own = [_copied(argument) for argument in arguments]
        args, kwargs = pytree.tree_unflatten(own, spec)
        graph = torch.cuda.CUDAGraph()
        noise = torch.cuda.default_generators[torch.cuda.current_device()]
        state = noise.clone_state()
        try:
            # The outer one brings the stream back where the recording fails. Other threads may use
            # the device meanwhile: previews are drawn by one.
            with (
                torch.cuda.stream(torch.cuda.current_stream()),
                torch.cuda.graph(
                    graph,
                    pool=self._memory,
                    stream=self._stream,
                    capture_error_mode="thread_local",
                ),
            ):
                output = self._forward(*args, **kwargs)
        except RuntimeError as error:
            # Its generator would wait for the end of the recording; its memory does, for good.
            noise.graphsafe_set_state(state)
            self._is_recording = False
            logger.warning("a forward cannot be recorded as a CUDA graph: %s", error)
            return None
        self._graphs[key] = _Graph(graph, own, output)
        return self._graphs[key]


_all: "WeakSet[CudaGraphs]" = WeakSet()


def forget_graphs() -> None:
    """Of all modules: where memory runs out, theirs is wanted."""
    for graphs in list(_all):
        graphs.forget()


def _key(arguments: Sequence[Any], spec: pytree.TreeSpec) -> Hashable | None:
    """Equal for calls that one graph serves; None where none can."""
    parts: list[Hashable] = [spec]
    for argument in arguments:
        if isinstance(argument, Tensor):
            if argument.device.type != "cuda":
                return None
            parts.append((argument.shape, argument.dtype))
        elif isinstance(argument, PLAIN):
            parts.append(argument)
        else:
            return None
    return tuple(parts)


def _copied(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf
