"""Who goes next: plain policy over parked calls, without tensors."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
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
    def priority(self) -> int:
        """Lower goes first, always."""

    @property
    def setup(self) -> Hashable:
        """What the weights have to be prepared with; changing it takes time."""


CallT = TypeVar("CallT", bound=Schedulable)

# Priority, key and setup.
LaneId = tuple[int, Hashable, Hashable]


@dataclass
class _Lane(Generic[CallT]):
    """Calls that can share a forward, oldest first, and the pixels that the lane was served."""

    setup: Hashable
    served: float
    calls: list[CallT] = field(default_factory=list)


class StepScheduler(Generic[CallT]):
    """Calls that can share a forward form a lane; of the first priority, the least served goes.

    Lanes are so served equal shares of pixels, however many requests each has. A lane that begins
    starts level with the least served one. A lane that needs another setup than the last forward
    had is put back by what the change costs, and charged for it.
    """

    def __init__(self, max_pixels: Mapping[str, int]) -> None:
        """`max_pixels` bounds the forwards of each kind; a larger call goes alone."""
        self._max_pixels = dict(max_pixels)
        self._lanes: dict[LaneId, _Lane[CallT]] = {}
        self._setup: Hashable = ()
        self._last: LaneId | None = None
        self.setup_pixels = 0.0  # the work that could be done while the setup is changed
        self.num_lane_switches = 0

    def add(self, call: CallT) -> None:
        lane_id = (call.priority, call.key, call.setup)
        lane = self._lanes.get(lane_id)
        if lane is None:
            rivals = [each.served for each in self._of_priority(call.priority).values()]
            lane = self._lanes[lane_id] = _Lane(call.setup, served=min(rivals, default=0.0))
        lane.calls.append(call)

    def remove(self, call: CallT) -> None:
        self._lanes[call.priority, call.key, call.setup].calls.remove(call)

    def next_calls(self) -> list[CallT]:
        """Take the calls of the next forward: one lane's, up to the budget, at least one."""
        self._lanes = {lane_id: lane for lane_id, lane in self._lanes.items() if lane.calls}
        if not self._lanes:
            return []
        lanes = self._of_priority(self.first_priority())
        lane_id = min(lanes, key=lambda each: lanes[each].served + self._setup_cost(lanes[each]))
        lane = lanes[lane_id]
        chosen = self._within_budget(lane.calls)
        lane.calls = [call for call in lane.calls if call not in chosen]
        lane.served += self._setup_cost(lane) + sum(call.pixels for call in chosen)
        self._setup = lane.setup
        self.num_lane_switches += self._last not in (None, lane_id)
        self._last = lane_id
        return chosen

    def first_priority(self) -> int | None:
        """The priority whose calls go next; None where nothing is parked."""
        return min((each[0] for each, lane in self._lanes.items() if lane.calls), default=None)

    def lower_limit(self, kind: str, pixels: int) -> None:
        """From now on, forwards of this kind hold at most this much."""
        self._max_pixels[kind] = max(1, min(self._max_pixels[kind], pixels))

    def _of_priority(self, priority: int | None) -> dict[LaneId, _Lane[CallT]]:
        return {each: lane for each, lane in self._lanes.items() if each[0] == priority}

    def _setup_cost(self, lane: _Lane[CallT]) -> float:
        return 0.0 if lane.setup == self._setup else self.setup_pixels

    def _within_budget(self, calls: list[CallT]) -> list[CallT]:
        chosen = [calls[0]]
        room = self._max_pixels[calls[0].kind] - calls[0].pixels
        for call in calls[1:]:
            if call.pixels <= room:
                chosen.append(call)
                room -= call.pixels
        return chosen
