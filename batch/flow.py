"""How many pictures a job asks a service for at once: as many as it takes, told by itself."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class Window:
    """Places for requests under way: one more for each picture that comes, until one is refused.

    Then as many as were not refused, and one more for each time that all of them have come. So a
    service is asked for a little more than it takes, and seldom.
    """

    def __init__(self, first: int, most: int) -> None:
        """It begins with `first` places, and has `most` in the end."""
        self._first = first
        self._most = most
        self._under_way = 0
        self.begin()
        self._changed = asyncio.Condition()
        self._one_waits = asyncio.Lock()

    @property
    def size(self) -> int:
        return int(self._size)

    def begin(self) -> None:
        """Begin again: nothing is known of what the service takes now."""
        self._size = float(self._first)
        self._was_refused = False

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Within it, one of the places is taken."""
        async with self._one_waits:  # first come, first served
            await self._until(lambda: self._under_way < self.size)
            self._under_way += 1
        async with self._given_back():
            yield

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Within it, nothing else is under way."""
        async with self._one_waits:
            await self._until(lambda: not self._under_way)
            self._under_way += 1
            async with self._given_back():
                yield

    def came(self) -> None:
        """A picture that was asked for."""
        self._size = min(self._most, self._size + (1 / self._size if self._was_refused else 1))

    def refused(self) -> None:
        """One of those under way found no room."""
        self._was_refused = True
        self._size = max(1.0, min(self._size, self._under_way - 1))

    async def _until(self, is_so: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(is_so)

    @asynccontextmanager
    async def _given_back(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            self._under_way -= 1
            async with self._changed:
                self._changed.notify_all()
