"""Sums behind an engine's counters."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from shared.counters import Priority
from shared.engine.under_way import ParkedCall
from shared.errors import Cancelled, DeadlineExceeded

# Under which counter an error goes that is not a failure.
_ENDS: dict[type[BaseException], str] = {
    Cancelled: "num_cancelled",
    DeadlineExceeded: "num_expired",
}


@dataclass
class RequestTotals:
    """Those of one priority."""

    ends: Counter[str] = field(default_factory=Counter)
    num_rows: int = 0
    queue_s: float = 0.0
    work_s: float = 0.0

    def count_completed(self, queue_s: float) -> None:
        self.queue_s += queue_s
        self.ends["num_completed"] += 1

    def count_failed(self, error: BaseException) -> None:
        self.ends[_ENDS.get(type(error), "num_failed")] += 1


@dataclass
class Totals:
    of: dict[Priority, RequestTotals] = field(
        default_factory=lambda: {priority: RequestTotals() for priority in Priority}
    )
    requests_per_forward: Counter[int] = field(default_factory=Counter)
    num_decodes: int = 0
    denoise_s: float = 0.0
    decode_s: float = 0.0

    def count_forward(self, calls: Sequence[ParkedCall]) -> None:
        """Of the denoiser, or a decode."""
        if calls[0].kind == "decode":
            self.num_decodes += 1
            return
        self.requests_per_forward[len(calls)] += 1
        for call in calls:
            self.of[call.priority].num_rows += call.step.rows

    def count_seconds(self, kind: str, seconds: float) -> None:
        if kind == "decode":
            self.decode_s += seconds
        else:
            self.denoise_s += seconds
