"""Which generator gets a request: of all of them, the one that is burdened least."""

import math
import random
from collections import Counter
from typing import Any

from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve.request_router import PendingRequest, ReplicaID, RunningReplica

from shared.counters import Priority
from shared.request import CanonicalRequest


def burden(pixel_steps: int) -> int:
    """What a request is to a generator, and to those who share it: the root of its work.

    Counted as one, large requests get in each other's way; by their work, a large one has a
    generator for itself, and small ones crowd the others: `benchmarks/routing.py` has all three.
    """
    return math.isqrt(pixel_steps)


class LeastBurdenRouter(PowerOfTwoChoicesRequestRouter):  # type: ignore[misc]  # Serve is untyped
    """Serve's own router compares two generators by how many requests they have.

    An ingress knows what it asked each generator for, and can compare them all. It asks only those
    that Serve knows no number of: new ones, those it has not heard of for some seconds, and those
    it could not reach. Where all are full, and for calls that are for no picture, the choice is
    Serve's.

    Online requests do not feel bulk ones, and are placed by their own burden alone; bulk ones go
    where both together are the least.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._burdens: Counter[tuple[ReplicaID, Priority]] = Counter()
        self._calls: dict[tuple[ReplicaID, str], tuple[Priority, int]] = {}

    def initialize_state(self, *, max_renderings: int) -> None:
        """A generator with `max_renderings` would refuse one more, where another may have room."""
        self._max_renderings = max_renderings

    # Serve would have `choose_replicas` overridden, but what is chosen there is counted only after
    # an answer: the pictures of one call would all go to one generator.
    async def _choose_replica_for_request(
        self, pending_request: PendingRequest, *, is_retry: bool = False
    ) -> RunningReplica:
        priority, by = _burden(pending_request)
        chosen = None
        if by:
            await self._ask_the_unknown()
            chosen = self._least_burdened(priority)
        if chosen is None:
            chosen = await super()._choose_replica_for_request(pending_request, is_retry=is_retry)
        call = chosen.replica_id, pending_request.metadata.internal_request_id
        if call not in self._calls:  # it may be sent again before Serve tells of its refusal
            self._calls[call] = priority, by
            self._burdens[chosen.replica_id, priority] += by
        return chosen

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Serve's hook: it was answered, failed, was refused or given up."""
        priority, by = self._calls.pop((replica_id, internal_request_id), (Priority.ONLINE, 0))
        self._burdens[replica_id, priority] -= by
        if not self._burdens[replica_id, priority]:
            del self._burdens[replica_id, priority]

    async def _ask_the_unknown(self) -> None:
        numbers = self.replica_queue_len_cache
        unknown = [each for each in self._replicas_list if numbers.get(each.replica_id) is None]
        await self._probe_queue_lens(unknown, 0)

    def _least_burdened(self, priority: Priority) -> RunningReplica | None:
        """Of those with room. Where it makes no difference, the number decides, then chance."""
        felt = [each for each in Priority if each <= priority]
        numbers = self.replica_queue_len_cache
        places = [
            (self._burden_of(each, felt), number, random.random(), each)
            for each in self._replicas_list
            if (number := numbers.get(each.replica_id)) is not None
            and number < self._max_renderings
        ]
        return min(places)[-1] if places else None

    def _burden_of(self, replica: RunningReplica, felt: list[Priority]) -> int:
        return sum(self._burdens[replica.replica_id, priority] for priority in felt)


def _burden(pending_request: PendingRequest) -> tuple[Priority, int]:
    match pending_request.args:
        case [CanonicalRequest() as request, _, Priority() as priority, *_]:
            return priority, burden(request.pixel_steps)
    return Priority.ONLINE, 0
