"""What requests under way will take, as far as the forwards so far tell."""

from collections.abc import Iterable

from shared.engine.step_times import StepTimes, Work
from shared.engine.under_way import Request

# What a step is taken for where none was timed: so little that it soon goes, and is.
_UNKNOWN_STEP_S = 1e-3


class Forecast:
    """The times of forwards by what requests are left to do."""

    def __init__(self) -> None:
        self.times = StepTimes()
        self._rows_per_picture = {True: 1, False: 1}  # by whether guided

    def learn_rows(self, request: Request, rows: int) -> None:
        """A call of the denoiser had so many rows."""
        expected = request.expected
        self._rows_per_picture[expected.guided] = max(1, rows // expected.pictures)

    def rows(self, request: Request) -> int:
        expected = request.expected
        return expected.pictures * self._rows_per_picture[expected.guided]

    def can_finish(self, request: Request, others: Iterable[Request], now: float) -> bool:
        """Whether it can be done by its deadline beside `others`."""
        if request.deadline is None:
            return True
        rivals = [self._left(each) for each in others if each.shares_forwards_with(request)]
        return now + self.times.seconds_left(self._left(request), rivals) < request.deadline

    def seconds_left(self, request: Request) -> float:
        """The least in which it can be done."""
        return self.times.seconds_left(self._left(request), [])

    def seconds_alone(self, request: Request) -> float:
        """From its beginning to its end, with nobody beside it; above 0."""
        steps = request.expected.steps
        return self.times.seconds_left(self._work(request, steps), []) or steps * _UNKNOWN_STEP_S

    def share_s(self, request: Request, max_requests: int, max_pixels: int) -> float:
        """What is left of it, in seconds of an engine whose forwards are full of such requests."""
        return self.times.share_s(self._left(request), max_requests, max_pixels)

    def _left(self, request: Request) -> Work:
        return self._work(request, request.num_steps_left)

    def _work(self, request: Request, steps: int) -> Work:
        return Work(request.expected.pixels, self.rows(request), steps)
