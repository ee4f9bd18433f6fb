"""Which generator gets a request: of all of them, the one that is burdened least."""

import math
import random
from collections import Counter
from typing import Any

from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve.request_router import PendingRequest, ReplicaID, RunningReplica

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
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._burdens: Counter[ReplicaID] = Counter()
        self._calls: dict[tuple[ReplicaID, str], int] = {}

    def initialize_state(self, *, max_renderings: int) -> None:
        """A generator with `max_renderings` would refuse one more, where another may have room."""
        self._max_renderings = max_renderings

    # Serve would have `choose_replicas` overridden, but what is chosen there is counted only after
    # an answer: the pictures of one call would all go to one generator.
    async def _choose_replica_for_request(
        self, pending_request: PendingRequest, *, is_retry: bool = False
    ) -> RunningReplica:
        by = _burden(pending_request)
        chosen = None
        if by:
            await self._ask_the_unknown()
            chosen = self._least_burdened()
        if chosen is None:
            chosen = await super()._choose_replica_for_request(pending_request, is_retry=is_retry)
        call = chosen.replica_id, pending_request.metadata.internal_request_id
        if call not in self._calls:  # it may be sent again before Serve tells of its refusal
            self._calls[call] = by
            self._burdens[chosen.replica_id] += by
        return chosen

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Serve's hook: it was answered, failed, was refused or given up."""
        self._burdens[replica_id] -= self._calls.pop((replica_id, internal_request_id), 0)
        if not self._burdens[replica_id]:
            del self._burdens[replica_id]

    async def _ask_the_unknown(self) -> None:
        numbers = self.replica_queue_len_cache
        unknown = [each for each in self._replicas_list if numbers.get(each.replica_id) is None]
        await self._probe_queue_lens(unknown, 0)

    def _least_burdened(self) -> RunningReplica | None:
        """Of those with room. Where it makes no difference, the number decides, then chance."""
        numbers = self.replica_queue_len_cache
        places = [
            (self._burdens[each.replica_id], number, random.random(), each)
            for each in self._replicas_list
            if (number := numbers.get(each.replica_id)) is not None
            and number < self._max_renderings
        ]
        return min(places)[-1] if places else None


def _burden(pending_request: PendingRequest) -> int:
    match pending_request.args:
        case [CanonicalRequest() as request, *_]:
            return burden(request.pixel_steps)
    return 0
