"""How long forwards take, learned as they run; who could finish when. No tensors."""

from collections.abc import Iterable
from dataclasses import dataclass

# Of an old forward's weight, what is left at each new one. How long forwards take is of the last
# fifty or so, since machines get faster and slower. How much of it their rows take is of the last
# five hundred: fifty that are nearly equal do not tell.
_DECAY_OF_TIMES = 0.98
_DECAY_OF_ROWS = 0.998


@dataclass(frozen=True)
class Work:
    """What is left of a request: `steps` forwards of `rows` rows of `pixels` each, one decode."""

    pixels: int
    rows: int
    steps: int


@dataclass
class _Sums:
    """Over forwards, of which late ones have more weight."""

    decay: float
    weight: float = 0.0
    rows: float = 0.0
    rows_squared: float = 0.0
    seconds: float = 0.0
    rows_seconds: float = 0.0

    def add(self, rows: int, seconds: float) -> None:
        self.weight = self.weight * self.decay + 1
        self.rows = self.rows * self.decay + rows
        self.rows_squared = self.rows_squared * self.decay + rows * rows
        self.seconds = self.seconds * self.decay + seconds
        self.rows_seconds = self.rows_seconds * self.decay + rows * seconds

    def slope(self) -> float | None:
        """Seconds over rows, by least squares; nothing as long as all forwards had equal rows."""
        spread = self.rows_squared * self.weight - self.rows**2
        if spread <= 1e-6 * self.rows_squared * self.weight:
            return None
        return (self.rows_seconds * self.weight - self.rows * self.seconds) / spread


class _Line:
    """Seconds over rows: a fixed part for each forward and a part per row."""

    def __init__(self) -> None:
        self._late = _Sums(_DECAY_OF_TIMES)
        self._long = _Sums(_DECAY_OF_ROWS)

    def observe(self, rows: int, seconds: float) -> None:
        for sums in (self._late, self._long):
            sums.add(rows, seconds)

    def per_row(self) -> float:
        """Seconds that one more row takes; nothing as long as all forwards had equal rows."""
        return min(max(self._long.slope() or 0.0, 0.0), self.by_rows())

    def by_rows(self) -> float:
        """Seconds of a forward for each of its rows."""
        return self._late.seconds / self._late.rows

    def per_forward(self) -> float:
        return self.mean() - self.per_row() * self._late.rows / self._late.weight

    def mean(self) -> float:
        """Seconds of a forward of as many rows as late ones had."""
        return self._late.seconds / self._late.weight

    def of_forward(self, rows: int) -> float:
        """Seconds of a forward of `rows`; of unseen company, rows cost what they did without."""
        if not self.knows_rows():
            return max(self.mean(), rows * self.by_rows())
        return self.per_forward() + rows * self.per_row()

    def knows_rows(self) -> bool:
        """Whether forwards of different rows were seen."""
        return self._long.slope() is not None


class StepTimes:
    """Seconds of forwards by kind and picture size.

    What never ran counts as no time at all.
    """

    def __init__(self) -> None:
        self._lines: dict[tuple[str, int], _Line] = {}

    def observe(self, kind: str, pixels: int, rows: int, seconds: float) -> None:
        """A forward of `rows` rows of `pixels` each took `seconds`."""
        self._lines.setdefault((kind, pixels), _Line()).observe(rows, seconds)

    def of_forward(self, kind: str, pixels: int, rows: int) -> float:
        """Seconds of a forward of `rows` such rows; 0 where none ran."""
        line = self._lines.get((kind, pixels))
        return line.of_forward(rows) if line else 0.0

    def of_row(self, kind: str, pixels: int) -> float:
        """Seconds that one more such row takes; 0 where none ran.

        Where forwards do not tell, being of equal rows or too noisy, it is the most that it can be:
        a forward's time by its rows.
        """
        line = self._lines.get((kind, pixels))
        return (line.per_row() or line.by_rows()) if line else 0.0

    def seconds_left(self, work: Work, others: Iterable[Work]) -> float:
        """The least time in which `work` can be done while `others` are in the same forwards.

        What is unknown takes none: it never says that a request takes longer than it can.
        Until it is done, each of the others is served as much as it, or all that it needs.
        """
        step = self._nearest("denoise", work.pixels)
        if step is None:
            return 0.0
        shared = self._row_seconds(work)
        company = sum(min(shared, self._row_seconds(other)) for other in others)
        decode = self._nearest("decode", work.pixels)
        return (
            work.steps * step.per_forward() + shared + company + (decode.mean() if decode else 0.0)
        )

    def share_s(self, work: Work, max_requests: int, max_pixels: int) -> float:
        """What `work` takes of an engine's time if all forwards are full of such work, in seconds.

        A forward is full with so many requests, or pixels of all rows. A size that never ran is
        taken to need as much for its pixels as the nearest that did, and rows are not taken to
        gain anything by company until they were seen to.
        """
        full = max(work.rows, min(max_requests * work.rows, max_pixels // work.pixels))
        forwards = work.steps * work.rows / full
        forward_s = self._about("denoise", work.pixels, full)
        return forwards * forward_s + self._about("decode", work.pixels, rows=1)

    def _about(self, kind: str, pixels: int, rows: int) -> float:
        known = [size for of_kind, size in self._lines if of_kind == kind]
        if not known:
            return 0.0
        nearest = min(known, key=lambda size: max(size, pixels) / min(size, pixels))
        line = self._lines[kind, nearest]
        return line.of_forward(rows) * pixels / nearest

    def _row_seconds(self, work: Work) -> float:
        line = self._nearest("denoise", work.pixels)
        return work.steps * work.rows * line.per_row() if line else 0.0

    def _nearest(self, kind: str, pixels: int) -> _Line | None:
        """This size's line, else the next smaller one's: larger pictures do not take less."""
        known = [size for of_kind, size in self._lines if of_kind == kind and size <= pixels]
        return self._lines[kind, max(known)] if known else None
