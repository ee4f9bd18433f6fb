"""The service in virtual time, by its own rules: nothing is rendered, a forward takes what is said.

The engine's step scheduler, waiting line and measure of work, the autoscaling policies and Serve's
delays and intervals are the real ones, and requests go where the router would have them go. Told
here are how long forwards take, and that a replica takes `start_s` to come.
"""

import inspect
import itertools
import math
import random
import statistics
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from typing import Any, Self

import numpy as np
import simpy
from ray.serve._private.constants import (
    RAY_SERVE_AUTOSCALING_METRIC_RECORD_INTERVAL_FACTOR,
    RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S,
)
from ray.serve.autoscaling_policy import _apply_delay_logic, _apply_scaling_factors
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from serving.autoscaling import Workload
from serving.routing import burden
from shared.config import EngineConfig
from shared.counters import EngineCounters
from shared.engine.step_scheduler import StepScheduler
from shared.engine.step_times import StepTimes, Work
from shared.engine.waiting_line import WaitingLine

# How often it is decided how many replicas there are to be.
DECIDE_S = 2.0
_ROWS = 2  # of a picture with guidance
_ONGOING = "num_ongoing"

Policy = Callable[[AutoscalingContext], tuple[float, dict[str, Any]]]


@dataclass(frozen=True)
class ForwardTimes:
    """Seconds of forwards of `pixels` by their number of rows, and of a decode.

    Between these numbers, and beyond the last, they grow evenly. Other sizes count as so many rows
    of `pixels` as have theirs.
    """

    pixels: int
    rows: tuple[float, ...]
    seconds: tuple[float, ...]
    decode_s: float

    @classmethod
    def measured(
        cls, pixels: int, counters: Callable[[], EngineCounters], ask: Callable[[int], None]
    ) -> Self:
        """Of what an engine does for one caller, and for more, who `ask` it."""
        points, decodes = [], []
        for num_callers in (1, 2, 4, 8, 16, 32):
            ask(1)
            before = counters()
            ask(num_callers)
            after = counters()
            num_forwards = after.num_forwards - before.num_forwards
            decode_s = after.decode_s - before.decode_s
            denoise_s = after.busy_s - before.busy_s - decode_s
            rows = (after.online.num_rows - before.online.num_rows) / num_forwards
            points.append((rows, denoise_s / num_forwards))
            decodes.append(decode_s / (after.num_decodes - before.num_decodes))
        rows, seconds = zip(*points, strict=True)
        return cls(pixels, rows, seconds, statistics.fmean(decodes))

    def __str__(self) -> str:
        forwards = ", ".join(
            f"{1000 * seconds:.0f} ms ({rows:.0f} rows)"
            for rows, seconds in zip(self.rows, self.seconds, strict=True)
        )
        decode = f"{1000 * self.decode_s:.0f} ms"
        return f"forwards of {self.pixels} pixels take {forwards}, decodes {decode}"

    def forward_s(self, rows: int, pixels: int) -> float:
        equal = rows * pixels / self.pixels
        (low, high), (low_s, high_s) = self.rows[-2:], self.seconds[-2:]
        beyond = max(0.0, equal - high) * (high_s - low_s) / (high - low)
        return float(np.interp(equal, self.rows, self.seconds)) + beyond

    def decoding_s(self, pixels: int) -> float:
        return self.decode_s * pixels / self.pixels

    def share_s(self, pixels: int, steps: int, config: EngineConfig) -> float:
        """As an engine knows it that has run for a while."""
        work = Work(pixels, _ROWS, steps)
        learned = _learned(self, pixels)
        return learned.share_s(work, config.max_in_flight, config.max_pixels_per_forward)


@cache
def _learned(times: ForwardTimes, pixels: int) -> StepTimes:
    learned = StepTimes()
    for rows in map(round, times.rows):
        learned.observe("denoise", pixels, rows, times.forward_s(rows, pixels))
    learned.observe("decode", pixels, 1, times.decoding_s(pixels))
    return learned


@dataclass(eq=False)
class Job:
    """A request of one picture of `size` pixels, as the engine's line and scheduler see it.

    After its last step it parks once more, to be decoded.
    """

    size: int
    num_steps: int
    submitted_at: float = math.nan
    finished_at: float = math.nan
    steps_left: int = 0
    seconds_alone: float = 1.0
    step_share_s: float = 0.0
    decode_share_s: float = 0.0
    priority: int = 0
    setup: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return "denoise" if self.steps_left else "decode"

    @property
    def key(self) -> Hashable:
        return (self.kind, self.size)

    @property
    def pixels(self) -> int:
        return _ROWS * self.size

    @property
    def pixel_steps(self) -> int:
        return self.size * self.num_steps

    @property
    def latency_s(self) -> float:
        return self.finished_at - self.submitted_at


@dataclass(frozen=True)
class Routing:
    """A request goes to the replica whose requests' burdens have the least sum, of all of them or
    of as many as are compared."""

    burden: Callable[[Job], int]
    most_compared: int | None = None


BY_BURDEN = Routing(lambda job: burden(job.pixel_steps))


@dataclass(frozen=True)
class _Told:
    """Samples since `begun`: their sums over time until the last one, and that."""

    begun: float
    last_at: float
    sums: dict[str, float]
    last: dict[str, float]

    def means(self, now: float) -> dict[str, float]:
        now = max(now, self.begun + 1e-3)
        return {
            name: (sum_ + self.last[name] * (now - self.last_at)) / (now - self.begun)
            for name, sum_ in self.sums.items()
        }


class Replica:
    """One engine. `backlog_s` and its report are as those of DenoiseEngine and Generator."""

    def __init__(
        self, clock: simpy.Environment, times: ForwardTimes, config: EngineConfig, start_s: float
    ) -> None:
        self.is_ready = not start_s
        self.num_ongoing = 0
        self.burden = 0
        self.backlog_s = 0.0
        self._clock, self._times, self._config = clock, times, config
        self._line = WaitingLine[Job](
            {0: config.max_queued}, config.max_in_flight, _ROWS * config.max_pixels_in_flight
        )
        self._scheduler = StepScheduler[Job](
            {"denoise": config.max_pixels_per_forward, "decode": config.max_pixels_per_decode}
        )
        self._running: list[Job] = []
        self._endings: dict[Job, simpy.Event] = {}
        self._joined = clock.event()
        self._work_s = 0.0
        self._workload = Workload(lambda: clock.now)
        self._samples: deque[tuple[float, dict[str, float]]] = deque()
        self._told: _Told | None = None
        clock.process(self._run(start_s))

    @property
    def is_full(self) -> bool:
        return self._line.is_full(0)

    def submit(self, job: Job) -> simpy.Event:
        """Return what happens when it is finished."""
        self._measure(job)
        share_s = job.num_steps * job.step_share_s + job.decode_share_s
        self._work_s += share_s
        self.backlog_s += share_s
        self.num_ongoing += 1
        self._line.add(job)
        self._endings[job] = self._clock.event()
        if len(self._running) < self._config.max_in_flight and not self._joined.triggered:
            self._joined.succeed()
        return self._endings[job]

    def record(self, look_back_s: float) -> None:
        """How much there is to do now, kept for so long."""
        now = self._workload.report(work_s=self._work_s, backlog_s=self.backlog_s)
        self._samples.append((self._clock.now, now | {_ONGOING: self.num_ongoing}))
        while self._samples[0][0] < self._clock.now - look_back_s:
            self._samples.popleft()

    def tell(self) -> None:
        """The controller, what was recorded."""
        if not self._samples:
            return
        begun, (last_at, last) = self._samples[0][0], self._samples[-1]
        sums = dict.fromkeys(last, 0.0)
        for (at, sample), (until, _) in itertools.pairwise(self._samples):
            for name, value in sample.items():
                sums[name] += value * (until - at)
        self._told = _Told(begun, last_at, sums, last)

    def heard(self) -> dict[str, float]:
        """What the controller makes of it: means over time, as if the last were so still."""
        return self._told.means(self._clock.now) if self._told else {}

    def _run(self, start_s: float) -> Iterator[simpy.Event]:
        if not self.is_ready:
            yield self._clock.timeout(start_s)
            self.is_ready = True
        while True:
            self._joined = self._clock.event()
            while job := self._line.take(0, self._running):
                self._running.append(job)
                self._scheduler.add(job)
            company = self._scheduler.next_calls(self._clock.now)
            if not company:
                yield self._joined
            elif company[0].kind == "decode":
                decodes = [self._times.decoding_s(job.size) for job in company]
                yield self._clock.timeout(sum(decodes))
                self._finish(company)
            else:
                num_forwards = yield from self._forwards(company)
                self._step(company, num_forwards)

    def _forwards(self, company: list[Job]) -> Iterator[simpy.Event]:
        """As long as all who run are in the company, it changes when one ends or one joins."""
        seconds = self._times.forward_s(_ROWS * len(company), company[0].size)
        if len(company) < len(self._running):
            yield self._clock.timeout(seconds)
            return 1
        begun = self._clock.now
        most = min(job.steps_left for job in company)
        yield self._clock.timeout(most * seconds) | self._joined
        number = min(most, 1 + math.floor((self._clock.now - begun) / seconds))
        yield self._clock.timeout(max(0.0, begun + number * seconds - self._clock.now))
        return number

    def _step(self, company: list[Job], num_forwards: int) -> None:
        for job in company:
            job.steps_left -= num_forwards
            self.backlog_s -= num_forwards * job.step_share_s
            self._scheduler.add(job)

    def _finish(self, company: list[Job]) -> None:
        for job in company:
            job.finished_at = self._clock.now
            self.backlog_s -= job.decode_share_s
            self.num_ongoing -= 1
            self._running.remove(job)
            self._endings.pop(job).succeed(job)

    def _measure(self, job: Job) -> None:
        job.decode_share_s = self._times.share_s(job.size, 0, self._config)
        job.step_share_s = self._times.share_s(job.size, 1, self._config) - job.decode_share_s
        job.submitted_at, job.steps_left = self._clock.now, job.num_steps
        job.seconds_alone = job.num_steps * self._times.forward_s(_ROWS, job.size)
        job.seconds_alone += job.decode_share_s


class VirtualService:
    """Replicas behind a router, and Serve's autoscaler where it is told how.

    `finished` are all that were, `num_refused` those that found no place, `replica_s` the seconds
    of all replicas and `replicas` how many there were at each decision.
    """

    def __init__(
        self,
        clock: simpy.Environment,
        times: ForwardTimes,
        engine: EngineConfig | None = None,
        *,
        num_replicas: int = 1,
        start_s: float = 30.0,
        routing: Routing = BY_BURDEN,
    ) -> None:
        self.finished: list[Job] = []
        self.num_refused = 0
        self.replicas: list[int] = []
        self._clock, self._times, self._engine = clock, times, engine or EngineConfig()
        self._start_s, self._routing, self._chance = start_s, routing, random.Random(0)
        self._serving = [self._replica(0.0) for _ in range(num_replicas)]
        self._leaving: list[Replica] = []

    @property
    def replica_s(self) -> float:
        return DECIDE_S * sum(self.replicas)

    def ask(self, job: Job) -> Iterator[simpy.Event]:
        """A process: from its arrival to its picture."""
        some = [replica for replica in self._serving if replica.is_ready]
        if most := self._routing.most_compared:
            some = self._chance.sample(some, min(most, len(some)))
        some = [replica for replica in some if not replica.is_full]
        if not some:
            self.num_refused += 1
            return
        chosen, by = min(some, key=attrgetter("burden")), self._routing.burden(job)
        chosen.burden += by
        yield chosen.submit(job)
        chosen.burden -= by
        self.finished.append(job)

    def arrivals(
        self,
        new_job: Callable[[], Job],
        peak_per_s: float,
        share: Callable[[float], float],
        chance: random.Random,
    ) -> Iterator[simpy.Event]:
        """A process: who asks at random moments, at that `share` of the peak at each time."""
        while True:
            yield self._clock.timeout(chance.expovariate(peak_per_s))
            if chance.random() < share(self._clock.now):
                self._clock.process(self.ask(new_job()))

    def autoscale(self, config: AutoscalingConfig, policy: Policy) -> Iterator[simpy.Event]:
        """A process, without end."""
        state: dict[str, Any] = {}
        look_back_s = config.look_back_period_s
        record_s = RAY_SERVE_AUTOSCALING_METRIC_RECORD_INTERVAL_FACTOR * look_back_s
        record_every = max(1, round(record_s / DECIDE_S))
        tell_every = round(RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S / DECIDE_S)
        for turn in itertools.count(1):
            yield self._clock.timeout(DECIDE_S)
            for replica in self._serving:
                if turn % record_every == 0:
                    replica.record(look_back_s)
                if turn % tell_every == 0:
                    replica.tell()
            num_ready = sum(replica.is_ready for replica in self._serving)
            reports = [replica.heard() for replica in self._serving]
            wanted, _ = policy(_context(config, num_ready, reports))
            wanted = _apply_scaling_factors(wanted, num_ready, config)
            target, state = _apply_delay_logic(
                wanted, len(self._serving), config, state, _now=self._clock.now
            )
            self._scale(min(max(target, config.min_replicas), config.max_replicas))
            self.replicas.append(len(self._serving) + len(self._leaving))

    def _scale(self, target: int) -> None:
        while len(self._serving) < target:
            self._serving.append(self._replica(self._start_s))
        emptiest = sorted(self._serving, key=lambda each: (each.is_ready, each.num_ongoing))
        for replica in emptiest[: len(self._serving) - target]:
            self._serving.remove(replica)
            self._leaving.append(replica)
        self._leaving = [replica for replica in self._leaving if replica.num_ongoing]

    def _replica(self, start_s: float) -> Replica:
        return Replica(self._clock, self._times, self._engine, start_s)


def wave(now: float, period_s: float) -> float:
    """From 0 at the beginning to 1 in the middle of each period."""
    return (1 - math.cos(2 * math.pi * now / period_s)) / 2


def _context(
    config: AutoscalingConfig, num_ready: int, reports: list[dict[str, float]]
) -> AutoscalingContext:
    fields = inspect.signature(AutoscalingContext).parameters
    known = {
        "config": config,
        "current_num_replicas": num_ready,
        "target_num_replicas": len(reports),
        "total_num_requests": sum(report.get(_ONGOING, 0.0) for report in reports),
        "aggregated_metrics": {
            name: {i: report[name] for i, report in enumerate(reports) if report}
            for name in next(filter(None, reports), {})
        },
    }
    return AutoscalingContext(**dict.fromkeys(fields, None) | known)
