"""What `bulk_slack` gives a bulk job and takes from online callers, in virtual time.

A forward of n rows takes so long, and so much more for each row, overhead and decodes with it.
Callers come at random moments and ask for 10 to 50 steps; of bulk requests there are always enough.
GuestTime is the engine's own, and around it the engine's rules are told again in short. hybrid.py
measures the same with everything else that a service does.

python benchmarks/virtual_hybrid.py --forward-ms 26 --row-ms 3.7
python benchmarks/virtual_hybrid.py --forward-ms 11 --row-ms 2.6 --capacity-rows 16  # of one core
python benchmarks/virtual_hybrid.py --forward-ms 7 --row-ms 7 --capacity-rows 16 --most-rows 16
"""

import argparse
import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from workloads import MEAN_STEPS, calls, poisson, quantile

from shared.config import EngineConfig
from shared.engine.guest_time import GuestTime

_MIX, _SIDE = "steps", 128
_ROWS = 2  # of a picture with guidance
_MOST_REQUESTS = EngineConfig().max_in_flight
_PICTURE_ROWS = _ROWS * MEAN_STEPS[_MIX]


class Costs(NamedTuple):
    """Seconds of a forward of so many rows at most, and of each row in addition."""

    forward: float
    row: float
    most_rows: int

    def of(self, rows: int) -> float:
        return math.ceil(rows / self.most_rows) * self.forward + self.row * rows


@dataclass(eq=False)
class Online:
    submitted_at: float
    num_steps: int
    steps_left: int = field(init=False)
    guests_s: float = 0.0

    def __post_init__(self) -> None:
        self.steps_left = self.num_steps


class Found(NamedTuple):
    """Latencies in seconds, and what bulk requests had in pictures a second."""

    latencies_s: list[float]
    bulk: float


class Engine:
    """With a bulk job where there is a `slack`."""

    def __init__(self, costs: Costs, slack: float | None) -> None:
        self._costs, self._has_bulk = costs, slack is not None
        self._guest_time = GuestTime(slack or 0.0)
        self._running: list[Online] = []
        self._waiting: deque[Online] = deque()
        self._latencies: list[float] = []
        self._bulk_rows = 0
        self._now = 0.0

    def serve(self, arrivals: Iterable[Online]) -> Found:
        to_come = deque(arrivals)
        while to_come or self._running or self._waiting:
            self._take(to_come)
            if self._running:
                self._step()
            elif self._has_bulk:
                self._step_of_bulk(to_come)
            else:
                self._now = to_come[0].submitted_at
        return Found(self._latencies, self._bulk_rows / _PICTURE_ROWS / self._now)

    def _take(self, to_come: deque[Online]) -> None:
        while to_come and to_come[0].submitted_at <= self._now:
            self._waiting.append(to_come.popleft())
        while self._waiting and len(self._running) < _MOST_REQUESTS:
            self._running.append(self._waiting.popleft())

    def _step(self) -> None:
        own_s = self._costs.of(_ROWS * len(self._running))
        guests = self._num_guest_rows(own_s)
        self._bulk_rows += guests
        self._now += own_s + guests * self._costs.row
        for request in self._running:
            request.guests_s += guests * self._costs.row
            request.steps_left -= 1
            if not request.steps_left:
                self._end(request)
        self._running = [each for each in self._running if each.steps_left]

    def _step_of_bulk(self, to_come: deque[Online]) -> None:
        """Who comes meanwhile waits for its end."""
        self._bulk_rows += self._costs.most_rows
        self._now += self._costs.of(self._costs.most_rows)
        self._take(to_come)
        for request in self._running:
            request.guests_s = self._now - request.submitted_at

    def _num_guest_rows(self, own_s: float) -> int:
        if not self._has_bulk or self._waiting:
            return 0
        spare_s = min(self._spare_s(request, own_s) for request in self._running)
        pictures = int(spare_s / self._costs.row / _ROWS)
        return min(_ROWS * pictures, max(0, self._costs.most_rows - _ROWS * len(self._running)))

    def _spare_s(self, request: Online, own_s: float) -> float:
        """What guests may take of its next forward."""
        so_far_s = self._now - request.submitted_at - request.guests_s
        done = request.num_steps - request.steps_left
        step_s = max(own_s, so_far_s / done) if done else own_s
        whole_s = so_far_s + request.steps_left * step_s
        slack_s = self._guest_time.slack_s(_SIDE**2, whole_s, request.guests_s)
        return slack_s / request.steps_left

    def _end(self, request: Online) -> None:
        latency_s = self._now - request.submitted_at
        self._latencies.append(latency_s)
        self._guest_time.learn(_SIDE**2, latency_s - request.guests_s)


def main() -> None:
    options = _parse()
    costs = Costs(options.forward_ms / 1000, options.row_ms / 1000, options.most_rows)
    rows = options.capacity_rows
    capacity = rows / costs.of(rows) / _PICTURE_ROWS
    print(f"capacity {capacity:.2f} pictures/s, of forwards of {rows} rows\n")
    print("| load | bulk_slack | p50 | p95 | bulk, of what is left |\n" + "|---" * 5 + "|")
    for load in options.loads:
        alone = Engine(costs, None).serve(arrivals(load * capacity, options))
        for slack in options.bulk_slack:
            beside = Engine(costs, slack).serve(arrivals(load * capacity, options))
            p50, p95 = (
                quantile(beside.latencies_s, part) / quantile(alone.latencies_s, part)
                for part in (0.5, 0.95)
            )
            share = beside.bulk / (capacity * (1 - load))
            print(f"| {load} | {slack} | {p50:.2f} times | {p95:.2f} times | {share:.0%} |")


def arrivals(pictures_per_s: float, options: argparse.Namespace) -> Iterator[Online]:
    wanted = calls(options.calls, _MIX, _SIDE, options.seed)
    for arrival in poisson(wanted, pictures_per_s, options.seed):
        yield Online(arrival.at_s, arrival.call["num_inference_steps"])


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--forward-ms", type=float, required=True)
    parser.add_argument("--row-ms", type=float, required=True, help="in addition to it")
    parser.add_argument(
        "--most-rows",
        type=int,
        default=_ROWS * _MOST_REQUESTS,
        help="of a forward (%(default)s)",
    )
    parser.add_argument(
        "--capacity-rows",
        type=int,
        default=30,
        help="of the forwards of 16 callers, whose pictures are the capacity (%(default)s)",
    )
    parser.add_argument("--loads", type=float, nargs="+", default=[0.3, 0.7])
    parser.add_argument("--bulk-slack", type=float, nargs="+", default=[0, 0.5, 0.65, 0.8, 1])
    parser.add_argument("--calls", type=int, default=3000, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
