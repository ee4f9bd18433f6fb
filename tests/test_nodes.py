"""Several machines, of which one goes: the service and the bulk job carry on without it."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
import yaml

from tests.bulk import pictures
from tests.conftest import BIN, REPO, Cluster, free_port

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[Cluster, list[Callable[[], None]]]]:
    """A head that does not compute, and two machines; each can be ended."""
    cluster = Cluster(num_cpus=0)
    yield cluster, [cluster.add_node(num_cpus=2) for _ in range(2)]
    cluster.stop()


def test_the_service_outlives_a_machine(
    nodes: tuple[Cluster, list[Callable[[], None]]], tmp_path: Path
) -> None:
    cluster, ends = nodes
    host = deploy(cluster, tmp_path)
    request = {"prompt": "a", "seed": 9, "width": 128, "height": 128, "num_inference_steps": 20}
    expected = requests.post(f"{host}/imagine", json=request, timeout=120).content
    enough = threading.Event()

    def keep_asking() -> list[requests.Response]:
        answers = []
        while not enough.is_set():
            answers.append(requests.post(f"{host}/imagine", json=request, timeout=120))
        return answers

    with ThreadPoolExecutor(8) as threads:
        callers = [threads.submit(keep_asking) for _ in range(8)]
        time.sleep(5)
        ends.pop()()
        time.sleep(20)
        ends.append(cluster.add_node(num_cpus=2))
        wait_for_generators(cluster, 2)
        time.sleep(2)
        enough.set()
        answers = [answer for caller in callers for answer in caller.result()]
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.content for answer in answers} == {expected}
    requests.delete(f"{cluster.dashboard}/api/serve/applications/", timeout=60)


def test_a_bulk_job_outlives_a_machine(
    nodes: tuple[Cluster, list[Callable[[], None]]], tmp_path: Path
) -> None:
    cluster, ends = nodes
    prompts = tmp_path / "prompts.parquet"
    pq.write_table(pa.table({"prompt": [f"peak {i}" for i in range(60)]}), prompts)

    def start(output: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "jobs.render", "--input", prompts, "--output", output]
        command += ["--shard-rows", "5", "--concurrency", "2", "--num-cpus", "2"]
        return subprocess.Popen(
            command, env=cluster.environment(), cwd=REPO, text=True, stdout=subprocess.PIPE
        )

    job = start(tmp_path / "out")
    while len(pictures(tmp_path / "out")) < 10:
        assert job.poll() is None
        time.sleep(0.2)
    ends.pop()()
    told, _ = job.communicate()
    assert job.returncode == 0, told
    assert "60 of 60 pictures" in told
    undisturbed = start(tmp_path / "undisturbed")
    undisturbed.communicate()
    assert pictures(tmp_path / "out") == pictures(tmp_path / "undisturbed")
    assert len(pictures(tmp_path / "out")) == 60


def deploy(cluster: Cluster, folder: Path) -> str:
    """service.yaml, with two generators that have a machine each. The load balancer is the head."""
    (application,) = yaml.safe_load((REPO / "service.yaml").read_text())["applications"]
    application["args"] |= {"num_cpus": 2, "num_gpus": 0}
    _, generator = application["deployments"]
    del generator["ray_actor_options"], generator["autoscaling_config"]
    generator["num_replicas"] = 2
    port, config = free_port(), folder / "serve.yaml"
    content = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [application],
    }
    config.write_text(yaml.safe_dump(content))
    subprocess.run(
        [BIN / "serve", "deploy", config, "-a", cluster.dashboard], check=True, capture_output=True
    )
    wait_for_generators(cluster, 2)
    return f"http://127.0.0.1:{port}"


def wait_for_generators(cluster: Cluster, number: int) -> None:
    found: list[dict[str, Any]] = []
    for _ in range(240):
        details = requests.get(f"{cluster.dashboard}/api/serve/applications/", timeout=30).json()
        deployments = details["applications"].get("imagine", {}).get("deployments", {})
        found = deployments.get("Generator", {}).get("replicas", [])
        if [each["state"] for each in found] == ["RUNNING"] * number:
            assert len({each["node_id"] for each in found}) == number
            return
        time.sleep(0.5)
    raise AssertionError(found)
