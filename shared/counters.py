"""What an engine tells of itself: plain data, for processes that have none and load no torch."""

from dataclasses import dataclass, field
from enum import IntEnum


class Priority(IntEnum):
    """Online work goes before bulk work at every step; bulk work fills what it leaves idle."""

    ONLINE = 0
    BULK = 1

    @property
    def label(self) -> str:
        """As people write it."""
        return self.name.lower()


@dataclass(frozen=True)
class RequestCounters:
    """What became of requests of one priority, and how many there are.

    `num_expired` counts those refused or dropped for their deadline, `num_rows` their rows of the
    denoiser's forwards. `work_s` are seconds that all so far take of an engine whose forwards are
    full, by the times that it has learned, and `backlog_s` those of what is left.
    """

    num_completed: int = 0
    num_failed: int = 0
    num_cancelled: int = 0
    num_expired: int = 0
    num_waiting: int = 0
    num_in_flight: int = 0
    num_rows: int = 0
    queue_s: float = 0.0
    work_s: float = 0.0
    backlog_s: float = 0.0


@dataclass(frozen=True)
class EngineCounters:
    """What an engine has done so far, and what it holds, for online and for bulk requests.

    Forwards are those of the denoiser: `forwards_by_requests[k]` counts those that k requests
    shared. Beside the requests' rows, `num_padding_rows` were there only to fill a forward up.
    `num_bisections` counts forwards and decodes that were cut in two because they failed or ran out
    of memory. `busy_s` are the seconds in forwards and decodes that have ended, `decode_s` those in
    decodes. `stalled_s` are those since the engine began what it is at: one step, or the start of
    one request.
    """

    online: RequestCounters = RequestCounters()
    bulk: RequestCounters = RequestCounters()
    num_decodes: int = 0
    num_padding_rows: int = 0
    num_lane_switches: int = 0
    num_adapter_switches: int = 0
    num_bisections: int = 0
    num_prompt_cache_hits: int = 0
    num_prompt_cache_misses: int = 0
    prompt_cache_bytes: int = 0
    busy_s: float = 0.0
    decode_s: float = 0.0
    stalled_s: float = 0.0
    forwards_by_requests: dict[int, int] = field(default_factory=dict)

    def of(self, priority: Priority) -> RequestCounters:
        return {Priority.ONLINE: self.online, Priority.BULK: self.bulk}[priority]

    @property
    def num_forwards(self) -> int:
        return sum(self.forwards_by_requests.values())

    @property
    def num_shared_forwards(self) -> int:
        return sum(n for requests, n in self.forwards_by_requests.items() if requests > 1)


@dataclass(frozen=True)
class Member:
    """The part of one request in a forward: `rows` of it, in its `step` of `num_steps`.

    `request` counts the engine's requests from 1, in the order in which they were let in.
    """

    request: int
    priority: str
    rows: int
    step: int
    num_steps: int


@dataclass(frozen=True)
class PastForward:
    """One forward of the denoiser: rows of `pixels` each, `padding_rows` of which are nobody's.

    `number` counts them from 1.
    """

    number: int
    pixels: int
    padding_rows: int
    members: tuple[Member, ...]


@dataclass(frozen=True)
class EngineForwards:
    """Of one engine: what it has done, whom it is at, and its latest forwards, the oldest first.

    `engine` tells it from others.
    """

    engine: str
    counters: EngineCounters
    in_flight: tuple[Member, ...]
    latest: tuple[PastForward, ...]
