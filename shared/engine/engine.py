"""The engine: a thread that runs every request's pipeline step by step."""

import atexit
import functools
import logging
import math
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from contextvars import Context, copy_context
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline, SchedulerMixin

from shared.config import Compiler, EngineConfig
from shared.counters import EngineCounters, EngineForwards, Member, Priority, RequestCounters
from shared.engine import step_batch
from shared.engine.adapters import Adapters, AdapterSet, adapter_set
from shared.engine.calls import ModuleCall, PipelineRun
from shared.engine.device_timer import DeviceTimer
from shared.engine.expected_work import ExpectedWork, expected_work, pipeline_scale
from shared.engine.forward_log import ForwardLog
from shared.engine.forwards import Forwards
from shared.engine.guest_time import GuestTime
from shared.engine.pipeline_copies import PipelineCopies
from shared.engine.prompt_cache import PromptCache
from shared.engine.row_rule import RowRule
from shared.engine.step_batch import StepCall
from shared.engine.step_scheduler import StepScheduler
from shared.engine.step_times import StepTimes, Work
from shared.engine.takeover import check_same_modules, take_over
from shared.engine.tickets import RequestStats, Step, Ticket
from shared.engine.waiting_line import WaitingLine
from shared.errors import Cancelled, DeadlineExceeded, EngineDead, QueueFull

logger = logging.getLogger(__name__)

# Under which counter an error goes that is not a failure.
_ENDS: dict[type[BaseException], str] = {
    Cancelled: "num_cancelled",
    DeadlineExceeded: "num_expired",
}


# What a step is taken for where none was timed: so little that it soon goes, and is.
_UNKNOWN_STEP_S = 1e-3


@dataclass(eq=False)
class _Request:
    ticket: Ticket
    pipeline: DiffusionPipeline
    scheduler: SchedulerMixin | None
    pipeline_kwargs: dict[str, Any]
    priority: Priority
    adapters: AdapterSet
    deadline: float | None  # on the clock of time.perf_counter
    on_step: Callable[[Step], None] | None
    expected: ExpectedWork
    submitted_at: float
    spent_s: float = 0.0  # what guests had spent until then
    # Whatever is logged in its pipeline is logged as where it was submitted: with its request's id.
    context: Context = field(default_factory=copy_context)
    started_at: float = 0.0
    number: int = 0  # among those that were let in
    run: PipelineRun | None = None
    parked: "_Parked | None" = None  # None: not started, or just ended
    num_forwards: int = 0
    num_shared_forwards: int = 0
    # What is to be done with each of its calls, before it is run.
    examine: Callable[[StepCall], None] | None = None

    @property
    def pixels(self) -> int:
        return self.expected.pixels * self.expected.pictures


@dataclass(frozen=True, eq=False)
class _Parked:
    """A request's parked call, as the step scheduler sees it."""

    request: _Request
    step: StepCall
    pixels: int
    seconds_alone: float

    @property
    def submitted_at(self) -> float:
        return self.request.submitted_at

    @property
    def kind(self) -> str:
        return self.step.kind

    @property
    def pixels_per_row(self) -> int:
        return self.pixels // max(1, self.step.rows)

    @property
    def key(self) -> step_batch.CallKey:
        return self.step.key

    @property
    def priority(self) -> int:
        return self.request.priority

    @property
    def setup(self) -> AdapterSet | None:
        """The decoder has no adapters."""
        return None if self.kind == "decode" else self.request.adapters


@dataclass
class _Forward:
    """What is learned from when it is done; nothing where it was recorded on the way."""

    kind: str
    pixels_per_row: int
    rows: int
    is_usual: bool = True


@dataclass
class _RequestTotals:
    """Sums behind the counters of one priority."""

    ends: Counter[str] = field(default_factory=Counter)
    num_rows: int = 0
    queue_s: float = 0.0
    work_s: float = 0.0


@dataclass
class _Totals:
    """Sums behind the counters."""

    of: dict[Priority, _RequestTotals] = field(
        default_factory=lambda: {priority: _RequestTotals() for priority in Priority}
    )
    requests_per_forward: Counter[int] = field(default_factory=Counter)
    num_decodes: int = 0
    denoise_s: float = 0.0
    decode_s: float = 0.0


class DenoiseEngine:
    """Runs many requests of one diffusers pipeline at once, sharing forwards at every step.

    While it is open, calls of the pipeline's denoiser from its own thread are batched; the
    pipeline itself can still be called directly from other threads. What it consists of stays the
    same meanwhile, down to the words of its tokenizers. Close it, or use it as a context manager,
    to get the pipeline back as it was.
    """

    def __init__(self, pipeline: DiffusionPipeline, config: EngineConfig | None = None) -> None:
        self._pipeline = pipeline
        self._config = (config or EngineConfig()).on(pipeline.device.type)
        self._changed = threading.Condition()  # guards what submit() and counters() look at
        self._waiting = WaitingLine[_Request](
            max_waiting={
                Priority.ONLINE: self._config.max_queued,
                Priority.BULK: self._config.max_queued_bulk,
            },
            max_in_flight=self._config.max_in_flight,
            max_pixels=self._config.max_pixels_in_flight,
        )
        self._running: list[_Request] = []
        self._is_closing = False
        self._death: BaseException | None = None
        self._totals = _Totals()
        self._name = uuid.uuid4().hex[:8]
        self._num_started = 0
        self._log = ForwardLog()
        self._moved_at: float | None = None  # when it began what it is at; None: waits for work
        self._timer = DeviceTimer[_Forward](pipeline.device)
        self._times = StepTimes()
        self._rows_per_picture = {True: 1, False: 1}  # by whether guided; learned
        self._guest_time = GuestTime(self._config.bulk_slack)
        self._copies = PipelineCopies()
        self._pixels_per_latent = pipeline_scale(pipeline) ** 2
        self._forwards = Forwards(self._config, self._pixels_per_latent)
        self._adapters = Adapters(pipeline)
        self._prompts = PromptCache(self._config.max_prompt_cache_bytes)
        self._step_scheduler = StepScheduler[_Parked](
            {
                "denoise": self._config.max_pixels_per_forward,
                "decode": self._config.max_pixels_per_decode,
            },
            self._spare_pixels,
            self._can_wait,
            self._config.bulk_floor,
        )
        self._thread = threading.Thread(target=self._main, name="denoise-engine", daemon=True)
        self._thread.start()
        # Python ends threads that still run at its exit, and torch aborts the process at that.
        atexit.register(self.close, cancel=True)

    def submit(
        self,
        *,
        pipeline: DiffusionPipeline | None = None,
        scheduler: SchedulerMixin | None = None,
        adapters: Mapping[str, float] | None = None,
        priority: Priority = Priority.ONLINE,
        timeout_s: float | None = None,
        on_step: Callable[[Step], None] | None = None,
        **pipeline_kwargs: Any,
    ) -> Ticket:
        """Render with the stock pipeline's keyword arguments; callable from any thread.

        `pipeline` is another one on the same modules (img2img from diffusers' `from_pipe`, say).
        `scheduler` is a diffusers noise scheduler to use instead of the pipeline's own; it is
        copied. `adapters` are weights of loaded LoRA adapters by name. The request has to finish
        within `timeout_s` seconds. `on_step` is called in the engine's thread after each step.

        Raises QueueFull, DeadlineExceeded if the time cannot suffice, ValueError for an unknown
        adapter or foreign modules, or EngineDead once the engine is closed.
        """
        now = time.perf_counter()
        pipeline = pipeline or self._pipeline
        check_same_modules(pipeline, self._pipeline)
        request = _Request(
            ticket=Ticket(self._thread),
            pipeline=pipeline,
            scheduler=scheduler,
            pipeline_kwargs=pipeline_kwargs,
            priority=priority,
            adapters=adapter_set(adapters or {}),
            deadline=None if timeout_s is None else now + timeout_s,
            on_step=on_step,
            expected=expected_work(pipeline, pipeline_kwargs),
            submitted_at=now,
            spent_s=self._guest_time.spent_s,
        )
        self._adapters.check(request.adapters)
        self._enqueue(request)
        return request.ticket

    def compile(self, compiler: Compiler = "torch", **pipeline_kwargs: Any) -> None:
        """Compile the denoiser for arguments as a small request with these has them.

        Its width and height have to differ, since sizes that are equal are taken to be so always.
        Row rules have to be searched after it. Blocks until it is done, and raises what the
        compiler raises.
        """
        self._examine(functools.partial(self._forwards.compile, compiler), pipeline_kwargs)

    def find_row_rules(self, **pipeline_kwargs: Any) -> dict[str, RowRule]:
        """Search the row rules of this device by a small request, use them, and return them.

        By module class. On a CPU they are for all sizes, elsewhere for this one, and others are
        searched when they come. Every engine that is to give the same bytes has to search with the
        same arguments, or not at all. Blocks until it is done.
        """
        rules: dict[str, RowRule] = {}

        def find(call: StepCall) -> None:
            rules[type(call.call.module).__name__] = self._forwards.find_rule(call)

        self._examine(find, pipeline_kwargs)
        return rules

    def _examine(
        self, examine: Callable[[StepCall], None], pipeline_kwargs: dict[str, Any]
    ) -> None:
        """Render, and in the engine's thread look at each of its calls before it is run."""
        request = _Request(
            ticket=Ticket(self._thread),
            pipeline=self._pipeline,
            scheduler=None,
            pipeline_kwargs=pipeline_kwargs,
            priority=Priority.ONLINE,
            adapters=(),
            deadline=None,
            on_step=None,
            expected=expected_work(self._pipeline, pipeline_kwargs),
            submitted_at=time.perf_counter(),
            examine=examine,
        )
        self._enqueue(request)
        request.ticket.result()

    def counters(self) -> EngineCounters:
        """A snapshot of what the engine has done."""
        with self._changed:
            totals = self._totals
            return EngineCounters(
                online=self._request_counters(Priority.ONLINE),
                bulk=self._request_counters(Priority.BULK),
                busy_s=totals.denoise_s + totals.decode_s,
                decode_s=totals.decode_s,
                stalled_s=self._stalled_s(),
                num_decodes=totals.num_decodes,
                num_padding_rows=self._forwards.num_padding_rows,
                num_bisections=self._forwards.num_bisections,
                num_lane_switches=self._step_scheduler.num_lane_switches,
                num_adapter_switches=self._adapters.num_switches,
                num_prompt_cache_hits=self._prompts.num_hits,
                num_prompt_cache_misses=self._prompts.num_misses,
                prompt_cache_bytes=self._prompts.num_bytes,
                forwards_by_requests=dict(sorted(totals.requests_per_forward.items())),
            )

    def forwards(self) -> EngineForwards:
        """The latest ones, who was in them, and who is to be in the next."""
        with self._changed:
            running = tuple(_as_member(each, self._rows(each)) for each in self._running)
            return EngineForwards(self._name, self.counters(), running, self._log.latest())

    def _request_counters(self, priority: Priority) -> RequestCounters:
        totals = self._totals.of[priority]
        under_way = [each for each in self._under_way() if each.priority == priority]
        num_waiting = self._waiting.num_waiting(priority)
        return RequestCounters(
            **totals.ends,
            num_waiting=num_waiting,
            num_in_flight=len(under_way) - num_waiting,
            num_rows=totals.num_rows,
            queue_s=totals.queue_s,
            work_s=totals.work_s,
            backlog_s=sum(map(self._share_s, under_way)),
        )

    def num_ahead(self, ticket: Ticket) -> int:
        """How many requests are let in before this one; 0 once it runs, or has ended."""
        with self._changed:
            tickets = [request.ticket for request in self._waiting]
            return tickets.index(ticket) if ticket in tickets else 0

    def check_alive(self) -> None:
        """Raise EngineDead unless the engine takes requests and does something with them."""
        with self._changed:
            self._raise_unless_open()
            if (stalled_s := self._stalled_s()) > self._config.watchdog_timeout_s:
                raise EngineDead(f"the engine has been at one thing for {stalled_s:.0f} s")

    def close(self, *, cancel: bool = False) -> None:
        """Take no more requests, finish (or `cancel`) those there are, and stop the thread."""
        with self._changed:
            self._is_closing = True
            if cancel:
                for request in self._under_way():
                    request.ticket.cancel()
            self._changed.notify_all()
        atexit.unregister(self.close)
        if threading.current_thread() is not self._thread:  # a callback may close, not wait
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

    def _enqueue(self, request: _Request) -> None:
        with self._changed:
            self._raise_unless_open()
            if self._waiting.is_full(request.priority):
                num_waiting = self._waiting.num_waiting(request.priority)
                raise QueueFull(f"{num_waiting} requests are already waiting")
            if not self._can_finish(request, self._under_way(), request.submitted_at):
                if self._can_finish(request, [], request.submitted_at):
                    raise QueueFull("the work under way leaves it too little time")
                self._totals.of[request.priority].ends["num_expired"] += 1
                raise DeadlineExceeded("it cannot be finished in the time that it has")
            self._totals.of[request.priority].work_s += self._share_s(request)
            self._waiting.add(request)
            self._changed.notify_all()

    def _raise_unless_open(self) -> None:
        if self._death is not None:
            raise EngineDead(f"the engine died: {self._death}") from self._death
        if self._is_closing:
            raise EngineDead("the engine is closed")

    def _stalled_s(self) -> float:
        return 0.0 if self._moved_at is None else time.perf_counter() - self._moved_at

    def _can_finish(self, request: _Request, others: list[_Request], now: float) -> bool:
        """Whether it can be done by its deadline, as far as the times so far tell."""
        if request.deadline is None:
            return True
        rivals = [self._work_left(each) for each in others if _shares_forwards(each, request)]
        return now + self._times.seconds_left(self._work_left(request), rivals) < request.deadline

    def _work(self, request: _Request) -> Work:
        expected = request.expected
        return Work(expected.pixels, self._rows(request), expected.steps)

    def _rows(self, request: _Request) -> int:
        expected = request.expected
        return expected.pictures * self._rows_per_picture[expected.guided]

    def _work_left(self, request: _Request) -> Work:
        work = self._work(request)
        return replace(work, steps=max(0, work.steps - request.num_forwards))

    def _share_s(self, request: _Request) -> float:
        """What is left of it, in seconds of an engine that is full of such requests."""
        return self._times.share_s(
            self._work_left(request),
            max_requests=self._config.max_in_flight,
            max_pixels=self._step_scheduler.max_pixels("denoise"),
        )

    def _under_way(self) -> list[_Request]:
        return [*self._running, *self._waiting]

    # Everything below runs in the engine's thread.

    def _main(self) -> None:
        try:
            with torch.no_grad(), self._current_device(), self._taken_over_pipeline():
                while self._wait_for_work():
                    self._drop_the_unwanted()
                    self._admit()
                    self._step()
        except BaseException as error:
            logger.exception("the engine died")
            self._die(error)

    def _current_device(self) -> AbstractContextManager[object]:
        device = self._pipeline.device
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    def _taken_over_pipeline(self) -> ExitStack:
        return take_over(
            self._pipeline,
            self._prompts,
            self._activate_for,
            self._adapters.are_active,
            self._config,
        )

    def _wait_for_work(self) -> bool:
        """Sleep while there is nothing to do; False once that is for good."""
        with self._changed:
            if self._is_idle():
                self._moved_at = None
                self._changed.wait_for(lambda: not self._is_idle() or self._is_closing)
            return not self._is_idle()

    def _is_idle(self) -> bool:
        return not (len(self._waiting) or self._running)

    def _drop_the_unwanted(self) -> None:
        """Cancelled requests, and those whose time is over."""
        reason = functools.partial(_reason_to_drop, now=time.perf_counter())
        with self._changed:
            waiting = self._waiting.take_all(lambda request: reason(request) is not None)
        for request in [*waiting, *self._running]:
            error = reason(request)
            if error is None:
                continue
            if request.parked is None:
                self._fail(request, error)
            else:
                self._step_scheduler.remove(request.parked)
                self._throw(request, error)

    def _admit(self) -> None:
        while (request := self._next_admitted()) is not None:
            now = self._moved_at = request.started_at = time.perf_counter()
            self._num_started += 1
            request.number = self._num_started
            if not self._can_finish(request, self._running, now):
                with self._changed:
                    self._running.remove(request)
                self._fail(request, DeadlineExceeded("it waited until its time could not suffice"))
                continue
            function = functools.partial(self._call_pipeline, request)
            request.run = PipelineRun(function, request.context)
            self._settle(request, request.run.start())
            if self._is_guest(request):  # a start takes time too, and others wait
                self._guest_time.spend(time.perf_counter() - now)
                return

    def _next_admitted(self) -> _Request | None:
        """Bulk work is let in only where it would go soon: what is started takes up memory."""
        with self._changed:
            for priority in Priority:
                first = self._waiting.first(priority)
                if first is None or not self._step_scheduler.may_start(
                    priority, first.expected.pixels * self._rows(first)
                ):
                    continue
                request = self._waiting.take(priority, self._running)
                if request is not None:
                    self._running.append(request)
                    return request
            return None

    def _is_guest(self, request: _Request) -> bool:
        return request.priority != self._step_scheduler.first_priority()

    def _call_pipeline(self, request: _Request) -> Any:
        copy = self._copies.copy(request.pipeline, request.scheduler, request.on_step)
        return copy(**request.pipeline_kwargs)

    def _step(self) -> None:
        now = self._moved_at = time.perf_counter()
        calls = self._step_scheduler.next_calls(now)
        if not calls:
            return
        outputs = self._forward(calls)
        self._count_forward(calls)
        self._learn_times()
        guests_s = self._guests_share_s(calls)
        for call, output in zip(calls, outputs, strict=True):
            resumed_at = time.perf_counter()
            if isinstance(output, Exception):
                self._throw(call.request, output)
            else:
                assert call.request.run is not None
                self._settle(call.request, call.request.run.resume(output))
            if call.priority == Priority.BULK:
                guests_s += time.perf_counter() - resumed_at
        is_theirs = all(call.priority == Priority.BULK for call in calls)
        self._guest_time.spend(time.perf_counter() - now if is_theirs else guests_s)
        if not self._running:  # and nothing may come for long
            self._timer.wait()
            self._learn_times()

    def _spare_pixels(self, calls: Sequence[_Parked]) -> int:
        """What bulk calls may add to a forward of these: instead of padding, and of their slack."""
        first, rows = calls[0], sum(call.step.rows for call in calls)
        if not rows or first.kind == "decode" or first.priority == Priority.BULK:
            return 0
        slacks = self._slacks(self._forward_s(first, rows))
        step_s = min(slack_s / num_steps for slack_s, num_steps in slacks)
        row_s = self._times.of_row(first.kind, first.pixels_per_row)
        full = self._forwards.full_rows(first.step, rows)
        fitting = self._step_scheduler.max_pixels(first.kind) // first.pixels_per_row
        most = max(full, min(fitting, full + int(step_s / row_s if row_s else 0)))
        while self._forwards.full_rows(first.step, most) > most:
            most -= 1
        return (most - rows) * first.pixels_per_row

    def _can_wait(self, call: _Parked) -> bool:
        """Whether online requests have slack enough for this bulk call to go before them."""
        seconds = self._forward_s(call, call.step.rows)
        return bool(seconds) and all(slack_s > seconds for slack_s, _ in self._slacks())

    def _slacks(self, forward_s: float = 0.0) -> Iterator[tuple[float, int]]:
        """How long each online request can wait for bulk ones, in seconds, and its steps left.

        The next forward takes `forward_s`, and nobody's steps come faster than that.
        """
        with self._changed:
            has_queue = self._waiting.num_waiting(Priority.ONLINE) > 0
        for request in self._running:
            if request.priority == Priority.BULK:
                continue
            num_steps = request.expected.steps - request.num_forwards
            if not self._config.bulk_slack or has_queue or num_steps <= 0:
                yield 0.0, 1  # the last: of some pipelines a step has several forwards
            else:
                yield self._slack_s(request, num_steps, forward_s), num_steps

    def _slack_s(self, request: _Request, num_steps: int, forward_s: float) -> float:
        now = time.perf_counter()
        guests_s = self._guests_s(request)
        own_s = now - request.submitted_at - guests_s
        if request.num_forwards:
            forward_s = max(forward_s, own_s / request.num_forwards)  # as it went so far
        decode_s = self._times.of_forward("decode", request.expected.pixels, rows=1)
        left_s = max(
            num_steps * forward_s + decode_s,
            self._times.seconds_left(self._work_left(request), []),
        )
        spare_s = math.inf if request.deadline is None else request.deadline - now - left_s
        return self._guest_time.slack_s(request.pixels, own_s + left_s, guests_s, spare_s)

    def _guests_s(self, request: _Request) -> float:
        """What bulk requests had of its time."""
        return self._guest_time.spent_s - request.spent_s

    def _guests_share_s(self, calls: list[_Parked]) -> float:
        """By how much bulk calls make a forward with others longer, as far as that is known."""
        own, guests = (
            sum(call.step.rows for call in calls if call.priority == priority)
            for priority in Priority
        )
        if not (own and guests):
            return 0.0
        return self._forward_s(calls[0], own + guests) - self._forward_s(calls[0], own)

    def _forward_s(self, call: _Parked, rows: int) -> float:
        """What a forward of so many rows as those of `call` takes; 0 where that is unknown."""
        if not rows:
            return 0.0
        full = self._forwards.full_rows(call.step, rows)
        return self._times.of_forward(call.kind, call.pixels_per_row, full)

    def _forward(self, calls: list[_Parked]) -> list[Any]:
        """Each call's output, or its exception."""
        first, rows = calls[0], sum(call.step.rows for call in calls)
        try:
            self._activate(first)
            rule = self._forwards.rule_of(first.step)  # not timed: it may be searched
        except torch.AcceleratorError:
            raise
        except Exception as error:
            return [error] * len(calls)
        forward = _Forward(first.kind, first.pixels_per_row, rows)
        num_tries = self._forwards.num_tries(first.step)
        with self._timer.timing(forward):
            outputs = self._forwards.run([call.step for call in calls], rule)
        forward.is_usual = self._forwards.num_tries(first.step) == num_tries
        if first.kind in self._forwards.max_latents:
            limit = self._forwards.max_latents[first.kind] * self._pixels_per_latent
            self._step_scheduler.lower_limit(first.kind, limit)
        return outputs

    def _throw(self, request: _Request, error: Exception) -> None:
        assert request.run is not None
        self._settle(request, request.run.throw(error))

    def _settle(self, request: _Request, call: ModuleCall | None) -> None:
        """Park a run that went on to its next `call`, or finish it at its end."""
        run = request.run
        assert run is not None
        request.parked = None
        while call is not None:
            try:
                self._park(request, call)
            except torch.AcceleratorError:
                raise
            except Exception as error:  # its own pipeline's fault
                call = run.throw(error)
            else:
                return
        request.run = None  # they hold one another: let the pictures go as soon as they are taken
        with self._changed:
            self._running.remove(request)
        if isinstance(run.error, torch.AcceleratorError):
            self._fail(request, EngineDead(f"the device was lost: {run.error}"))
            raise run.error
        if run.error is not None:
            self._fail(request, run.error)
        else:
            self._complete(request, run.result)

    def _park(self, request: _Request, call: ModuleCall) -> None:
        step = step_batch.describe(call)
        if request.examine and step.rows:
            request.examine(step)
        if step.kind == "denoise" and step.rows:
            expected = request.expected
            self._rows_per_picture[expected.guided] = max(1, step.rows // expected.pictures)
        pixels = step.latents * self._pixels_per_latent or request.pixels
        work = self._work(request)
        seconds_alone = self._times.seconds_left(work, []) or work.steps * _UNKNOWN_STEP_S
        request.parked = _Parked(request, step, pixels, seconds_alone)
        self._step_scheduler.add(request.parked)

    def _activate_for(self, run: PipelineRun) -> AdapterSet:
        """Ready the text encoders for the run that is calling one."""
        request = next(each for each in self._running if each.run is run)
        self._adapters.activate(request.adapters)
        return request.adapters

    def _activate(self, call: _Parked) -> None:
        if call.setup is None:
            return
        seconds = self._adapters.activate(call.setup)
        if seconds:
            self._step_scheduler.setup_s = seconds

    def _complete(self, request: _Request, result: Any) -> None:
        queue_s = request.started_at - request.submitted_at
        run_s = time.perf_counter() - request.started_at
        if request.priority == Priority.ONLINE and not request.examine:
            own_s = queue_s + run_s - self._guests_s(request)
            self._guest_time.learn(request.pixels, max(0.0, own_s))
        stats = RequestStats(
            queue_s=queue_s,
            run_s=run_s,
            num_forwards=request.num_forwards,
            num_shared_forwards=request.num_shared_forwards,
        )
        with self._changed:
            totals = self._totals.of[request.priority]
            totals.queue_s += queue_s
            totals.ends["num_completed"] += 1
        request.ticket.complete(result, stats)

    def _fail(self, request: _Request, error: BaseException) -> None:
        with self._changed:
            ends = self._totals.of[request.priority].ends
            ends[_ENDS.get(type(error), "num_failed")] += 1
        request.ticket.fail(error)

    def _die(self, error: BaseException) -> None:
        with self._changed:
            self._death, self._moved_at = error, None
            lost = [*self._running, *self._waiting.take_all(lambda _: True)]
            self._running.clear()
        for request in lost:
            dead = EngineDead(f"the engine died: {error}")
            dead.__cause__ = error
            if request.run is not None and request.parked is not None:
                request.run.throw(dead)  # let the pipeline clean up behind itself
            self._fail(request, dead)

    def _count_forward(self, calls: list[_Parked]) -> None:
        for call in calls:
            call.request.num_forwards += call.kind == "denoise"
            call.request.num_shared_forwards += len(calls) > 1
        with self._changed:
            if calls[0].kind == "decode":
                self._totals.num_decodes += 1
                return
            self._totals.requests_per_forward[len(calls)] += 1
            for call in calls:
                self._totals.of[call.request.priority].num_rows += call.step.rows
            members = [_as_member(call.request, call.step.rows) for call in calls]
            self._log.add(calls[0].pixels_per_row, self._forwards.num_padding_rows, members)

    def _learn_times(self) -> None:
        with self._changed:
            for forward, seconds in self._timer.take_done():
                if forward.kind == "decode":
                    self._totals.decode_s += seconds
                else:
                    self._totals.denoise_s += seconds
                if forward.rows and forward.is_usual:
                    self._times.observe(forward.kind, forward.pixels_per_row, forward.rows, seconds)


def _as_member(request: _Request, rows: int) -> Member:
    return Member(
        request=request.number,
        priority=request.priority.label,
        rows=rows,
        step=request.num_forwards,
        num_steps=max(request.num_forwards, request.expected.steps),
    )


def _shares_forwards(one: _Request, other: _Request) -> bool:
    """Whether `one` is mostly in the same forwards as `other`, and cannot be made to wait for it.

    What is of another size can.
    """
    return (
        one is not other
        and one.priority <= other.priority
        and one.adapters == other.adapters
        and one.expected.pixels == other.expected.pixels
    )


def _reason_to_drop(request: _Request, now: float) -> Exception | None:
    if request.ticket.is_cancel_asked:
        return Cancelled("cancelled before it was finished")
    if request.deadline is not None and now >= request.deadline:
        return DeadlineExceeded("it was not finished in the time that it had")
    return None
