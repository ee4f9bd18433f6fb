"""What the tests share: the bundled pipeline, small models built here, one Ray cluster."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from serving.serve_environment import SERVE_ENVIRONMENT
from shared.cpu_workers import SLEEP_BETWEEN_FORWARDS

# Before Ray and torch are imported anywhere: a private folder (short: it holds sockets), no login,
# and the settings that the service has.
RAY_FOLDER = Path(tempfile.mkdtemp(prefix="sdr-", dir="/tmp"))
(RAY_FOLDER / "ray").mkdir()
os.environ |= SERVE_ENVIRONMENT | {
    "RAY_AUTH_MODE": "disabled",
    "RAY_TMPDIR": str(RAY_FOLDER),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    "HF_HUB_OFFLINE": "1",
}
os.environ |= SLEEP_BETWEEN_FORWARDS  # two processes of tests share the cores
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("API_TOKEN", None)

import psutil  # noqa: E402
import pytest  # noqa: E402
from diffusers import DiffusionPipeline  # noqa: E402

from benchmarks.ports import free_port  # noqa: E402
from shared.config import ModelConfig  # noqa: E402
from shared.engine import DenoiseEngine  # noqa: E402
from shared.model_files import describe_model  # noqa: E402
from shared.model_names import BUNDLED_MODELS  # noqa: E402
from shared.model_profile import ModelProfile  # noqa: E402
from shared.pipeline import load_pipeline  # noqa: E402
from tests.small_models import small_stable_diffusion  # noqa: E402

REPO = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


@pytest.hookimpl(tryfirst=True)  # before xdist looks at groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("slow"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        items[:] = [item for item in items if item not in slow]
        config.hook.pytest_deselected(items=slow)
    for item in items:
        if "cluster" in item.fixturenames:  # one process has it
            item.add_marker(pytest.mark.xdist_group("cluster"))


def pytest_sessionfinish() -> None:
    shutil.rmtree(RAY_FOLDER, ignore_errors=True)


@pytest.fixture(scope="session")
def profile() -> ModelProfile:
    return describe_model(ModelConfig())


@pytest.fixture(scope="session")
def pipeline() -> DiffusionPipeline:
    pipeline = load_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def small() -> DiffusionPipeline:
    return small_stable_diffusion()


@pytest.fixture
def engine(small: DiffusionPipeline) -> Iterator[DenoiseEngine]:
    with DenoiseEngine(small) as engine:
        yield engine


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A copy of the bundled model that a test may spoil."""
    return Path(shutil.copytree(BUNDLED_MODELS / "postcard", tmp_path / "model"))


class Cluster:
    """A Ray head of its own in a process of its own, addressed by `address` and `dashboard`.

    Prometheus would find it at `metrics`, and its log files are in the folder `logs`.
    """

    def __init__(self, num_cpus: int = 16) -> None:
        """More CPUs than there are: replicas, engines and drivers stand side by side."""
        gcs, dashboard, metrics = free_port(), free_port(), free_port()
        self.address = f"127.0.0.1:{gcs}"
        self.dashboard = f"http://127.0.0.1:{dashboard}"
        self.metrics = f"http://127.0.0.1:{metrics}/metrics"
        self._folder = Path(tempfile.mkdtemp(prefix="c", dir=RAY_FOLDER))
        self.logs = self._folder / "session_latest" / "logs"
        options = {
            "port": gcs,
            "node-ip-address": "127.0.0.1",
            "dashboard-port": dashboard,
            "metrics-export-port": metrics,
            "dashboard-agent-listen-port": free_port(),
            "ray-client-server-port": free_port(),
            "temp-dir": self._folder,
            "num-cpus": num_cpus,
        }
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._start("--head", *(f"--{name}={value}" for name, value in options.items()))
        self._wait_for_dashboard()

    def add_node(self, num_cpus: int) -> Callable[[], None]:
        """Another machine, as far as Ray can tell; returns what ends it as a power cut does."""
        node = self._start(f"--address={self.address}", f"--num-cpus={num_cpus}")

        def kill() -> None:
            for process in [*psutil.Process(node.pid).children(recursive=True), node]:
                process.kill()
            node.wait()

        return kill

    def _start(self, *options: str) -> subprocess.Popen[bytes]:
        """Return when it is up; of two that start at once, one may never be."""
        log = self._folder / f"{len(self._nodes)}.log"
        with log.open("w") as output:
            node = subprocess.Popen(
                [BIN / "ray", "start", "--block", *options],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Jobs find `python` on the head's path, as where an environment is activated.
                env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"},
            )
        self._nodes.append(node)
        for _ in range(600):
            assert node.poll() is None, log.read_text()
            if "Ray runtime started" in log.read_text():
                return node
            time.sleep(0.1)
        raise AssertionError(log.read_text())

    def environment(self) -> dict[str, str]:
        """For subprocesses that are to use this cluster."""
        return os.environ | {"RAY_ADDRESS": self.address, "RAY_API_SERVER_ADDRESS": self.dashboard}

    def stop(self) -> None:
        for process in reversed(self._nodes):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)

    def _wait_for_dashboard(self) -> None:
        host, port = self.dashboard.removeprefix("http://").split(":")
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex((host, int(port))) == 0:
                    return
            time.sleep(0.1)
        raise AssertionError("the dashboard did not come up")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    started = Cluster()
    yield started
    started.stop()
