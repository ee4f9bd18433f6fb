"""Several machines, of which one goes: the service and the bulk job carry on without it."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests

from tests.bulk import pictures
from tests.conftest import REPO, Cluster
from tests.deployed import DeployedService

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
    service = DeployedService(cluster, tmp_path, num_replicas=2)
    service.deploy(num_cpus=2)
    assert len({each["node_id"] for each in service.wait_for_generators(2)}) == 2
    host = service.url
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
        service.wait_for_generators(2)
        time.sleep(2)
        enough.set()
        answers = [answer for caller in callers for answer in caller.result()]
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.content for answer in answers} == {expected}
    service.delete()


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
