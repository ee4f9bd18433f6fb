"""How many generators the work asks for. Requests differ a thousandfold, so seconds are counted.

Serve takes the policy's code to its controller, which has no part of this project: this module may
import nothing of it.
"""

import time
from collections.abc import Callable
from typing import Any

from ray.serve.config import AutoscalingContext

# What a generator reports; Serve averages both over `look_back_period_s`.
_BACKLOG = "backlog_s"
_DEMAND = "demand"


class Workload:
    """What a generator reports: the seconds of work that it has, and that come in a second."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_at, self._last_work_s = clock(), 0.0

    def report(self, *, work_s: float, backlog_s: float) -> dict[str, float]:
        """From an engine's counters. The demand is that since the last report."""
        now = self._clock()
        demand = (work_s - self._last_work_s) / max(now - self._last_at, 1e-3)
        self._last_at, self._last_work_s = now, work_s
        return {_BACKLOG: backlog_s, _DEMAND: demand}


class ReplicasByWork:
    """A policy of Serve: enough to be rid of the backlog in so many seconds, whatever comes.

    Serve bounds and delays what it says, as it does with its own policy.
    """

    def __init__(self, clear_within_s: float = 20.0) -> None:
        if not clear_within_s > 0:
            raise ValueError(f"clear_within_s: {clear_within_s} is not above 0")
        self._clear_within_s = clear_within_s

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """Return a number of replicas, and no state."""
        reports = context.aggregated_metrics or {}
        backlog_s, demand = (sum(reports.get(name, {}).values()) for name in (_BACKLOG, _DEMAND))
        return backlog_s / self._clear_within_s + demand, {}
