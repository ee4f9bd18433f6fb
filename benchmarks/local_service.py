"""A service on this machine for a benchmark: a Ray cluster of its own, gone when it is done."""

import logging
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from serving.serve_environment import SERVE_ENVIRONMENT

os.environ |= SERVE_ENVIRONMENT | {"RAY_AUTH_MODE": "disabled"} | os.environ  # before Ray

import httpx
import psutil
import ray
import torch
from ports import free_port
from pydantic import TypeAdapter
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, ServeDeploySchema

from shared.counters import EngineCounters

logging.getLogger("ray.serve").setLevel(logging.WARNING)

_APPLICATION = "imagine"
NUM_CPUS = os.cpu_count() or 1
# Where old and new replicas are to stand side by side.
ROOM = 4 * NUM_CPUS
NUM_GPUS = int(torch.cuda.is_available())
_COUNTERS = TypeAdapter(EngineCounters)


class LocalService:
    """`url` is its address. Without Ray's dashboard, as `make serve` is.

    Its cluster has `cluster_cpus`. Ray starts as many workers, so more than there are cost time.
    """

    def __init__(self, cluster_cpus: int) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url)  # to make one takes longer than to ask
        ray.init(
            address="local",
            num_cpus=cluster_cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="critical",
        )
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        # What the dashboard does for `serve deploy` is no public function.
        self._serve = _get_global_client()

    def deploy(self, *, num_generators: int = 1, **args: Any) -> None:
        """As `serve deploy` of these arguments; returns when all replicas have them."""
        before = self._deployed_at()
        self.ask_for(num_generators=num_generators, **args)
        while self._deployed_at() == before or not self._is_running():
            time.sleep(0.2)

    def ask_for(self, *, num_generators: int = 1, **args: Any) -> None:
        """As `deploy`, without waiting for what becomes of it."""
        application = {
            "name": _APPLICATION,
            "import_path": "serving.app:build_app",
            "args": {
                "num_cpus": NUM_CPUS / num_generators,
                "num_gpus": NUM_GPUS / num_generators,
                **args,
            },
            "deployments": [{"name": "Generator", "num_replicas": num_generators}],
        }
        self._serve.deploy_apps(ServeDeploySchema(applications=[application]))

    def engine(self) -> tuple[str, EngineCounters]:
        """The name and counters of one generator's engine: Serve's choice, of the idlest."""
        answer = self.http.get("/forwards").json()
        return answer["engine"], _COUNTERS.validate_python(answer["counters"])

    def engines(self, number: int) -> dict[str, EngineCounters]:
        """Of all `number` generators, where they have little to do, or equally much."""
        found: dict[str, EngineCounters] = {}
        for _ in range(100 * number):
            name, counters = self.engine()
            found[name] = counters
            if len(found) == number:
                return found
            time.sleep(0.05)
        raise RuntimeError(f"{len(found)} of {number} generators answered")

    def processes(self, deployment: str) -> list[psutil.Process]:
        """Of the replicas of `deployment` that take requests."""
        application = self._serve.get_serve_details()["applications"][_APPLICATION]
        details = application["deployments"][deployment]
        running = [each["pid"] for each in details["replicas"] if each["state"] == "RUNNING"]
        return [psutil.Process(pid) for pid in running if psutil.pid_exists(pid)]

    def _deployed_at(self) -> float:
        found = serve.status().applications.get(_APPLICATION)
        return found.last_deployed_time_s if found else 0.0

    def _is_running(self) -> bool:
        status = serve.status().applications[_APPLICATION].status
        assert status != ApplicationStatus.DEPLOY_FAILED, serve.status()
        return bool(status == ApplicationStatus.RUNNING)


@contextmanager
def ray_folder() -> Iterator[str]:
    """A folder for a while, which the clusters that this process starts take for their files."""
    # Short, since it holds sockets; and the last processes may still be writing into it.
    with tempfile.TemporaryDirectory(
        prefix="sdr-", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:
        os.environ["RAY_TMPDIR"] = folder
        yield folder


@contextmanager
def local_service(
    *, num_generators: int = 1, cluster_cpus: int = NUM_CPUS, **args: Any
) -> Iterator[LocalService]:
    """Of the bundled model, with these arguments of the service."""
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with ray_folder():
        service = LocalService(cluster_cpus)
        try:
            service.deploy(num_generators=num_generators, **args)
            yield service
        finally:
            service.http.close()
            ray.shutdown()
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray leaves the kernel's: to die at once
