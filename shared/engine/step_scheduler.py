"""Who goes next: plain policy over parked calls, without tensors."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar


class Schedulable(Protocol):
    """A parked call as the policy sees it."""

    @property
    def key(self) -> Hashable:
        """Calls of equal key and setup can share a forward."""

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
        """Lower goes first."""

    @property
    def setup(self) -> Hashable:
        """What the weights have to be prepared with; changing it takes time. None: nothing."""


CallT = TypeVar("CallT", bound=Schedulable)

# Priority, key and setup.
LaneId = tuple[int, Hashable, Hashable]

# Who had too little or too much of the time is not held to it beyond so many seconds.
_MEMORY_S = 60.0


class StepScheduler(Generic[CallT]):
    """Calls that can share a forward form a lane; of the first priority, the most delayed goes.

    Decodes go first: each makes room for a request that can then go with the others, and as long as
    they wait, whoever goes instead goes with less company. Among the rest, the most delayed
    is the call with the highest ratio of the time since its request came to the time that the
    request takes alone, and with it as many of its lane as fit. A call that needs another setup
    than the last forward had counts as come so much later as the change takes.

    Calls of a later priority go by themselves where no others are, as guests in a forward that
    has room to spare, and now and then before the others: a decode that these can wait for, one
    between two forwards, and whatever there is if they are to have a part of the time.
    """

    def __init__(
        self,
        max_pixels: Mapping[str, int],
        spare_pixels: Callable[[Sequence[CallT], int], int] = lambda _, room: 0,
        can_pass: Callable[[CallT], bool] = lambda _: False,
        floor: float = 0.0,
    ) -> None:
        """`max_pixels` bounds the forwards of each kind; a larger call goes alone.

        `spare_pixels` says how much guests may add to a forward of these calls that has room for
        so much, and `can_pass` whether those of the first priority can wait for this one. `floor`
        is the part of the time that later priorities have at least, as guests or by themselves.
        """
        self._max_pixels = dict(max_pixels)
        self._spare_pixels = spare_pixels
        self._can_pass = can_pass
        self._has_passed = False  # one of a later priority, just now
        self._lanes: dict[LaneId, list[CallT]] = {}
        self._setup: Hashable = ()
        self._last: tuple[Hashable, Hashable] | None = None
        self._room_left = 0  # for guests, in the last forward
        self._share = _Share(floor)
        self.setup_s = 0.0  # what a change of the setup takes
        self.num_lane_switches = 0

    def add(self, call: CallT) -> None:
        self._lanes.setdefault(_lane_id(call), []).append(call)

    def remove(self, call: CallT) -> None:
        self._lanes[_lane_id(call)].remove(call)

    def next_calls(self, now: float) -> list[CallT]:
        """Take the calls of the next forward: at least one, its lane's and guests to the budget."""
        self._lanes = {lane_id: calls for lane_id, calls in self._lanes.items() if calls}
        self._share.count_until(now)
        if not self._lanes:
            self._share.begin(None)
            return []
        priorities = {lane_id[0] for lane_id in self._lanes}
        first = self._first(priorities, now)
        priority = first.priority
        if self._has_passed:
            own = [first]
            self.remove(first)
        else:
            room = max(first.pixels, self._max_pixels[first.kind])
            own = self._take(_lane_id(first), room, now)
        guests = self._take_guests(own, now)
        theirs = own if priority > min(priorities) else guests
        is_contended = len(priorities) > 1
        self._share.begin(_pixels(theirs) / _pixels(own + guests) if is_contended else None)
        if first.setup is not None:
            self._setup = first.setup
        lane = first.key, first.setup
        self.num_lane_switches += self._last not in (None, lane)
        self._last = lane
        # The same company in the same order at each step: what it has in common is joined once.
        return sorted(own + guests, key=lambda call: call.submitted_at)

    def may_start(self, priority: int, pixels: int) -> bool:
        """Whether a request whose calls are of so many pixels would go soon if it were let in."""
        first = self.first_priority()
        if first is None or priority <= first or pixels <= self._room_left:
            return True
        has_none = not any(each[0] == priority for each, calls in self._lanes.items() if calls)
        return self._share.is_due or (self._share.floor > 0 and has_none)

    def first_priority(self) -> int | None:
        """The priority whose calls go next; None where nothing is parked."""
        return min((each[0] for each, calls in self._lanes.items() if calls), default=None)

    def max_pixels(self, kind: str) -> int:
        """What forwards of this kind hold at most."""
        return self._max_pixels[kind]

    def lower_limit(self, kind: str, pixels: int) -> None:
        """From now on, forwards of this kind hold at most this much."""
        self._max_pixels[kind] = max(1, min(self._max_pixels[kind], pixels))

    def _first(self, priorities: set[int], now: float) -> CallT:
        """Whose turn it is."""
        first, last = min(priorities), max(priorities)
        if self._share.is_due or first == last:
            self._has_passed = False
            return self._most_delayed(last, now)
        late = self._most_delayed(last, now)
        is_its_turn = late.kind == "decode" and not self._has_passed
        self._has_passed = is_its_turn and self._can_pass(late)
        return late if self._has_passed else self._most_delayed(first, now)

    def _most_delayed(self, priority: int, now: float) -> CallT:
        """Decodes before all others."""
        return max(
            (call for each, calls in self._lanes.items() if each[0] == priority for call in calls),
            key=lambda call: (call.kind == "decode", self._delay(call, now)),
        )

    def _delay(self, call: CallT, now: float) -> float:
        waited = now - call.submitted_at
        if call.setup not in (None, self._setup):
            waited -= self.setup_s
        return waited / call.seconds_alone

    def _take_guests(self, own: list[CallT], now: float) -> list[CallT]:
        """Calls of later priorities that fit into the room that a forward of `own` has to spare."""
        first = own[0]
        room = self._max_pixels[first.kind] - _pixels(own)
        room = min(room, self._spare_pixels(own, room))
        lanes = [
            lane_id
            for lane_id in self._lanes
            if lane_id[0] > first.priority and lane_id[1:] == (first.key, first.setup)
        ]
        guests: list[CallT] = []
        for lane_id in sorted(lanes, key=lambda each: each[0]):
            guests += self._take(lane_id, room - _pixels(guests), now)
        self._room_left = room - _pixels(guests)
        return guests

    def _take(self, lane_id: LaneId, room: int, now: float) -> list[CallT]:
        """Take as many calls of a lane as fit into `room` pixels, the most delayed first."""
        calls = sorted(self._lanes.get(lane_id, ()), key=lambda call: -self._delay(call, now))
        taken = []
        for call in calls:
            if call.pixels <= room:
                taken.append(call)
                room -= call.pixels
        if taken:
            self._lanes[lane_id] = [call for call in calls if call not in taken]
        return taken


class _Share:
    """Keeps account of the part of the time that some have, and says when they are due.

    They are due at least `floor` of the time while others are there too.
    """

    def __init__(self, floor: float) -> None:
        self.floor = floor
        self._owed_s = 0.0
        self._since = 0.0
        self._part: float | None = None

    @property
    def is_due(self) -> bool:
        return self._owed_s > 0

    def begin(self, part: float | None) -> None:
        """From when was last counted they have this part; None: nobody else is there."""
        self._part = part

    def count_until(self, now: float) -> None:
        if self._part is not None:
            owed_s = self._owed_s + (self.floor - self._part) * (now - self._since)
            self._owed_s = max(-_MEMORY_S, min(owed_s, _MEMORY_S))
        self._since = now


def _pixels(calls: Sequence[Schedulable]) -> int:
    return sum(call.pixels for call in calls)


def _lane_id(call: Schedulable) -> LaneId:
    return (call.priority, call.key, call.setup)
