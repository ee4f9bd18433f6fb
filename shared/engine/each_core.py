"""A forward's rows in parts, one for each core.

The threads of one forward wait for each other after every operation, and all of them for the one
whose core another process has taken for a moment. Parts wait for each other once, at the end.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

# Tensors of equally many rows to one, without any Python on the way.
Replay = Callable[[Sequence[Tensor]], Tensor]

_TRIES = 3
# Undisturbed, both ways often take as long; it is beside others that parts are ahead.
_MUCH_LONGER = 1.05


class EachCore:
    """As many threads as torch has for an operation, each of which computes by itself."""

    def __init__(self) -> None:
        self.num = torch.get_num_threads()
        self._threads = ThreadPoolExecutor(self.num, "core", _compute_alone)
        started = threading.Barrier(self.num)
        for _ in self._threads.map(lambda _: started.wait(), range(self.num)):
            pass
        torch.set_num_threads(self.num)  # what one of them asks for counts for all later ones

    def parts(self, replay: Replay) -> Replay:
        """The same of a part of the rows in each thread: there have to be as many."""

        def replay_parts(tensors: Sequence[Tensor]) -> Tensor:
            columns = [tensor.tensor_split(self.num) for tensor in tensors]
            return torch.cat([*self._threads.map(replay, zip(*columns, strict=True))])

        return replay_parts


class Sooner:
    """Of two ways to the same bits the one that is sooner done: tried at first, each three times.

    Parts are sooner done where each thread has an arena of malloc to itself, and none of them has
    much more to do than another.
    """

    def __init__(self, parts: Replay, whole: Replay) -> None:
        self._parts, self._whole = parts, whole
        self._untried = [parts, whole] * _TRIES
        self._least_s = {parts: float("inf"), whole: float("inf")}

    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        if not self._untried:
            return self._sooner(tensors)
        way = self._untried.pop()
        started = time.perf_counter()
        output = way(tensors)
        self._least_s[way] = min(time.perf_counter() - started, self._least_s[way])
        return output

    @property
    def _sooner(self) -> Replay:
        parts_s, whole_s = self._least_s[self._parts], self._least_s[self._whole]
        return self._whole if parts_s > _MUCH_LONGER * whole_s else self._parts


def _compute_alone() -> None:
    torch.get_num_threads()  # at its first question a thread is given as many as others have
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)  # for this thread
