"""How many replicas the work asks for: the policy by itself, and a service that grows by it."""

import inspect
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from serving.autoscaling import ReplicasByWork, Workload
from tests.conftest import BIN, REPO, Cluster, free_port

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


def test_serve_can_take_the_policy_to_its_controller(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its code, where nothing of this project can be imported."""
    settings = {"policy_function": PATH, "policy_kwargs": {"clear_within_s": 5}}
    policy = AutoscalingConfig(policy=settings).policy
    for name in ("serving", "serving.autoscaling", "shared"):
        monkeypatch.setitem(sys.modules, name, None)
    kind = policy.get_policy()
    assert kind(**policy.policy_kwargs)(context({"backlog_s": 5.0, "demand": 0.0})) == (1, {})


@pytest.fixture
def host(cluster: Cluster, tmp_path: Path) -> Iterator[str]:
    """The application of service.yaml, for small machines and short patience."""
    (application,) = yaml.safe_load((REPO / "service.yaml").read_text())["applications"]
    application["args"] |= {"num_cpus": 1, "num_gpus": 0}
    _, generator = application["deployments"]
    del generator["ray_actor_options"]
    generator["autoscaling_config"] = {
        "min_replicas": 1,
        "max_replicas": 2,
        "upscale_delay_s": 2,
        "downscale_delay_s": 5,
        "look_back_period_s": 12,
        "policy": {"policy_function": PATH, "policy_kwargs": {"clear_within_s": 3}},
    }
    port, config = free_port(), tmp_path / "serve.yaml"
    http_options = {"host": "127.0.0.1", "port": port}
    config.write_text(yaml.safe_dump({"http_options": http_options, "applications": [application]}))
    subprocess.run(
        [BIN / "serve", "deploy", config, "-a", cluster.dashboard], check=True, capture_output=True
    )
    yield f"http://127.0.0.1:{port}"
    requests.delete(f"{cluster.dashboard}/api/serve/applications/", timeout=60)


@pytest.mark.cluster
@pytest.mark.slow
def test_a_second_generator_comes_with_the_load_and_goes_with_it(
    host: str, cluster: Cluster
) -> None:
    _wait_for_generators(cluster, 1)
    idle = threading.Event()

    def keep_asking(seed: int) -> set[int]:
        request = {"prompt": "a", "width": 128, "height": 128, "seed": seed}
        codes = set()
        while not idle.is_set():
            codes.add(requests.post(f"{host}/imagine", json=request, timeout=120).status_code)
        return codes

    with ThreadPoolExecutor(16) as callers:
        codes = [callers.submit(keep_asking, seed) for seed in range(16)]
        try:
            _wait_for_generators(cluster, 2)
        finally:
            idle.set()
    assert set.union(*(each.result() for each in codes)) == {200}
    _wait_for_generators(cluster, 1)


def _wait_for_generators(cluster: Cluster, number: int) -> None:
    """Until so many run, and no other is on its way."""
    states: list[str] = []
    for _ in range(240):
        found = requests.get(f"{cluster.dashboard}/api/serve/applications/", timeout=30).json()
        states = _generators(found)
        if states == ["RUNNING"] * number:
            return
        time.sleep(0.5)
    raise AssertionError(states)


def _generators(found: dict[str, Any]) -> list[str]:
    deployments = found["applications"].get("imagine", {}).get("deployments", {})
    return [each["state"] for each in deployments.get("Generator", {}).get("replicas", [])]
