"""What engines make, from what they count: pictures a second of a machine clock."""

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from shared.counters import EngineCounters, Priority


class Rates(NamedTuple):
    """Pictures a second, and what becomes of an engine's time.

    `busy` is the part of it in forwards and decodes. Fuller forwards take less time for a row.
    `speed` is the machine's, of its fastest.
    """

    online: float
    bulk: float
    busy: float
    rows_per_forward: float
    row_ms: float
    speed: float

    def told(self) -> str:
        return (
            f"{self.rows_per_forward:.1f} rows a forward, {self.row_ms:.1f} ms a row, "
            f"busy for {self.busy:.0%} of the time, {self.speed:.2f} of the machine's speed"
        )


class Sample(NamedTuple):
    """Of an engine, at a moment of the machine clock and of the wall's."""

    at_s: float
    wall_s: float
    counters: EngineCounters


def rates(engines: Sequence[tuple[Sample, Sample]], rows_of_a_picture: int) -> Rates:
    """From what each counted first to what it counted last."""

    def pace(count: Callable[[EngineCounters], float], clock: str = "at_s") -> float:
        return sum(
            (count(last.counters) - count(first.counters))
            / (getattr(last, clock) - getattr(first, clock))
            for first, last in engines
        )

    online, bulk = (pace(lambda engine, of=of: engine.of(of).num_rows) for of in Priority)
    # Engines count seconds of the wall's clock.
    decoding = pace(lambda engine: engine.decode_s, "wall_s")
    busy = pace(lambda engine: engine.busy_s, "wall_s")
    return Rates(
        online=online / rows_of_a_picture,
        bulk=bulk / rows_of_a_picture,
        busy=busy / len(engines),
        rows_per_forward=(online + bulk) / pace(lambda engine: engine.num_forwards),
        row_ms=1000 * (busy - decoding) / (online + bulk),
        speed=statistics.mean(
            (last.at_s - first.at_s) / (last.wall_s - first.wall_s) for first, last in engines
        ),
    )
