"""Who goes next: plain policy over parked calls, without tensors."""

from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar


class Schedulable(Protocol):
    """A parked call as the policy sees it."""

    @property
    def key(self) -> Hashable: ...
    @property
    def latents(self) -> int: ...


CallT = TypeVar("CallT", bound=Schedulable)


class StepScheduler(Generic[CallT]):
    """Calls of equal key form a lane. The lane of the oldest call goes next, oldest calls first.

    A resumed call parks again behind all others, so that lanes take turns.
    """

    def __init__(self, max_latents_per_forward: int) -> None:
        self._max_latents = max_latents_per_forward
        self._parked: list[CallT] = []

    def add(self, call: CallT) -> None:
        self._parked.append(call)

    def remove(self, call: CallT) -> None:
        self._parked.remove(call)

    def next_calls(self) -> list[CallT]:
        """Take the calls of the next forward: one lane's, up to the budget, at least one."""
        if not self._parked:
            return []
        chosen = [self._parked[0]]
        latents = chosen[0].latents
        for call in self._parked[1:]:
            if call.key == chosen[0].key and latents + call.latents <= self._max_latents:
                chosen.append(call)
                latents += call.latents
        self._parked = [call for call in self._parked if call not in chosen]
        return chosen
