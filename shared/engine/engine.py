"""The engine: a thread that runs every request's pipeline step by step."""

import atexit
import functools
import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from traceback import clear_frames
from types import TracebackType
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline, SchedulerMixin

from shared.config import Compiler, EngineConfig
from shared.counters import EngineCounters, EngineForwards, Priority, RequestCounters
from shared.engine import step_batch
from shared.engine.adapters import Adapters, AdapterSet, adapter_set, check_scales_nothing
from shared.engine.calls import ModuleCall, PipelineRun
from shared.engine.device_timer import DeviceTimer
from shared.engine.expected_work import expected_work, pipeline_scale
from shared.engine.forecast import Forecast
from shared.engine.forward_log import ForwardLog
from shared.engine.forwards import Forwards, free_if_out_of_memory
from shared.engine.guests import Guests
from shared.engine.pipeline_copies import PipelineCopies
from shared.engine.prompt_cache import PromptCache
from shared.engine.row_rule import RowRule
from shared.engine.step_batch import StepCall
from shared.engine.step_scheduler import StepScheduler
from shared.engine.takeover import check_leaves_modules, check_same_modules, take_over
from shared.engine.tickets import RequestStats, Step, Ticket
from shared.engine.totals import Totals
from shared.engine.under_way import ParkedCall, Request
from shared.engine.waiting_line import WaitingLine
from shared.errors import DeadlineExceeded, EngineDead, QueueFull, TooBusy

logger = logging.getLogger(__name__)


@dataclass
class _Forward:
    """What is learned from when it is done; nothing where it was recorded on the way."""

    kind: str
    pixels_per_row: int
    rows: int
    is_usual: bool = True


class DenoiseEngine:
    """Runs many requests of one diffusers pipeline at once, sharing forwards at every step.

    While it is open, calls of the pipeline's denoiser from its own thread are batched; the
    pipeline itself can still be called directly from other threads. What it consists of stays the
    same meanwhile, down to the words of its tokenizers. Close it, or use it as a context manager,
    to get the pipeline back as it was, but for which LoRA adapters are active.
    """

    def __init__(self, pipeline: DiffusionPipeline, config: EngineConfig | None = None) -> None:
        """ValueError for a pipeline that changes its denoiser while it runs."""
        check_leaves_modules(pipeline)
        self._pipeline = pipeline
        self._config = (config or EngineConfig()).on(pipeline.device.type)
        self._changed = threading.Condition()  # guards what submit() and counters() look at
        self._waiting = WaitingLine[Request](
            max_waiting={
                Priority.ONLINE: self._config.max_queued,
                Priority.BULK: self._config.max_queued_bulk,
            },
            max_in_flight=self._config.max_in_flight,
            max_pixels=self._config.max_pixels_in_flight,
        )
        self._running: list[Request] = []
        self._is_closing = False
        self._death: BaseException | None = None
        self._totals = Totals()
        self._name = uuid.uuid4().hex[:8]
        self._num_started = 0
        self._log = ForwardLog()
        self._moved_at: float | None = None  # when it began what it is at; None: waits for work
        self._timer = DeviceTimer[_Forward](pipeline.device)
        self._forecast = Forecast()
        self._copies = PipelineCopies()
        self._pixels_per_latent = pipeline_scale(pipeline) ** 2
        self._forwards = Forwards(self._config, self._pixels_per_latent)
        self._guests = Guests(
            self._config.bulk_slack,
            self._running,
            self._is_online_waiting,
            self._forecast,
            self._forwards,
        )
        self._adapters = Adapters(pipeline)
        self._prompts = PromptCache(self._config.max_prompt_cache_bytes)
        self._step_scheduler = StepScheduler[ParkedCall](
            {
                "denoise": self._config.max_pixels_per_forward,
                "decode": self._config.max_pixels_per_decode,
            },
            self._guests.spare_pixels,
            self._guests.can_pass,
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

        Raises QueueFull (TooBusy where only the work under way leaves it too little time),
        DeadlineExceeded if the time cannot suffice, ValueError for an unknown adapter or for what
        would change the modules of others, or EngineDead once the engine is closed.
        """
        now = time.perf_counter()
        pipeline = pipeline or self._pipeline
        check_same_modules(pipeline, self._pipeline)
        request = Request(
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
            guests_until_then_s=self._guests.spent_until(now),
        )
        self._adapters.check(request.adapters)
        check_scales_nothing(pipeline_kwargs)
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
        request = Request(
            ticket=Ticket(self._thread),
            pipeline=self._pipeline,
            pipeline_kwargs=pipeline_kwargs,
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
            running = tuple(each.as_member(self._forecast.rows(each)) for each in self._running)
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

    def _enqueue(self, request: Request) -> None:
        with self._changed:
            self._raise_unless_open()
            if self._waiting.is_full(request.priority):
                num_waiting = self._waiting.num_waiting(request.priority)
                raise QueueFull(f"{num_waiting} requests are already waiting")
            if not self._forecast.can_finish(request, self._under_way(), request.submitted_at):
                if self._forecast.can_finish(request, [], request.submitted_at):
                    raise TooBusy("the work under way leaves it too little time")
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

    def _share_s(self, request: Request) -> float:
        max_pixels = self._step_scheduler.max_pixels("denoise")
        return self._forecast.share_s(request, self._config.max_in_flight, max_pixels)

    def _under_way(self) -> list[Request]:
        return [*self._running, *self._waiting]

    def _is_online_waiting(self) -> bool:
        with self._changed:
            return self._waiting.num_waiting(Priority.ONLINE) > 0

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
        now = time.perf_counter()
        with self._changed:
            waiting = self._waiting.take_all(lambda each: each.reason_to_drop(now) is not None)
        for request in [*waiting, *self._running]:
            error = request.reason_to_drop(now)
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
            if not self._forecast.can_finish(request, self._running, now):
                with self._changed:
                    self._running.remove(request)
                self._fail(request, DeadlineExceeded("it waited until its time could not suffice"))
                continue
            function = functools.partial(self._call_pipeline, request)
            request.run = PipelineRun(function, request.context)
            if request.priority == Priority.BULK:  # a start takes time too
                self._guests.begin(now)
            self._settle(request, request.run.start())
            if request.priority == Priority.BULK:
                self._guests.spend(time.perf_counter() - now)
            if self._is_guest(request):  # and others wait
                return

    def _next_admitted(self) -> Request | None:
        """Bulk work is let in only where it would go soon: what is started takes up memory."""
        with self._changed:
            for priority in Priority:
                first = self._waiting.first(priority)
                if first is None or not self._step_scheduler.may_start(
                    priority, first.expected.pixels * self._forecast.rows(first)
                ):
                    continue
                request = self._waiting.take(priority, self._running)
                if request is not None:
                    self._running.append(request)
                    return request
            return None

    def _is_guest(self, request: Request) -> bool:
        return request.priority != self._step_scheduler.first_priority()

    def _call_pipeline(self, request: Request) -> Any:
        copy = self._copies.copy(request.pipeline, request.scheduler, request.on_step)
        return copy(**request.pipeline_kwargs)

    def _step(self) -> None:
        now = self._moved_at = time.perf_counter()
        calls = self._step_scheduler.next_calls(now)
        if not calls:
            return
        is_theirs = all(call.priority == Priority.BULK for call in calls)
        if is_theirs:
            self._guests.begin(now)
        outputs = self._forward(calls)
        self._count_forward(calls)
        self._learn_times()
        guests_s = self._guests.share_s(calls)
        for call, output in zip(calls, outputs, strict=True):
            resumed_at = time.perf_counter()
            if isinstance(output, Exception):
                self._throw(call.request, output)
            else:
                assert call.request.run is not None
                self._settle(call.request, call.request.run.resume(output))
            if call.priority == Priority.BULK:
                guests_s += time.perf_counter() - resumed_at
        self._guests.spend(time.perf_counter() - now if is_theirs else guests_s)
        if not self._running:  # and nothing may come for long
            self._timer.wait()
            self._learn_times()

    def _forward(self, calls: list[ParkedCall]) -> list[Any]:
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
        num_detours = self._forwards.num_detours(first.step)
        with self._timer.timing(forward):
            outputs = self._forwards.run([call.step for call in calls], rule)
        has_failed = any(isinstance(output, Exception) for output in outputs)
        forward.is_usual = not has_failed and self._forwards.num_detours(first.step) == num_detours
        if first.kind in self._forwards.max_latents:
            limit = self._forwards.max_latents[first.kind] * self._pixels_per_latent
            self._step_scheduler.lower_limit(first.kind, limit)
        return outputs

    def _throw(self, request: Request, error: Exception) -> None:
        assert request.run is not None
        self._settle(request, request.run.throw(error))

    def _settle(self, request: Request, call: ModuleCall | None) -> None:
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
        failure = run.error
        if failure is not None:
            clear_frames(failure.__traceback__)  # they hold tensors for as long as it is held
            free_if_out_of_memory(failure)
        request.run = None  # they hold one another: let the pictures go as soon as they are taken
        with self._changed:
            self._running.remove(request)
        if isinstance(failure, torch.AcceleratorError):
            self._fail(request, EngineDead(f"the device was lost: {failure}"))
            raise failure
        if failure is not None:
            self._fail(request, failure)
        else:
            self._complete(request, run.result)

    def _park(self, request: Request, call: ModuleCall) -> None:
        step = step_batch.describe(call)
        if request.examine and step.rows:
            request.examine(step)
        if step.kind == "denoise" and step.rows:
            self._forecast.learn_rows(request, step.rows)
        pixels = step.latents * self._pixels_per_latent or request.pixels
        seconds_alone = self._forecast.seconds_alone(request)
        request.parked = ParkedCall(request, step, pixels, seconds_alone)
        self._step_scheduler.add(request.parked)

    def _activate_for(self, run: PipelineRun) -> AdapterSet:
        """Ready the text encoders for the run that is calling one."""
        request = next(each for each in self._running if each.run is run)
        self._adapters.activate(request.adapters)
        return request.adapters

    def _activate(self, call: ParkedCall) -> None:
        if call.setup is None:
            return
        seconds = self._adapters.activate(call.setup)
        if seconds:
            self._step_scheduler.setup_s = seconds

    def _complete(self, request: Request, result: Any) -> None:
        queue_s = request.started_at - request.submitted_at
        run_s = time.perf_counter() - request.started_at
        if not request.examine:
            self._guests.learn(request, queue_s + run_s)
        stats = RequestStats(
            queue_s=queue_s,
            run_s=run_s,
            num_forwards=request.num_forwards,
            num_shared_forwards=request.num_shared_forwards,
        )
        with self._changed:
            self._totals.of[request.priority].count_completed(queue_s)
        request.ticket.complete(result, stats)

    def _fail(self, request: Request, error: BaseException) -> None:
        with self._changed:
            self._totals.of[request.priority].count_failed(error)
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

    def _count_forward(self, calls: list[ParkedCall]) -> None:
        for call in calls:
            if call.kind == "denoise":
                call.request.num_forwards += 1
                call.request.num_shared_forwards += len(calls) > 1
        with self._changed:
            self._totals.count_forward(calls)
            if calls[0].kind == "decode":
                return
            members = [call.request.as_member(call.step.rows) for call in calls]
            self._log.add(calls[0].pixels_per_row, self._forwards.num_padding_rows, members)

    def _learn_times(self) -> None:
        with self._changed:
            for forward, seconds in self._timer.take_done():
                self._totals.count_seconds(forward.kind, seconds)
                if forward.rows and forward.is_usual:
                    self._forecast.times.observe(
                        forward.kind, forward.pixels_per_row, forward.rows, seconds
                    )
