"""What a caller of the engine holds and reads: tickets, priorities, steps, stats and counters."""

import asyncio
import contextlib
import threading
from collections.abc import Generator
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from torch import Tensor


class Priority(IntEnum):
    """Online work goes before bulk work at every step; bulk work fills what it leaves idle."""

    ONLINE = 0
    BULK = 1

    @property
    def label(self) -> str:
        """As people write it."""
        return self.name.lower()


@dataclass(frozen=True)
class Step:
    """A denoising step that is done: `index` from 1 to `num_steps`, and its latents.

    `latents` are the pipeline's own, as its noise scheduler gave them: (pictures, channels, height,
    width), or packed into (pictures, tokens, channels). `denoised` is what the noise scheduler
    thinks they will be in the end; where it does not say, `latents`. They are not to be changed.
    """

    index: int
    num_steps: int
    latents: Tensor
    denoised: Tensor


@dataclass(frozen=True)
class RequestStats:
    """What one request took: seconds waiting, seconds running, forwards, and those with company."""

    queue_s: float
    run_s: float
    num_forwards: int
    num_shared_forwards: int


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


class Ticket:
    """A submitted request: await it, or ask for its `result`. Both give the pipeline's own output.

    They raise what the pipeline raised, Cancelled, DeadlineExceeded, or EngineDead.
    """

    def __init__(self, engine_thread: threading.Thread) -> None:
        self._engine_thread = engine_thread
        self._future: Future[Any] = Future()
        self._is_cancel_asked = False
        self._stats: RequestStats | None = None

    def result(self, timeout: float | None = None) -> Any:
        """Wait up to `timeout` seconds; TimeoutError leaves the request running."""
        if threading.current_thread() is self._engine_thread and not self.done():
            raise RuntimeError("a callback cannot wait for a request of the engine that runs it")
        return self._future.result(timeout)

    def done(self) -> bool:
        return self._future.done()

    def cancel(self) -> None:
        """Give the request up: it ends with Cancelled at its next step, unless it ended before."""
        self._is_cancel_asked = True

    @property
    def is_cancel_asked(self) -> bool:
        return self._is_cancel_asked

    @property
    def stats(self) -> RequestStats:
        """Of a request that was rendered; there are none before its result."""
        assert self._stats is not None, "no stats before the result"
        return self._stats

    def complete(self, result: Any, stats: RequestStats) -> None:
        """The engine's to call, once; so is `fail`."""
        self._stats = stats
        self._future.set_result(result)

    def fail(self, error: BaseException) -> None:
        self._future.set_exception(error)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._wait().__await__()

    async def _wait(self) -> Any:
        outcome = asyncio.wrap_future(self._future)
        try:
            return await asyncio.shield(outcome)
        except asyncio.CancelledError:
            # The waiter is cancelled. It goes on waiting until the engine has let the request
            # go, so that whoever counts running requests by waiters counts right.
            self.cancel()
            while not outcome.done():
                with contextlib.suppress(asyncio.CancelledError):  # cancelled once more
                    await asyncio.wait([outcome])
            outcome.exception()
            raise
