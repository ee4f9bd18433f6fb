"""How much bulk work may slow online work down: by a part of its slack. No tensors."""

import math
from collections import defaultdict, deque

# What is usual is what so many of late took, and known from so many on. What the slowest twentieth
# of fewer take is chance, and at its highest all others may be made to wait for as long.
_REMEMBERED = 200
_FEWEST = 20
_SLOW = 0.95


class GuestTime:
    """Seconds that guests may take from the requests that they go with, out of their slack.

    A request has slack as long as it would end, without guests, sooner than the slowest twentieth
    of late ones of about its size. Guests get `part` of it.
    """

    def __init__(self, part: float) -> None:
        self._part = part
        self._latencies: defaultdict[int, deque[float]] = defaultdict(
            lambda: deque(maxlen=_REMEMBERED)
        )
        self._slow_s: dict[int, float] = {}

    def learn(self, pixels: int, own_s: float) -> None:
        """A request took so long, without what guests had of its time."""
        latencies = self._latencies[_size(pixels)]
        latencies.append(own_s)
        if len(latencies) >= _FEWEST:
            self._slow_s[_size(pixels)] = sorted(latencies)[int(_SLOW * len(latencies))]

    def slack_s(
        self, pixels: int, own_s: float, guests_s: float, spare_s: float = math.inf
    ) -> float:
        """What guests may yet take from a request that will have taken `own_s` at its end.

        `guests_s` is what they had of its time; neither is part of the other. It would be done
        `spare_s` before its deadline.
        """
        whole_s = self._slow_s.get(_size(pixels), 0.0) - own_s
        return max(0.0, min(self._part * whole_s - guests_s, spare_s))


def _size(pixels: int) -> int:
    """Sizes up to twice as large go together: requests can have any."""
    return pixels.bit_length()
