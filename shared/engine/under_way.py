"""A request under way, and the call that it is parked at."""

from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any

from diffusers import DiffusionPipeline, SchedulerMixin

from shared.counters import Member, Priority
from shared.engine.adapters import AdapterSet
from shared.engine.calls import PipelineRun
from shared.engine.expected_work import ExpectedWork
from shared.engine.step_batch import CallKey, StepCall
from shared.engine.tickets import Step, Ticket
from shared.errors import Cancelled, DeadlineExceeded


@dataclass(eq=False)
class Request:
    """What was submitted, and how far it is."""

    ticket: Ticket
    pipeline: DiffusionPipeline
    expected: ExpectedWork
    pipeline_kwargs: dict[str, Any]
    submitted_at: float
    scheduler: SchedulerMixin | None = None
    priority: Priority = Priority.ONLINE
    adapters: AdapterSet = ()
    deadline: float | None = None  # on the clock of time.perf_counter
    on_step: Callable[[Step], None] | None = None
    guests_until_then_s: float = 0.0  # what guests of anybody had had when it came
    # What is to be done with each of its calls, before it is run.
    examine: Callable[[StepCall], None] | None = None
    # Whatever is logged in its pipeline is logged as where it was submitted: with its request's id.
    context: Context = field(default_factory=copy_context)
    started_at: float = 0.0
    number: int = 0  # among those that were let in
    run: PipelineRun | None = None
    parked: "ParkedCall | None" = None  # None: not started, or just ended
    num_forwards: int = 0
    num_shared_forwards: int = 0

    @property
    def pixels(self) -> int:
        return self.expected.pixels * self.expected.pictures

    @property
    def num_steps_left(self) -> int:
        """0 where it has more than it was expected to have: of some a step is several forwards."""
        return max(0, self.expected.steps - self.num_forwards)

    def shares_forwards_with(self, other: "Request") -> bool:
        """Whether it is mostly in the same forwards as `other`, and cannot be made to wait for it.

        What is of another size can.
        """
        return (
            self is not other
            and self.priority <= other.priority
            and self.adapters == other.adapters
            and self.expected.pixels == other.expected.pixels
        )

    def reason_to_drop(self, now: float) -> Exception | None:
        if self.ticket.is_cancel_asked:
            return Cancelled("cancelled before it was finished")
        if self.deadline is not None and now >= self.deadline:
            return DeadlineExceeded("it was not finished in the time that it had")
        return None

    def as_member(self, rows: int) -> Member:
        return Member(
            request=self.number,
            priority=self.priority.label,
            rows=rows,
            step=self.num_forwards,
            num_steps=max(self.num_forwards, self.expected.steps),
        )


@dataclass(frozen=True, eq=False)
class ParkedCall:
    """A request's parked call, as the step scheduler sees it."""

    request: Request
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
    def key(self) -> CallKey:
        return self.step.key

    @property
    def priority(self) -> Priority:
        return self.request.priority

    @property
    def setup(self) -> AdapterSet | None:
        """The decoder has no adapters."""
        return None if self.kind == "decode" else self.request.adapters
