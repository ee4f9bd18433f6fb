"""Who is let in next: requests that wait, by priority and then by arrival. No tensors."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """A request as the line sees it."""

    @property
    def priority(self) -> int:
        """Lower goes first."""

    @property
    def pixels(self) -> int:
        """Of all its pictures; stands for the memory that it holds while it runs."""


RequestT = TypeVar("RequestT", bound=Waiting)


class WaitingLine(Generic[RequestT]):
    """Requests by priority. Each priority has bounds of its own, so that none can fill another's.

    `max_waiting` bounds who waits, by priority; of each, `max_in_flight` requests of `max_pixels`
    in all may run. A request over `max_pixels` runs when none of its priority does.
    """

    def __init__(self, max_waiting: Mapping[int, int], max_in_flight: int, max_pixels: int) -> None:
        self._max_waiting = dict(max_waiting)
        self._max_in_flight = max_in_flight
        self._max_pixels = max_pixels
        self._lines: dict[int, deque[RequestT]] = {}

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())

    def __iter__(self) -> Iterator[RequestT]:
        for priority in sorted(self._lines):
            yield from self._lines[priority]

    def is_full(self, priority: int) -> bool:
        return self.num_waiting(priority) >= self._max_waiting[priority]

    def num_waiting(self, priority: int) -> int:
        return len(self._lines.get(priority, ()))

    def first(self, priority: int) -> RequestT | None:
        """The longest waiting of this priority."""
        line = self._lines.get(priority)
        return line[0] if line else None

    def add(self, request: RequestT) -> None:
        self._lines.setdefault(request.priority, deque()).append(request)

    def take(self, priority: int, running: list[RequestT]) -> RequestT | None:
        """The longest waiting of this priority, if there is room for it beside `running`."""
        line = self._lines.get(priority)
        if not line:
            return None
        rivals = [request.pixels for request in running if request.priority == priority]
        too_many = len(rivals) >= self._max_in_flight
        too_large = bool(rivals) and sum(rivals) + line[0].pixels > self._max_pixels
        return None if too_many or too_large else line.popleft()

    def take_all(self, unwanted: Callable[[RequestT], bool]) -> list[RequestT]:
        """Take out every request that is `unwanted`."""
        taken = [request for request in self if unwanted(request)]
        if not taken:
            return []
        for priority, line in self._lines.items():
            self._lines[priority] = deque(each for each in line if each not in taken)
        return taken
