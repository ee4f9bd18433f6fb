"""The engine: a thread that runs every request's pipeline step by step, and its tickets."""

import asyncio
import contextlib
import copy
import functools
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Generator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from torch import nn

from shared.config import EngineConfig
from shared.engine import step_batch
from shared.engine.calls import ModuleCall, PipelineRun
from shared.engine.step_batch import StepCall
from shared.engine.step_scheduler import StepScheduler
from shared.errors import Cancelled, EngineDead, QueueFull

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RequestStats:
    """What one request took: seconds waiting, seconds running, forwards, and those with company."""

    queue_s: float
    run_s: float
    num_forwards: int
    num_shared_forwards: int


@dataclass(frozen=True)
class EngineCounters:
    """What an engine has done so far. `forwards_by_requests[k]` counts forwards that k shared."""

    num_completed: int = 0
    num_failed: int = 0
    num_cancelled: int = 0
    num_waiting: int = 0
    num_in_flight: int = 0
    num_rows: int = 0
    forwards_by_requests: dict[int, int] = field(default_factory=dict)

    @property
    def num_shared_forwards(self) -> int:
        return sum(n for requests, n in self.forwards_by_requests.items() if requests > 1)


class Ticket:
    """A submitted request: await it, or ask for its `result`. Both give the pipeline's own output.

    They raise what the pipeline raised, Cancelled, or EngineDead.
    """

    def __init__(self) -> None:
        self._future: Future[Any] = Future()
        self._is_cancel_asked = False
        self._stats: RequestStats | None = None

    def result(self, timeout: float | None = None) -> Any:
        """Wait up to `timeout` seconds; TimeoutError leaves the request running."""
        return self._future.result(timeout)

    def done(self) -> bool:
        return self._future.done()

    def cancel(self) -> None:
        """Give the request up: it ends with Cancelled at its next step, unless it ended before."""
        self._is_cancel_asked = True

    @property
    def stats(self) -> RequestStats:
        """Of a request that was rendered; there are none before its result."""
        assert self._stats is not None, "no stats before the result"
        return self._stats

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


@dataclass(eq=False)
class _Request:
    ticket: Ticket
    scheduler: SchedulerMixin | None
    pipeline_kwargs: dict[str, Any]
    submitted_at: float
    started_at: float = 0.0
    run: PipelineRun | None = None
    parked: StepCall | None = None  # None: not started, or just ended
    num_forwards: int = 0
    num_shared_forwards: int = 0


class DenoiseEngine:
    """Runs many requests of one diffusers pipeline at once, sharing forwards at every step.

    While it is open, calls of the pipeline's denoiser from its own thread are batched; the
    pipeline itself can still be called directly from other threads. Close it, or use it as a
    context manager, to get the pipeline back as it was.
    """

    def __init__(self, pipeline: DiffusionPipeline, config: EngineConfig | None = None) -> None:
        self._pipeline = pipeline
        self._config = config or EngineConfig()
        self._changed = threading.Condition()  # guards the five below
        self._waiting: deque[_Request] = deque()
        self._running: list[_Request] = []
        self._is_closing = False
        self._death: BaseException | None = None
        self._counters = EngineCounters()
        self._requests_per_forward: Counter[int] = Counter()
        self._step_scheduler = StepScheduler[StepCall](self._config.max_latents_per_forward)
        self._thread = threading.Thread(target=self._main, name="denoise-engine", daemon=True)
        self._thread.start()

    def submit(self, *, scheduler: SchedulerMixin | None = None, **pipeline_kwargs: Any) -> Ticket:
        """Render with the stock pipeline's keyword arguments; callable from any thread.

        `scheduler` is a diffusers noise scheduler to use instead of the pipeline's own; it is
        copied. Raises QueueFull, or EngineDead once the engine is closed.
        """
        request = _Request(Ticket(), scheduler, pipeline_kwargs, submitted_at=time.perf_counter())
        with self._changed:
            self._raise_unless_open()
            if len(self._waiting) >= self._config.max_queued:
                raise QueueFull(f"{self._config.max_queued} requests are already waiting")
            self._waiting.append(request)
            self._changed.notify_all()
        return request.ticket

    def counters(self) -> EngineCounters:
        """A snapshot of what the engine has done."""
        with self._changed:
            return replace(
                self._counters,
                num_waiting=len(self._waiting),
                num_in_flight=len(self._running),
                forwards_by_requests=dict(sorted(self._requests_per_forward.items())),
            )

    def check_alive(self) -> None:
        """Raise EngineDead unless the engine takes requests."""
        with self._changed:
            self._raise_unless_open()

    def close(self, *, cancel: bool = False) -> None:
        """Take no more requests, finish (or `cancel`) those there are, and stop the thread."""
        with self._changed:
            self._is_closing = True
            if cancel:
                for request in [*self._waiting, *self._running]:
                    request.ticket.cancel()
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(cancel=error is not None)

    # Everything below runs in the engine's thread.

    def _main(self) -> None:
        try:
            with torch.no_grad(), step_batch.batching(self._denoisers()):
                while self._wait_for_work():
                    self._drop_cancelled()
                    self._admit()
                    self._step()
        except BaseException as error:
            logger.exception("the engine died")
            self._die(error)

    def _step(self) -> None:
        calls = self._step_scheduler.next_calls()
        if not calls:
            return
        self._count_forward(calls)
        for call, output in zip(calls, _forward_isolated(calls), strict=True):
            request = self._owner(call)
            assert request.run is not None
            if isinstance(output, Exception):
                self._parked(request, request.run.throw(output))
            else:
                self._parked(request, request.run.resume(output))

    def _wait_for_work(self) -> bool:
        """Sleep while there is nothing to do; False once that is for good."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._running or self._is_closing)
            return bool(self._waiting or self._running)

    def _drop_cancelled(self) -> None:
        with self._changed:
            waiting = [each for each in self._waiting if each.ticket._is_cancel_asked]
            self._waiting = deque(each for each in self._waiting if each not in waiting)
        for request in waiting:
            self._fail(request, Cancelled("cancelled while it waited"))
        for request in [each for each in self._running if each.ticket._is_cancel_asked]:
            assert request.run is not None
            assert request.parked is not None
            self._step_scheduler.remove(request.parked)
            self._parked(request, request.run.throw(Cancelled("cancelled between two steps")))

    def _admit(self) -> None:
        while (request := self._next_admitted()) is not None:
            request.started_at = time.perf_counter()
            request.run = PipelineRun(functools.partial(self._call_pipeline, request))
            self._parked(request, request.run.start())

    def _next_admitted(self) -> _Request | None:
        with self._changed:
            if not self._waiting or len(self._running) >= self._config.max_in_flight:
                return None
            request = self._waiting.popleft()
            self._running.append(request)
            return request

    def _call_pipeline(self, request: _Request) -> Any:
        # A shallow copy gives the run its own attributes (as its guidance scale) and shares the
        # weights. Noise schedulers keep their place in the trajectory, so each run has its own.
        pipeline = copy.copy(self._pipeline)
        pipeline.scheduler = copy.deepcopy(request.scheduler or self._pipeline.scheduler)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(**request.pipeline_kwargs)

    def _parked(self, request: _Request, call: ModuleCall | None) -> None:
        """Record where a run stands after it was stepped: at its next call, or at its end."""
        assert request.run is not None
        while call is not None:
            try:
                request.parked = step_batch.describe(call)
            except Exception as error:  # arguments that are no rows: its own pipeline's problem
                call = request.run.throw(error)
            else:
                self._step_scheduler.add(request.parked)
                return
        request.parked = None
        with self._changed:
            self._running.remove(request)
        if request.run.error is not None:
            self._fail(request, request.run.error)
        else:
            self._complete(request, request.run.result)

    def _complete(self, request: _Request, result: Any) -> None:
        request.ticket._stats = RequestStats(
            queue_s=request.started_at - request.submitted_at,
            run_s=time.perf_counter() - request.started_at,
            num_forwards=request.num_forwards,
            num_shared_forwards=request.num_shared_forwards,
        )
        self._count(num_completed=1)
        request.ticket._future.set_result(result)

    def _fail(self, request: _Request, error: BaseException) -> None:
        self._count(**{"num_cancelled" if isinstance(error, Cancelled) else "num_failed": 1})
        request.ticket._future.set_exception(error)

    def _die(self, error: BaseException) -> None:
        with self._changed:
            self._death = error
            lost = [*self._running, *self._waiting]
            self._running.clear()
            self._waiting.clear()
        for request in lost:
            dead = EngineDead(f"the engine died: {error}")
            dead.__cause__ = error
            self._fail(request, dead)

    def _raise_unless_open(self) -> None:
        if self._death is not None:
            raise EngineDead(f"the engine died: {self._death}") from self._death
        if self._is_closing:
            raise EngineDead("the engine is closed")

    def _owner(self, call: StepCall) -> _Request:
        return next(request for request in self._running if request.parked is call)

    def _count_forward(self, calls: list[StepCall]) -> None:
        for call in calls:
            request = self._owner(call)
            request.num_forwards += 1
            request.num_shared_forwards += len(calls) > 1
        with self._changed:
            self._requests_per_forward[len(calls)] += 1
        self._count(num_rows=sum(call.rows for call in calls))

    def _count(self, **amounts: int) -> None:
        with self._changed:
            totals = {name: getattr(self._counters, name) + n for name, n in amounts.items()}
            self._counters = replace(self._counters, **totals)

    def _denoisers(self) -> list[nn.Module]:
        """The pipeline's modules whose calls park."""
        found = [getattr(self._pipeline, name, None) for name in ("unet", "transformer")]
        denoisers = [module for module in found if module is not None]
        for module in denoisers:
            if not step_batch.is_declared(module):
                logger.warning("%s is not declared and runs unbatched", type(module).__name__)
        return denoisers


def _forward_isolated(calls: list[StepCall]) -> list[Any]:
    """Each call's output, or the exception that its own rows raise when run alone."""
    try:
        return step_batch.forward(calls)
    except Exception as error:
        if len(calls) == 1:
            return [error]
        return [output for call in calls for output in _forward_isolated([call])]
