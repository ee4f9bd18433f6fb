"""What a caller of the engine holds and reads: tickets, steps and stats."""

import asyncio
import contextlib
import threading
from collections.abc import Generator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from torch import Tensor


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
