"""A forward replayed on a CPU by TorchScript: what it does is done without Python in between.

Small forwards are mostly the start of their operations. Between two of them Python takes some
microseconds of the engine's thread, and others of the process take turns with it: a replay holds
no lock of Python's. It is the same operations on the same weights, and gives the same bits.
"""

import logging
import time
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit import optimized_execution  # type: ignore[attr-defined]
from torch.jit._trace import TracerWarning

from shared.engine.flat_forward import PLAIN, TENSOR, FlatForward, Rest, split
from shared.engine.layers import arranged_weights

logger = logging.getLogger(__name__)

# What is saved is some milliseconds of each forward: nothing of one that takes so long.
_LONG_S = 0.25
# One does for all numbers of rows and most sizes; each takes half a second to make.
_MOST_RECORDINGS = 4
_EXAMPLE_ROWS = 2
# Sizes that were compared. Prompts of any length could be without end.
_MOST_KNOWN = 4096

_Recording = Callable[..., Tensor]


class RecordedForward:
    """Calls `own`, a module's forward, and replays it where that was seen to give the same bits.

    That is compared for each size of the arguments, when it comes first. What cannot be recorded,
    takes long anyway or gives more than one tensor goes through `own`. For one thread.
    """

    def __init__(self, module: nn.Module, own: Callable[..., Any]) -> None:
        self._module, self._own = module, own
        self._recordings: list[tuple[Rest, _Recording]] = []
        self._is_recording = True
        self._known: dict[Hashable, _Recording | None] = {}
        self.num_tries = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tensors, rest = split(kwargs)
        key = None if args else _key(tensors, rest)
        if key is None:
            return self._own(*args, **kwargs)
        if (recording := self._known.get(key)) is not None:
            return (_replay(recording, tensors),)
        started = time.perf_counter()
        output = self._own(**kwargs)
        if key not in self._known and time.perf_counter() - started < _LONG_S:
            self._learn(key, tensors, rest, output)
        return output

    def _learn(self, key: Hashable, tensors: Sequence[Tensor], rest: Rest, output: Any) -> None:
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        with torch.random.fork_rng(devices=()):  # nothing is drawn here for a picture
            self._known[key] = self._find(tensors, rest, output)
        self.num_tries += 1

    def _find(self, tensors: Sequence[Tensor], rest: Rest, output: Any) -> _Recording | None:
        """One that makes `output` of these, bit by bit; None where there is none to be had."""
        for known_rest, recording in self._recordings:
            if known_rest == rest and _makes(recording, tensors, output):
                return recording
        if not self._is_recording or len(self._recordings) == _MOST_RECORDINGS:
            return None
        try:
            recording = self._record(_example(tensors), rest)
        except Exception as error:
            self._is_recording = False
            logger.info("a forward cannot be recorded: %s", error)
            return None
        self._recordings.append((rest, recording))
        return recording if _makes(recording, tensors, output) else None

    def _record(self, tensors: Sequence[Tensor], rest: Rest) -> _Recording:
        flat = FlatForward(self._module, self._own, rest)
        for number, weight in enumerate(arranged_weights(self._module)):
            flat.register_buffer(f"arranged_{number}", weight)
        with warnings.catch_warnings():
            # Of each size that Python looks at: what it makes is compared for each.
            warnings.simplefilter("ignore", TracerWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            recording: _Recording = torch.jit.trace(  # type: ignore[no-untyped-call]
                flat, tuple(tensors), check_trace=False
            )
        return recording


def _example(tensors: Sequence[Tensor]) -> list[Tensor]:
    """A few rows of them: all that is made of it stays in memory until it is recorded."""
    rows = tensors[0].shape[:1]
    return [each[:_EXAMPLE_ROWS] if each.shape[:1] == rows else each for each in tensors]


def _makes(recording: _Recording, tensors: Sequence[Tensor], output: Any) -> bool:
    try:
        made = _replay(recording, tensors)
    except RuntimeError:  # its example was of other sizes
        return False
    return torch.equal(_bits(made), _bits(output[0]))


def _bits(numbers: Tensor) -> Tensor:
    """For those that are none to be equal, too."""
    return numbers.contiguous().view(torch.uint8)


def _replay(recording: _Recording, tensors: Sequence[Tensor]) -> Tensor:
    # Else it is run twice to look at sizes, and made anew for each that comes after.
    with optimized_execution(False):
        return recording(*tensors)


def _key(tensors: Sequence[Tensor], rest: Rest) -> Hashable | None:
    """Equal for calls that are alike in all but values; None where that cannot be told."""
    _, others = rest
    if not all(tensor.is_cpu for tensor in tensors):
        return None
    if not all(other is TENSOR or isinstance(other, PLAIN) for other in others):
        return None
    sizes = [(tensor.shape, tensor.dtype, tensor.is_contiguous()) for tensor in tensors]
    return rest, tuple(sizes), torch.get_num_threads()
