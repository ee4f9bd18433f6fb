"""A new configuration by `serve deploy` while people ask: what they have goes on meanwhile."""

import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from tests.conftest import BIN, REPO, Cluster, free_port

pytestmark = pytest.mark.cluster

REQUEST = {"prompt": "a", "seed": 9, "width": 64, "height": 64, "num_inference_steps": 4}


class Service:
    """service.yaml, with one generator on a CPU, as `serve deploy` brings it."""

    def __init__(self, cluster: Cluster, file: Path) -> None:
        self._cluster, self._file = cluster, file
        port = free_port()
        self._http = {"host": "127.0.0.1", "port": port}
        self.url = f"http://127.0.0.1:{port}"

    def deploy(self, **args: Any) -> None:
        (application,) = yaml.safe_load((REPO / "service.yaml").read_text())["applications"]
        application["args"] |= {"num_cpus": 1, "num_gpus": 0} | args
        _, generator = application["deployments"]
        del generator["ray_actor_options"], generator["autoscaling_config"]
        config = {"http_options": self._http, "applications": [application]}
        self._file.write_text(yaml.safe_dump(config))
        command = [BIN / "serve", "deploy", self._file, "-a", self._cluster.dashboard]
        subprocess.run(command, check=True, capture_output=True)

    def wait_until(self, status: str) -> str:
        """Until the application has it; returns what Serve says of it."""
        application: dict[str, Any] = {}
        for _ in range(240):
            found = requests.get(f"{self._cluster.dashboard}/api/serve/applications/", timeout=30)
            application = found.json()["applications"].get("imagine", {})
            if application.get("status") == status:
                return str(application["message"])
            time.sleep(0.5)
        raise AssertionError(application)

    def max_steps(self) -> int:
        """By the refusal of too many: it is in the model's part of the arguments."""
        answer = requests.post(
            f"{self.url}/imagine", json=REQUEST | {"num_inference_steps": 9999}, timeout=60
        )
        return int(answer.json()["error"]["message"].split()[-1])

    @contextmanager
    def callers(self) -> Iterator[list[requests.Response]]:
        """Two who ask again and again; their answers are there at the end."""
        answers: list[requests.Response] = []
        enough = threading.Event()

        def keep_asking() -> None:
            while not enough.wait(0.1):
                answers.append(requests.post(f"{self.url}/imagine", json=REQUEST, timeout=120))

        with ThreadPoolExecutor(2) as threads:
            asking = [threads.submit(keep_asking) for _ in range(2)]
            try:
                yield answers
            finally:
                enough.set()
        for each in asking:
            each.result()


@pytest.fixture(scope="module")
def service(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(cluster, tmp_path_factory.mktemp("service") / "serve.yaml")
    service.deploy()
    service.wait_until("RUNNING")
    yield service
    requests.delete(f"{cluster.dashboard}/api/serve/applications/", timeout=60)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": "/no/such/model"}, "/no/such/model is not a diffusers folder"),
        ({"engine": {"max_in_fligth": 3}}, "max_in_fligth"),
    ],
)
def test_a_bad_configuration_leaves_the_old_one_serving_and_says_why(
    service: Service, change: dict[str, Any], reason: str
) -> None:
    expected = requests.post(f"{service.url}/imagine", json=REQUEST, timeout=60).content
    with service.callers() as answers:
        service.deploy(**change)
        assert reason in service.wait_until("DEPLOY_FAILED")
        time.sleep(5)
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.content for answer in answers} == {expected}


def test_a_new_configuration_drops_nothing(service: Service) -> None:
    with service.callers() as answers:
        service.deploy(model={"name": "postcard", "limits": {"max_num_inference_steps": 77}})
        time.sleep(2)
        service.wait_until("RUNNING")
        time.sleep(2)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert service.max_steps() == 77
