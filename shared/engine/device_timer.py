"""How long forwards take on a device that may be behind the thread that launches them."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Generic, Protocol, Self, TypeVar

import torch

T = TypeVar("T")


class _Event(Protocol):
    """A point in a device's work, as `torch.Event` has it."""

    def record(self) -> None: ...

    def query(self) -> bool: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: Self, /) -> float: ...


class _NowEvent:
    """The processor does at once what it is told, and torch has no events for it."""

    def record(self) -> None:
        self._at = time.perf_counter()

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Self, /) -> float:
        return 1000 * (end._at - self._at)


class DeviceTimer(Generic[T]):
    """Times work where it is done, and does not make the device wait for its next work."""

    def __init__(self, device: torch.device, new_event: Callable[[], _Event] | None = None) -> None:
        on_device = partial(torch.Event, device, enable_timing=True)
        self._new_event = new_event or (_NowEvent if device.type == "cpu" else on_device)
        self._launched: deque[tuple[T, _Event, _Event]] = deque()

    @contextmanager
    def timing(self, what: T) -> Iterator[None]:
        """Time what is launched within, unless it raises."""
        start, end = self._new_event(), self._new_event()
        start.record()
        yield
        end.record()
        self._launched.append((what, start, end))

    def take_done(self) -> Iterator[tuple[T, float]]:
        """What has ended since the last time, in its order, and the seconds that it took."""
        while self._launched and self._launched[0][2].query():
            what, start, end = self._launched.popleft()
            yield what, start.elapsed_time(end) / 1000

    def wait(self) -> None:
        """Until all that was launched has ended."""
        if self._launched:
            self._launched[-1][2].synchronize()
