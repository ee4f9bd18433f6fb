"""Who goes next: plain policy over parked calls, without tensors."""

from collections.abc import Hashable, Mapping
from typing import Generic, Protocol, TypeVar


class Schedulable(Protocol):
    """A parked call as the policy sees it."""

    @property
    def key(self) -> Hashable:
        """Calls of equal key, priority and setup can share a forward."""

    @property
    def kind(self) -> str:
        """Which budget it counts against."""

    @property
    def pixels(self) -> int:
        """Its work: pixels of a picture times rows."""

    @property
    def submitted_at(self) -> float:
        """When its request came, in seconds of any clock."""

    @property
    def seconds_alone(self) -> float:
        """What its request takes with nobody beside it, from beginning to end; above 0."""

    @property
    def priority(self) -> int:
        """Lower goes first, always."""

    @property
    def setup(self) -> Hashable:
        """What the weights have to be prepared with; changing it takes time. None: nothing."""


CallT = TypeVar("CallT", bound=Schedulable)

# Priority, key and setup.
LaneId = tuple[int, Hashable, Hashable]


class StepScheduler(Generic[CallT]):
    """Calls that can share a forward form a lane; of the first priority, the most delayed goes.

    Decodes go first: each makes room for a request that can then go with the others, and as long as
    they wait, whoever goes instead goes with less company. Among the rest, the most delayed
    is the call with the highest ratio of the time since its request came to the time that the
    request takes alone, and with it as many of its lane as fit. A call that needs another setup
    than the last forward had counts as come so much later as the change takes.
    """

    def __init__(self, max_pixels: Mapping[str, int]) -> None:
        """`max_pixels` bounds the forwards of each kind; a larger call goes alone."""
        self._max_pixels = dict(max_pixels)
        self._lanes: dict[LaneId, list[CallT]] = {}
        self._setup: Hashable = ()
        self._last: LaneId | None = None
        self.setup_s = 0.0  # what a change of the setup takes
        self.num_lane_switches = 0

    def add(self, call: CallT) -> None:
        self._lanes.setdefault(_lane_id(call), []).append(call)

    def remove(self, call: CallT) -> None:
        self._lanes[_lane_id(call)].remove(call)

    def next_calls(self, now: float) -> list[CallT]:
        """Take the calls of the next forward: one lane's, up to the budget, at least one."""
        self._lanes = {lane_id: calls for lane_id, calls in self._lanes.items() if calls}
        if not self._lanes:
            return []
        priority = self.first_priority()
        first = max(
            (call for each, calls in self._lanes.items() if each[0] == priority for call in calls),
            key=lambda call: (call.kind == "decode", self._delay(call, now)),
        )
        lane_id = _lane_id(first)
        calls = sorted(self._lanes[lane_id], key=lambda call: -self._delay(call, now))
        chosen = self._within_budget(calls)
        self._lanes[lane_id] = [call for call in calls if call not in chosen]
        if first.setup is not None:
            self._setup = first.setup
        self.num_lane_switches += self._last not in (None, lane_id)
        self._last = lane_id
        # The same company in the same order at each step: what it has in common is joined once.
        return sorted(chosen, key=lambda call: call.submitted_at)

    def first_priority(self) -> int | None:
        """The priority whose calls go next; None where nothing is parked."""
        return min((each[0] for each, calls in self._lanes.items() if calls), default=None)

    def max_pixels(self, kind: str) -> int:
        """What forwards of this kind hold at most."""
        return self._max_pixels[kind]

    def lower_limit(self, kind: str, pixels: int) -> None:
        """From now on, forwards of this kind hold at most this much."""
        self._max_pixels[kind] = max(1, min(self._max_pixels[kind], pixels))

    def _delay(self, call: CallT, now: float) -> float:
        waited = now - call.submitted_at
        if call.setup not in (None, self._setup):
            waited -= self.setup_s
        return waited / call.seconds_alone

    def _within_budget(self, calls: list[CallT]) -> list[CallT]:
        chosen = [calls[0]]
        room = self._max_pixels[calls[0].kind] - calls[0].pixels
        for call in calls[1:]:
            if call.pixels <= room:
                chosen.append(call)
                room -= call.pixels
        return chosen


def _lane_id(call: Schedulable) -> LaneId:
    return (call.priority, call.key, call.setup)
