"""How many replicas the work asks for: the policy by itself, and a service that grows by it."""

import asyncio
import inspect
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from serving.app import ServiceArgs, build_app
from serving.autoscaling import ReplicasByWork, Workload
from serving.generator import counted
from shared.counters import EngineCounters, Priority, RequestCounters
from shared.model_profile import ModelProfile
from shared.request import Encoding, ImageRequest
from tests.conftest import Cluster
from tests.deployed import DeployedService

PATH = "serving.autoscaling:ReplicasByWork"


def context(*reports: dict[str, float]) -> AutoscalingContext:
    """Of so many replicas that report these."""
    metrics: dict[str, dict[str, float]] = defaultdict(dict)
    for i, report in enumerate(reports):
        for name, value in report.items():
            metrics[name][f"replica {i}"] = value
    fields = inspect.signature(AutoscalingContext).parameters
    return AutoscalingContext(**dict.fromkeys(fields, None) | {"aggregated_metrics": dict(metrics)})


def wanted(*reports: tuple[float, float], clear_within_s: float = 20) -> float:
    """By replicas that report such backlogs and demands."""
    policy = ReplicasByWork(clear_within_s)
    number, state = policy(context(*({"backlog_s": b, "demand": d} for b, d in reports)))
    assert state == {}
    return number


def test_no_work_asks_for_nobody() -> None:
    assert wanted((0, 0)) == 0
    assert ReplicasByWork()(context()) == (0, {})


def test_what_comes_has_to_be_done_as_fast_as_it_comes() -> None:
    assert wanted((0, 0.4)) == 0.4
    assert wanted((0, 0.75), (0, 0.75)) == 1.5


def test_the_backlog_has_to_go_in_time_beside_what_comes() -> None:
    assert wanted((60, 0)) == 3
    assert wanted((60, 0), clear_within_s=60) == 1
    assert wanted((60, 0.5), (20, 0.5)) == 5


def test_a_replica_that_has_not_reported_yet_counts_as_idle() -> None:
    policy = ReplicasByWork()
    assert policy(context({"backlog_s": 40.0, "demand": 1.0}, {})) == (3, {})


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_time_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="clear_within_s"):
        ReplicasByWork(seconds)


def test_demand_is_the_work_that_came_since_the_last_report() -> None:
    now = 0.0
    workload = Workload(clock=lambda: now)
    now = 10
    assert workload.report(work_s=5, backlog_s=2) == {"backlog_s": 2, "demand": 0.5}
    now = 12
    assert workload.report(work_s=11, backlog_s=4) == {"backlog_s": 4, "demand": 3}
    now = 20
    assert workload.report(work_s=11, backlog_s=0) == {"backlog_s": 0, "demand": 0}
    assert workload.report(work_s=11, backlog_s=0)["demand"] == 0


def test_bulk_work_counts_only_where_it_may() -> None:
    engine = EngineCounters(
        online=RequestCounters(work_s=3, backlog_s=1), bulk=RequestCounters(work_s=50, backlog_s=40)
    )
    assert counted(engine, bulk_may_scale=False) == {"work_s": 3, "backlog_s": 1}
    assert counted(engine, bulk_may_scale=True) == {"work_s": 53, "backlog_s": 41}


@pytest.mark.parametrize("bulk_may_scale", [False, True])
def test_the_applications_argument_decides_what_its_generators_report(
    bulk_may_scale: bool, profile: ModelProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("start_watchdog", "log_with_serve", "log_diffusers_with_serve"):
        monkeypatch.setattr(f"serving.generator.{name}", lambda *_: None)  # for a whole process
    ingress = build_app(ServiceArgs(bulk_may_scale=bulk_may_scale))._bound_deployment
    (generator,) = ingress.init_args[0].values()
    bound = generator._bound_deployment
    replica = bound.func_or_class(*bound.init_args, **bound.init_kwargs)
    request = profile.canonical(
        ImageRequest(prompt="a", width=64, height=64, num_inference_steps=2), seed=1
    )

    async def render(priority: Priority) -> float:
        async for _ in replica.generate(request, Encoding(), priority, timeout_s=60):
            pass
        return float((await replica.record_autoscaling_stats())["demand"])

    with replica._renderer:
        assert (asyncio.run(render(Priority.BULK)) > 0) == bulk_may_scale
        assert asyncio.run(render(Priority.ONLINE)) > 0


def test_serve_can_take_the_policy_to_its_controller(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its code, where nothing of this project can be imported."""
    settings = {"policy_function": PATH, "policy_kwargs": {"clear_within_s": 5}}
    policy = AutoscalingConfig(policy=settings).policy
    for name in ("serving", "serving.autoscaling", "shared"):
        monkeypatch.setitem(sys.modules, name, None)
    kind = policy.get_policy()
    assert kind(**policy.policy_kwargs)(context({"backlog_s": 5.0, "demand": 0.0})) == (1, {})


@pytest.fixture
def service(cluster: Cluster, tmp_path: Path) -> Iterator[DeployedService]:
    """For short patience."""
    scaling = {
        "min_replicas": 1,
        "max_replicas": 2,
        "upscale_delay_s": 2,
        "downscale_delay_s": 5,
        "look_back_period_s": 12,
        "policy": {"policy_function": PATH, "policy_kwargs": {"clear_within_s": 3}},
    }
    service = DeployedService(cluster, tmp_path, autoscaling_config=scaling)
    service.deploy()
    yield service
    service.delete()


@pytest.mark.cluster
@pytest.mark.slow
def test_a_second_generator_comes_with_the_load_and_goes_with_it(
    service: DeployedService,
) -> None:
    service.wait_for_generators(1)
    idle = threading.Event()

    def keep_asking(seed: int) -> set[int]:
        request = {"prompt": "a", "width": 128, "height": 128, "seed": seed}
        codes = set()
        while not idle.is_set():
            codes.add(
                requests.post(f"{service.url}/imagine", json=request, timeout=120).status_code
            )
        return codes

    with ThreadPoolExecutor(16) as callers:
        codes = [callers.submit(keep_asking, seed) for seed in range(16)]
        try:
            service.wait_for_generators(2)
        finally:
            idle.set()
    assert set.union(*(each.result() for each in codes)) == {200}
    service.wait_for_generators(1)
