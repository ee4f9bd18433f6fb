"""Bulk requests beside online ones: what room they have, and what they had."""

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from shared.counters import Priority
from shared.engine.forecast import Forecast
from shared.engine.forwards import Forwards
from shared.engine.guest_time import GuestTime
from shared.engine.under_way import ParkedCall, Request


class _Slack(NamedTuple):
    """How long an online request can wait for bulk ones, and in how many forwards."""

    seconds: float
    num_steps: int


class Guests:
    """Says by how much bulk requests may slow online ones down, and keeps account of it.

    They have what a forward is filled up with anyhow, and `part` of the slack of the online
    requests among `running`, as long as none is waiting.
    """

    def __init__(
        self,
        part: float,
        running: Sequence[Request],
        is_online_waiting: Callable[[], bool],
        forecast: Forecast,
        forwards: Forwards,
    ) -> None:
        self._part = part
        self._running = running
        self._is_online_waiting = is_online_waiting
        self._forecast = forecast
        self._forwards = forwards
        self._time = GuestTime(part)
        # What they had until now, and since when they have all of the time: together, since
        # other threads look at them.
        self._spent: tuple[float, float | None] = (0.0, None)

    def begin(self, now: float) -> None:
        """From now on they have all of the time, until it is spent."""
        self._spent = self._spent[0], now

    def spend(self, seconds: float) -> None:
        """They had so much of the time of whoever else is there."""
        self._spent = self._spent[0] + seconds, None

    def spent_until(self, now: float) -> float:
        """What they had in all, also of what is under way; callable from any thread."""
        seconds, since = self._spent
        return seconds if since is None else seconds + max(0.0, now - since)

    def learn(self, request: Request, seconds: float) -> None:
        """A request took so long from when it came to its end."""
        if request.priority == Priority.ONLINE:
            own_s = seconds - self._had_of(request)
            self._time.learn(request.pixels, max(0.0, own_s))

    def spare_pixels(self, calls: Sequence[ParkedCall], room: int) -> int:
        """What bulk calls may add to a forward of these: instead of padding, and of their slack.

        No more than `room`.
        """
        first, rows = calls[0], _num_rows(calls)
        if not rows or first.kind == "decode" or first.priority == Priority.BULK:
            return 0
        slacks = self._slacks(self._seconds(first, rows))
        step_s = min(slack.seconds / slack.num_steps for slack in slacks)
        row_s = self._forecast.times.of_row(first.kind, first.pixels_per_row)
        full = self._forwards.full_rows(first.step, rows)
        most = min(rows + room // first.pixels_per_row, full + int(step_s / row_s if row_s else 0))
        while most > full and self._forwards.full_rows(first.step, most) > most:
            most -= 1
        return (most - rows) * first.pixels_per_row

    def can_pass(self, call: ParkedCall) -> bool:
        """Whether online requests have slack enough for this bulk call to go before them."""
        seconds = self._seconds(call, call.step.rows)
        return bool(seconds) and all(slack.seconds > seconds for slack in self._slacks())

    def share_s(self, calls: Sequence[ParkedCall]) -> float:
        """By how much bulk calls make a forward with others longer, as far as that is known."""
        rows = _num_rows(calls)
        own = _num_rows([call for call in calls if call.priority == Priority.ONLINE])
        if own in (0, rows):
            return 0.0
        return self._seconds(calls[0], rows) - self._seconds(calls[0], own)

    def _slacks(self, forward_s: float = 0.0) -> list[_Slack]:
        """Of each online request, if the next forward takes `forward_s`."""
        if not self._part or self._is_online_waiting():
            return [_Slack(0.0, 1)]
        online = [each for each in self._running if each.priority == Priority.ONLINE]
        return [self._slack(each, forward_s) for each in online]

    def _slack(self, request: Request, forward_s: float) -> _Slack:
        if not request.num_steps_left:
            return _Slack(0.0, 1)
        now = time.perf_counter()
        had_s = self._had_of(request)
        own_s = now - request.submitted_at - had_s
        if request.num_forwards:  # nobody's steps come faster than that forward, or as they did
            forward_s = max(forward_s, own_s / request.num_forwards)
        decode_s = self._forecast.times.of_forward("decode", request.expected.pixels, rows=1)
        left_s = max(
            request.num_steps_left * forward_s + decode_s, self._forecast.seconds_left(request)
        )
        spare_s = math.inf if request.deadline is None else request.deadline - now - left_s
        seconds = self._time.slack_s(request.pixels, own_s + left_s, had_s, spare_s)
        return _Slack(seconds, request.num_steps_left)

    def _had_of(self, request: Request) -> float:
        """What guests had of its time."""
        return self._spent[0] - request.guests_until_then_s

    def _seconds(self, call: ParkedCall, rows: int) -> float:
        """What a forward of so many rows as those of `call` takes; 0 where that is unknown."""
        if not rows:
            return 0.0
        full = self._forwards.full_rows(call.step, rows)
        return self._forecast.times.of_forward(call.kind, call.pixels_per_row, full)


def _num_rows(calls: Sequence[ParkedCall]) -> int:
    return sum(call.step.rows for call in calls)
