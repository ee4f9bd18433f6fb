"""A forward's rows in parts, one for each core.

The threads of one forward wait for each other after every operation, and all of them for the one
whose core another process has taken for a moment. Parts wait for each other once, at the end.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import torch
from torch import Tensor

# A module's tensors to its one output.
Replay = Callable[[Sequence[Tensor]], Tensor]

_TRIES = 3
# Undisturbed, both ways often take as long; it is beside others that parts are ahead.
_MUCH_LONGER = 1.05


class EachCore:
    """As many threads as torch has for an operation, each of which computes by itself.

    While they start, other threads that ask torch for the first time are told to compute by
    themselves, too.
    """

    def __init__(self) -> None:
        self.num = torch.get_num_threads()
        self._threads = [ThreadPoolExecutor(1, "core", compute_alone) for _ in range(self.num)]
        for thread in self._threads:
            thread.submit(int).result()
        torch.set_num_threads(self.num)  # it is the default of threads to come, too

    def parts(self, replay: Replay) -> Replay:
        """The same of a part of the rows in each thread, of tensors of as many rows or more."""

        def replay_parts(tensors: Sequence[Tensor]) -> Tensor:
            columns = [tensor.tensor_split(self.num) for tensor in tensors]
            try:
                futures = [
                    thread.submit(replay, part)
                    for thread, part in zip(self._threads, zip(*columns, strict=True), strict=True)
                ]
            except RuntimeError:  # Python ends, and its threads take nothing any more
                return replay(tensors)
            wait(futures)  # of an error, too: the others' memory is free then
            return torch.cat([future.result() for future in futures])

        return replay_parts


class Faster:
    """Of two ways to the same bits the one that takes less: both are timed at first.

    Parts take less where each thread has an arena of malloc to itself, and none of them much more
    to do than another.
    """

    def __init__(self, parts: Replay, whole: Replay) -> None:
        self._parts, self._whole = parts, whole
        self._untimed = [parts, whole] * _TRIES
        self._least_s = {parts: float("inf"), whole: float("inf")}

    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        if not self._untimed:
            return self._faster(tensors)
        way = self._untimed.pop()
        started = time.perf_counter()
        output = way(tensors)
        self._least_s[way] = min(time.perf_counter() - started, self._least_s[way])
        return output

    @property
    def _faster(self) -> Replay:
        parts_s, whole_s = self._least_s[self._parts], self._least_s[self._whole]
        return self._whole if parts_s > _MUCH_LONGER * whole_s else self._parts


def compute_alone() -> None:
    """For a thread that begins; torch's default of threads to come has to be set again after it."""
    torch.get_num_threads()  # the first question sets this thread's number, and would undo the next
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)  # for this thread
