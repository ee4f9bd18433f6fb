"""A service on this machine for a benchmark: a Ray cluster of its own, gone when it is done."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray
from ray import serve
from ray.serve.schema import ApplicationStatus

_APPLICATION = "imagine"


class LocalService:
    """`url` is its address."""

    def __init__(self, folder: Path) -> None:
        self._config = folder / "serve.json"
        port, dashboard = _free_port(), _free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._dashboard = f"http://127.0.0.1:{dashboard}"
        ray.init(
            address="local",
            num_cpus=8,  # replicas side by side, whatever the machine has
            dashboard_port=dashboard,
            log_to_driver=False,
            logging_level="error",
        )
        serve.start(http_options={"host": "127.0.0.1", "port": port})

    def deploy(self, *, num_generators: int = 1, **args: Any) -> None:
        """`serve deploy` of these arguments of the service; returns when all replicas have them."""
        application = {
            "name": _APPLICATION,
            "import_path": "serving.app:build_app",
            "args": {"num_cpus": 2 / num_generators, **args},
            "deployments": [{"name": "Generator", "num_replicas": num_generators}],
        }
        self._config.write_text(json.dumps({"applications": [application]}))
        before = self._deployed_at()
        command = [Path(sys.executable).parent / "serve", "deploy", self._config]
        subprocess.run([*command, "--address", self._dashboard], check=True, capture_output=True)
        while self._deployed_at() == before or not self._is_running():
            time.sleep(0.2)

    def processes(self, deployment: str) -> list[psutil.Process]:
        """Of the replicas of `deployment`, those that have loaded."""
        title = f"ray::ServeReplica:{_APPLICATION}:{deployment}"
        return [p for p in psutil.Process().children(recursive=True) if _title(p) == title]

    def _deployed_at(self) -> float:
        found = serve.status().applications.get(_APPLICATION)
        return found.last_deployed_time_s if found else 0.0

    def _is_running(self) -> bool:
        status = serve.status().applications[_APPLICATION].status
        assert status != ApplicationStatus.DEPLOY_FAILED, serve.status()
        return bool(status == ApplicationStatus.RUNNING)


@contextmanager
def local_service(*, num_generators: int = 1, **args: Any) -> Iterator[LocalService]:
    """Of the bundled model, with these arguments of the service."""
    with tempfile.TemporaryDirectory(prefix="sdr-", dir="/tmp") as folder:
        os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": folder}
        service = LocalService(Path(folder))
        try:
            service.deploy(num_generators=num_generators, **args)
            yield service
        finally:
            ray.shutdown()


def _title(process: psutil.Process) -> str:
    try:
        return process.cmdline()[0]
    except (psutil.Error, IndexError):
        return ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
