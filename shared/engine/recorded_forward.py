"""A forward replayed on a CPU by TorchScript: what it does is done without Python in between.

Small forwards are mostly the start of their operations. Between two of them Python takes some
microseconds of the engine's thread, and others of the process take turns with it: a replay holds
no lock of Python's. It is the same operations on the same weights, but for divisions by one, and
gives the same bits.
"""

import logging
import threading
import time
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.jit import optimized_execution  # type: ignore[attr-defined]
from torch.jit._trace import TracerWarning

from shared.engine.each_core import EachCore, Faster, Replay
from shared.engine.flat_forward import PLAIN, TENSOR, FlatForward, Rest, split
from shared.engine.layers import NUM_THREADS, arranged_weights, num_threads

logger = logging.getLogger(__name__)

# What is saved is some tens of milliseconds of a forward at most: little of one so long.
_LONG_S = 0.5
# One does for most sizes, and for all numbers of rows; each takes half a second to make.
_MOST_RECORDINGS = 8
_EXAMPLE_ROWS = 2
# Sizes that were compared. Prompts of any length could be without end.
_MOST_KNOWN = 4096

# What it compiles on the way is kept in a place for all threads.
_one_traces = threading.Lock()


class _Key(NamedTuple):
    """Calls of equal keys are alike in all but values."""

    rest: Rest
    num_threads: int
    sizes: Hashable


class RecordedForward:
    """Calls `own`, a module's forward, and replays it where that was seen to give the same bits.

    That is compared for each size of the arguments, when it comes first; their values are taken not
    to matter to the module's Python. Its rows go to the cores in parts where that takes less time.
    What cannot be recorded, takes long anyway or gives more than one tensor goes through `own`. For
    one thread.
    """

    def __init__(
        self, module: nn.Module, own: Callable[..., Any], *, in_parts: bool = True
    ) -> None:
        self._module, self._own = module, own
        self._may_be_in_parts = in_parts
        self._recordings: dict[_Key, Replay | None] = {}  # by their example's
        self._known: dict[_Key, Replay | None] = {}
        self._cores: EachCore | None = None
        self._not_in_parts: set[_Key] = set()  # by those of a row
        self.num_tries = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tensors, rest = split(kwargs)
        key = None if args else _key(tensors, rest)
        if key is None:
            return self._own(*args, **kwargs)
        if (replay := self._known.get(key)) is not None:
            return (replay(tensors),)
        started = time.perf_counter()
        output = self._own(**kwargs)
        if key not in self._known and time.perf_counter() - started < _LONG_S:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
                self._not_in_parts.clear()
            self._known[key] = self._find(key, tensors, output) if _is_one(output) else None
            self.num_tries += 1
        return output

    def _find(self, key: _Key, tensors: Sequence[Tensor], output: Any) -> Replay | None:
        """What makes `output` of these, bit by bit; None where there is nothing to be had."""
        recording = self._find_recording(key, tensors, output)
        return recording and self._in_parts(recording, key, tensors)

    def _in_parts(self, recording: Replay, key: _Key, tensors: Sequence[Tensor]) -> Replay:
        """With the rows in parts, where these give the same bits and take less time."""
        if not (self._may_be_in_parts and _have_parts(tensors, key.num_threads)):
            return recording
        of_a_row = key._replace(sizes=_sizes([tensor[:1] for tensor in tensors]))
        if of_a_row in self._not_in_parts:
            return recording
        try:
            if self._cores is None or self._cores.num != key.num_threads:
                self._cores = EachCore()
            parts, others = self._cores.parts(recording), _random(tensors)
            if _makes(parts, others, recording(others)):
                return Faster(parts, recording)
            self._not_in_parts.add(of_a_row)
        except Exception as error:  # what fails is an attempt: there is a way already
            logger.info("rows are not cut into parts: %s", error)
        return recording

    def _find_recording(self, key: _Key, tensors: Sequence[Tensor], output: Any) -> Replay | None:
        """One that was made before, or is now."""
        for example, recording in self._recordings.items():
            is_alike = example[:2] == key[:2]  # but for sizes
            if is_alike and recording and _makes(recording, tensors, output[0]):
                return recording
        few = _example(tensors)
        example = key._replace(sizes=_sizes(few))
        if example in self._recordings or len(self._recordings) == _MOST_RECORDINGS:
            return None
        try:
            recording = self._recordings[example] = self._record(few, key.rest)
        except Exception as error:
            self._recordings[example] = None
            logger.warning("%s cannot be recorded: %s", type(self._module).__name__, error)
            return None
        return recording if _makes(recording, tensors, output[0]) else None

    def _record(self, tensors: Sequence[Tensor], rest: Rest) -> Replay:
        """By what `torch.jit.trace` is made of: what that makes, torch keeps for ever."""
        flat = FlatForward(self._module, self._own, rest)
        module = self._module
        weights = [*module.parameters(), *module.buffers(), *arranged_weights(module)]
        with _one_traces, warnings.catch_warnings():
            # Of each size that Python looks at: what it makes is compared for each.
            warnings.simplefilter("ignore", TracerWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            graph, _ = torch._C._create_graph_by_tracing(
                lambda *given: flat(*given[: len(tensors)]),
                (*tensors, *weights, NUM_THREADS),
                lambda _: "",  # names of variables, for who reads the graph
                True,
                False,
            )
        _leave_out_divisions_by_one(graph)
        function = torch._C._create_function_from_graph("forward", graph)

        def replay(tensors: Sequence[Tensor]) -> Tensor:
            # Else it is run twice to look at sizes, and made anew for each that comes after.
            with optimized_execution(False):
                made: Tensor = function(*tensors, *weights, num_threads())
                return made

        others = _random(tensors)
        if not _makes(replay, others, flat(*others)):
            raise ValueError("of other values it makes something else, as if not by torch alone")
        return replay


def _leave_out_divisions_by_one(graph: torch.Graph) -> None:
    """A diffusers model has one or more in each block."""
    for division in graph.findAllNodes("aten::div"):  # type: ignore[attr-defined]
        divided, divisor, *rounding = division.inputs()
        if rounding or not _is_number(divisor, 1):
            continue
        is_as_it_was = divided.type().scalarType() == division.output().type().scalarType()
        # Who else has it might write over it.
        if is_as_it_was and len(divided.uses()) == 1 and divided.node().kind() != "prim::Param":
            division.output().replaceAllUsesWith(divided)
            division.destroy()


def _is_number(value: torch._C.Value, number: float) -> bool:
    """Whether it is that constant, of which the tracer makes a tensor without dimensions."""
    if value.node().kind() != "prim::Constant":
        return False
    constant = torch.as_tensor(value.toIValue(), dtype=torch.float64)
    return torch.equal(constant, torch.tensor(number, dtype=torch.float64))


def _is_one(output: Any) -> bool:
    """Whether it is what a recording gives."""
    return isinstance(output, tuple) and len(output) == 1 and isinstance(output[0], Tensor)


def _example(tensors: Sequence[Tensor]) -> list[Tensor]:
    """A few rows of them: all that is made of it stays in memory until it is recorded."""
    rows = tensors[0].shape[:1]
    return [each[:_EXAMPLE_ROWS] if each.shape[:1] == rows else each for each in tensors]


def _have_parts(tensors: Sequence[Tensor], number: int) -> bool:
    """Whether they can be cut by rows into so many, more than one."""
    rows = tensors[0].shape[:1]
    return number > 1 and rows >= (number,) and all(each.shape[:1] == rows for each in tensors)


def _random(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Others of their sizes: where values are all alike, the order of additions does not show."""
    random = torch.Generator().manual_seed(0)
    return [
        torch.randn(each.shape, generator=random).to(each.dtype)
        if each.is_floating_point()
        else each
        for each in tensors
    ]


def _makes(replay: Replay, tensors: Sequence[Tensor], output: Tensor) -> bool:
    try:
        made = replay(tensors)
    except Exception:  # its example was of other sizes
        return False
    return torch.equal(_bits(made), _bits(output))


def _bits(numbers: Tensor) -> Tensor:
    """For those that are none to be equal, too."""
    return numbers.contiguous().view(torch.uint8)


def _key(tensors: Sequence[Tensor], rest: Rest) -> _Key | None:
    """None where it cannot be told whether others are alike."""
    _, others = rest
    if not all(tensor.is_cpu for tensor in tensors):
        return None
    if not all(other is TENSOR or isinstance(other, PLAIN) for other in others):
        return None
    return _Key(rest, torch.get_num_threads(), _sizes(tensors))


def _sizes(tensors: Sequence[Tensor]) -> Hashable:
    return tuple((tensor.shape, tensor.dtype, tensor.is_contiguous()) for tensor in tensors)
