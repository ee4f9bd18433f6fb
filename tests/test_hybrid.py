"""A bulk job through a running service, beside people who ask it, and through what kills them."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
from urllib3 import Retry

from tests.bulk import pictures
from tests.conftest import REPO, Cluster
from tests.deployed import DeployedService

pytestmark = pytest.mark.cluster

ONLINE = {"prompt": "a", "seed": 9, "width": 64, "height": 64, "num_inference_steps": 4}
NUM_ROWS = 40
# What OpenAI's clients try again, and how often.
LIKE_OPENAI = Retry(
    total=2,
    backoff_factor=0.5,
    status_forcelist={408, 409, 429, *range(500, 600)},
    allowed_methods={"POST"},
)


@pytest.fixture(scope="module")
def service(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DeployedService]:
    service = DeployedService(cluster, tmp_path_factory.mktemp("service"))
    service.deploy(engine={"bulk_slack": 0.5})
    service.wait_for_generators(1)
    yield service
    service.delete()


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "prompts.parquet"
    columns = {
        "prompt": [f"twin peaks {i}" for i in range(NUM_ROWS)],
        "num_inference_steps": [5 + i % 10 for i in range(NUM_ROWS)],
        "width": [64] * NUM_ROWS,
        "height": [64] * NUM_ROWS,
    }
    pq.write_table(pa.table(columns), file)
    return file


class Jobs:
    """Runs of one command into one folder."""

    def __init__(self, cluster: Cluster, prompts: Path, output: Path) -> None:
        self.output = output
        self._command = [sys.executable, "-m", "jobs.render", "--input", str(prompts)]
        self._command += ["--output", str(output), "--shard-rows=8"]
        self._environment = cluster.environment()

    def start(self, *options: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*self._command, *options],
            cwd=REPO,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *options: str) -> str:
        job = self.start(*options)
        told, _ = job.communicate(timeout=240)
        assert job.returncode == 0, told
        return told

    def wait_for_pictures(self, number: int, job: "subprocess.Popen[str]") -> None:
        for _ in range(1200):
            if len(pictures(self.output)) >= number:
                return
            assert job.poll() is None, job.communicate()[0]
            time.sleep(0.1)
        raise AssertionError("no pictures came")


@pytest.fixture(scope="module")
def own(
    cluster: Cluster, prompts: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """What the bulk door makes by itself, with as many threads as the generator has."""
    jobs = Jobs(cluster, prompts, tmp_path_factory.mktemp("own") / "out")
    jobs.run("--num-cpus=1", "--concurrency=1")
    return pictures(jobs.output)


def generator(service: DeployedService) -> psutil.Process:
    (replica,) = service.wait_for_generators(1)
    return psutil.Process(replica["pid"])


def stats(service: DeployedService, kind: str) -> dict[str, int]:
    found: dict[str, int] = requests.get(f"{service.url}/stats", timeout=60).json()[kind]
    return found


def pictures_told(cluster: Cluster) -> dict[str, float]:
    """Pictures done, as Prometheus is told, by job."""
    found = requests.get(cluster.metrics, timeout=10).text
    line = re.compile(r'ray_sd_bulk_images_total\{.*job_id="(\w+)".*status="ok".*\} ([\d.]+)')
    return {job: float(number) for job, number in line.findall(found)}


# The handle later: pictures of the job without a service are told by then.
@pytest.mark.parametrize("by", ["http", "handle"])
def test_what_a_service_renders_is_what_the_bulk_door_renders(
    by: str,
    cluster: Cluster,
    service: DeployedService,
    prompts: Path,
    own: dict[str, bytes],
    tmp_path: Path,
) -> None:
    where = {"handle": "imagine", "http": service.url}[by]
    jobs = Jobs(cluster, prompts, tmp_path / "out")
    before, told_before = stats(service, "bulk")["num_completed"], pictures_told(cluster).items()
    with service.callers(ONLINE) as answers:
        told = jobs.run("--via-service", where)
    assert f"rendered  {NUM_ROWS} of {NUM_ROWS} pictures" in told
    assert pictures(jobs.output) == own
    assert {answer.status_code for answer in answers} == {200}
    assert stats(service, "bulk")["num_completed"] >= before + NUM_ROWS
    if by == "handle":  # else it is in no cluster that it could tell
        until = time.monotonic() + 30
        while NUM_ROWS not in dict(pictures_told(cluster).items() - told_before).values():
            assert time.monotonic() < until
            time.sleep(0.5)
    # It is the same run, whoever renders it.
    assert "Nothing to do" in jobs.run("--num-cpus=1")


@pytest.mark.slow
def test_a_job_loses_nothing_by_the_generator_and_harms_nobody_when_it_is_killed(
    cluster: Cluster,
    service: DeployedService,
    prompts: Path,
    own: dict[str, bytes],
    tmp_path: Path,
) -> None:
    jobs = Jobs(cluster, prompts, tmp_path / "out")
    with service.callers(ONLINE) as answers:
        job = jobs.start("--via-service", "imagine")
        jobs.wait_for_pictures(8, job)
        generator(service).kill()
        jobs.wait_for_pictures(16, job)
        job.send_signal(signal.SIGKILL)
        job.wait()
        for _ in range(600):
            bulk = stats(service, "bulk")
            if not bulk["num_in_flight"] + bulk["num_waiting"]:
                break
            time.sleep(0.1)
        assert not bulk["num_in_flight"] + bulk["num_waiting"]
        assert len(pictures(jobs.output)) < NUM_ROWS, "too short to be killed meanwhile"
        told = jobs.run("--via-service", "imagine")
    assert pictures(jobs.output) == own
    assert f"rendered  {NUM_ROWS} of {NUM_ROWS} pictures" in told
    assert {answer.status_code for answer in answers} == {200}


@pytest.mark.slow
def test_a_killed_ingress_costs_a_second_try_of_what_went_through_it(
    cluster: Cluster,
    service: DeployedService,
    prompts: Path,
    own: dict[str, bytes],
    tmp_path: Path,
) -> None:
    jobs = Jobs(cluster, prompts, tmp_path / "out")
    (ingress,) = service.wait_for_generators(1, "Ingress")
    with service.callers(ONLINE | {"num_inference_steps": 100}, LIKE_OPENAI) as answers:
        job = jobs.start("--via-service", service.url)
        jobs.wait_for_pictures(8, job)
        while not stats(service, "online")["num_in_flight"]:
            time.sleep(0.1)
        os.kill(ingress["pid"], signal.SIGKILL)
        told, _ = job.communicate(timeout=240)
    assert job.returncode == 0, told
    assert pictures(jobs.output) == own
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    # Two callers, and each had one request there at most.
    assert 1 <= sum(len(answer.raw.retries.history) for answer in answers) <= 2


def test_a_service_that_cannot_be_asked_is_told_in_a_line(
    cluster: Cluster, prompts: Path, tmp_path: Path
) -> None:
    jobs = Jobs(cluster, prompts, tmp_path / "out")
    for where, reason in {
        "nobody": "error: no Serve application 'nobody' runs in this cluster",
        "http://127.0.0.1:1": "error: cannot reach http://127.0.0.1:1",
    }.items():
        job = jobs.start("--via-service", where)
        told, _ = job.communicate(timeout=120)
        assert job.returncode == 2
        assert told.splitlines()[-1].startswith(reason)
