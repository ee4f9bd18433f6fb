"""service.yaml on a cluster without GPUs, as `serve deploy` brings it."""

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
import yaml
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from tests.conftest import BIN, REPO, Cluster, free_port

_PATIENCE_S = 120


class DeployedService:
    """Of a `generator` as in a Serve config; without autoscaling, unless that says so."""

    def __init__(self, cluster: Cluster, folder: Path, **generator: Any) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._dashboard = cluster.dashboard
        self._applications = f"{cluster.dashboard}/api/serve/applications/"
        self._file = folder / "serve.yaml"
        self._generator = generator
        self.others: dict[str, dict[str, Any]] = {}  # deployments, by name
        self.serve: dict[str, Any] = {  # the top of the Serve config
            # There is one machine in the tests, so nodes cannot have a proxy each.
            "proxy_location": "HeadOnly",
            "http_options": {"host": "127.0.0.1", "port": port},
        }

    def deploy(self, **args: Any) -> None:
        """Ask for it, with these arguments of the application."""
        (application,) = yaml.safe_load((REPO / "service.yaml").read_text())["applications"]
        application["args"] |= {"num_cpus": 1, "num_gpus": 0} | args
        _, generator = application["deployments"]
        del generator["ray_actor_options"], generator["autoscaling_config"]
        generator |= self._generator
        application["deployments"] += [
            {"name": name} | options for name, options in self.others.items()
        ]
        self._file.write_text(yaml.safe_dump(self.serve | {"applications": [application]}))
        command = [BIN / "serve", "deploy", self._file, "-a", self._dashboard]
        subprocess.run(command, check=True, capture_output=True)

    def delete(self) -> None:
        requests.delete(self._applications, timeout=60)

    def wait_until(self, status: str) -> str:
        """Until the application has this status; returns what Serve says of it."""
        application = self._wait(lambda application: application.get("status") == status)
        return str(application["message"])

    def wait_for_generators(
        self, number: int, deployment: str = "Generator"
    ) -> list[dict[str, Any]]:
        """Until so many run, and no other is on its way; returns what Serve says of each."""
        running = ["RUNNING"] * number

        def generators(application: dict[str, Any]) -> list[dict[str, Any]] | None:
            found = application.get("deployments", {}).get(deployment, {})
            replicas: list[dict[str, Any]] | None = found.get("replicas")
            return replicas

        def run(application: dict[str, Any]) -> bool:
            replicas = generators(application)
            return replicas is not None and [each["state"] for each in replicas] == running

        return generators(self._wait(run)) or []

    @contextmanager
    def callers(
        self, request: dict[str, Any], retry: Retry | None = None
    ) -> Iterator[list[requests.Response]]:
        """Two who ask for it again and again; their answers are there at the end."""
        answers: list[requests.Response] = []
        enough = threading.Event()

        def keep_asking() -> None:
            with requests.Session() as session:
                session.mount(self.url, HTTPAdapter(max_retries=retry or 0))
                while not enough.wait(0.1):
                    answers.append(session.post(f"{self.url}/imagine", json=request, timeout=120))

        with ThreadPoolExecutor(2) as threads:
            asking = [threads.submit(keep_asking) for _ in range(2)]
            try:
                yield answers
            finally:
                enough.set()
        for each in asking:
            each.result()

    def _wait(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Until it holds of what Serve says of the application; returns that."""
        application: dict[str, Any] = {}
        for _ in range(2 * _PATIENCE_S):
            found = requests.get(self._applications, timeout=30).json()["applications"]
            application = found.get("imagine", {})
            if holds(application):
                return application
            time.sleep(0.5)
        raise AssertionError(application)
