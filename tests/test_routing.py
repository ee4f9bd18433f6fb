"""Which of two replicas on a real cluster gets a request."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import ray
from ray import serve
from ray.serve.config import RequestRouterConfig

from serving.routing import LeastBurdenRouter
from shared.counters import Priority
from shared.model_profile import ModelProfile
from shared.request import CanonicalRequest, Encoding, ImageRequest
from tests.conftest import Cluster, free_port

pytestmark = pytest.mark.cluster
MAX_RENDERINGS = 12


@serve.deployment(
    num_replicas=2,
    max_ongoing_requests=100,
    request_router_config=RequestRouterConfig(
        request_router_class=LeastBurdenRouter,
        request_router_kwargs={"max_renderings": MAX_RENDERINGS},
    ),
    ray_actor_options={"num_cpus": 0},
)
class Replica:
    async def hold(self, _: CanonicalRequest, __: Encoding, ___: Priority) -> AsyncIterator[int]:
        """Say who it is, and be at work until the caller has enough."""
        yield os.getpid()
        await asyncio.Event().wait()


@pytest.fixture(scope="module")
def runner(cluster: Cluster) -> Iterator[asyncio.Runner]:
    """Of the one loop that can have a router of these replicas."""
    ray.init(cluster.address, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": free_port()})
        serve.run(Replica.bind(), name="routing")
        with asyncio.Runner() as runner:
            yield runner
            runner.run(serve.shutdown_async())
    finally:
        ray.shutdown()


class Asker:
    """As an ingress is; what it asked for is under way until it is `released`."""

    def __init__(self, profile: ModelProfile) -> None:
        self._hold = serve.get_app_handle("routing").options(stream=True).hold
        self._profile = profile
        self._held: list[Any] = []  # streams; Serve is untyped

    async def ask(
        self,
        side: int = 128,
        num_inference_steps: int = 20,
        priority: Priority = Priority.ONLINE,
    ) -> int:
        """Return who has it."""
        request = ImageRequest(
            prompt="a", width=side, height=side, num_inference_steps=num_inference_steps
        )
        canonical = self._profile.canonical(request, seed=1)
        answers = self._hold.remote(canonical, Encoding(), priority)
        self._held.append(answers)
        async with asyncio.timeout(30):
            pid: int = await anext(answers)
        return pid

    async def ask_in_turn(self, number: int) -> set[int]:
        return {await self.ask() for _ in range(number)}

    async def ask_at_once(self, number: int) -> Counter[int]:
        return Counter(await asyncio.gather(*(self.ask() for _ in range(number))))

    async def release(self) -> None:
        while self._held:
            self._held.pop().cancel()
        await asyncio.sleep(1)  # until the router has heard of it


@pytest.fixture
def asker(runner: asyncio.Runner, profile: ModelProfile) -> Iterator[Asker]:
    async def new() -> Asker:
        return Asker(profile)

    asker = runner.run(new())
    yield asker
    runner.run(asker.release())


def test_requests_that_come_at_once_are_dealt_out_evenly(
    runner: asyncio.Runner, asker: Asker
) -> None:
    assert sorted(runner.run(asker.ask_at_once(8)).values()) == [4, 4]
    runner.run(asker.release())
    assert sorted(runner.run(asker.ask_at_once(8)).values()) == [4, 4]


def test_small_ones_go_where_no_large_one_is(runner: asyncio.Runner, asker: Asker) -> None:
    with_large = runner.run(asker.ask(side=512, num_inference_steps=50))
    # The large one burdens as much as 6.3 of these.
    assert with_large not in runner.run(asker.ask_in_turn(7))
    assert runner.run(asker.ask()) == with_large


def test_bulk_ones_go_where_both_are_least_and_online_ones_as_if_there_were_none(
    runner: asyncio.Runner, asker: Asker
) -> None:
    with_online = runner.run(asker.ask(side=512, num_inference_steps=50))
    with_bulk = runner.run(asker.ask(priority=Priority.BULK))
    assert with_bulk != with_online
    for _ in range(2):  # so much that others of its kind go elsewhere
        assert runner.run(asker.ask(256, 50, Priority.BULK)) == with_bulk
    assert runner.run(asker.ask(256, 50, Priority.BULK)) == with_online
    assert runner.run(asker.ask_in_turn(6)) == {with_bulk}


def test_a_full_one_gets_no_more_though_another_is_burdened_more(
    runner: asyncio.Runner, asker: Asker
) -> None:
    with_large = runner.run(asker.ask(side=1024, num_inference_steps=100))
    assert with_large not in runner.run(asker.ask_in_turn(MAX_RENDERINGS))
    assert runner.run(asker.ask()) == with_large


def test_one_that_is_lost_gets_none(runner: asyncio.Runner, asker: Asker) -> None:
    first, second = runner.run(asker.ask_at_once(2))
    os.kill(first, signal.SIGKILL)
    assert set(runner.run(asker.ask_at_once(4))) == {second}
