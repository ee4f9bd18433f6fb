"""A fault drill: every fault that an alert is for, on a real service before a real Prometheus.

Prometheus (apt-get install prometheus) has the rules of deploy/prometheus, with every duration a
fifth of what it is. A fault lasts until its alert fires. With --plot, the panels of the dashboard
are drawn as they were meanwhile. Takes some 15 minutes.
"""

import argparse
import asyncio
import ctypes
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Ray's is ten seconds.
os.environ["RAY_metrics_report_interval_ms"] = "2000"  # noqa: SIM112

import httpx
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import yaml
from local_service import ROOM, LocalService, local_service
from ports import free_port

from shared.model_names import BUNDLED_MODELS

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
FASTER = 5
PATIENCE_S = 300.0
SMALL = {"width": 64, "height": 64, "num_inference_steps": 4}
LONG = {"width": 640, "height": 640, "num_inference_steps": 50}
# LCM takes 50 steps at most, as only its pipeline knows.
FAILING = {"width": 64, "height": 64, "num_inference_steps": 51}


@dataclass(frozen=True)
class Drill:
    service: LocalService
    model: Path

    def deploy(self) -> None:
        # A queue that is soon full, and forwards that are larger than memory.
        engine = {"max_queued": 24, "max_pixels_per_forward": 2**24}
        self.service.deploy(model=str(self.model), engine=engine)

    async def generator(self) -> psutil.Process:
        while not (found := self.service.processes("Generator")):
            await asyncio.sleep(0.5)
        return found[0]

    @asynccontextmanager
    async def callers(
        self, number: int, request: dict[str, Any], timeout_s: float | None = None
    ) -> AsyncIterator[None]:
        """So many who ask again and again, and leave at the end."""
        headers = {} if timeout_s is None else {"X-Timeout-Seconds": str(timeout_s)}

        async def keep_asking(client: httpx.AsyncClient) -> None:
            while True:
                try:
                    answer = await client.post("/imagine", json={"prompt": "a"} | request)
                    good = answer.status_code == 200
                except httpx.TransportError:
                    good = False
                if not good:
                    await asyncio.sleep(0.2)

        async with httpx.AsyncClient(
            base_url=self.service.url, headers=headers, timeout=None
        ) as client:
            tasks = [asyncio.create_task(keep_asking(client)) for _ in range(number)]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)


Fault = Callable[[Drill], AbstractAsyncContextManager[None]]


def load(number: int, request: dict[str, Any], timeout_s: float | None = None) -> Fault:
    return lambda drill: drill.callers(number, request, timeout_s)


@asynccontextmanager
async def deaths(drill: Drill) -> AsyncIterator[None]:
    for _ in range(3):
        generator = await drill.generator()
        generator.kill()
        while await drill.generator() == generator:
            await asyncio.sleep(0.5)
        await asyncio.sleep(15)
    yield


@asynccontextmanager
async def no_checkpoint(drill: Drill) -> AsyncIterator[None]:
    """The generator is gone, and the next ones do not find what they are to load."""
    generator, aside = await drill.generator(), drill.model.with_name("aside")
    drill.model.rename(aside)
    generator.kill()
    try:
        yield
    finally:
        aside.rename(drill.model)


@asynccontextmanager
async def bad_configuration(drill: Drill) -> AsyncIterator[None]:
    drill.service.ask_for(model="/no/such/model")
    try:
        yield
    finally:
        drill.deploy()


@asynccontextmanager
async def no_memory(drill: Drill) -> AsyncIterator[None]:
    """The generator gets little more than it has."""
    generator = await drill.generator()
    limit = generator.memory_info().vms + 800 * 2**20
    resource.prlimit(generator.pid, resource.RLIMIT_AS, (limit, limit))
    async with drill.callers(16, LONG):
        try:
            yield
        finally:
            generator.kill()


@asynccontextmanager
async def hang(drill: Drill) -> AsyncIterator[None]:
    """A thread of a forward is stopped: to the engine, that is a device that does not answer."""
    async with drill.callers(1, LONG):
        await asyncio.sleep(5)
        generator = await drill.generator()
        thread = await busiest_thread(generator)
        ptrace(_PTRACE_SEIZE, thread)
        ptrace(_PTRACE_INTERRUPT, thread)
        try:
            yield
        finally:
            generator.kill()
            os.waitpid(thread, _ALL_CHILDREN)


@asynccontextmanager
async def no_agent(drill: Drill) -> AsyncIterator[None]:
    """Ray's process that Prometheus asks stands still."""
    (agent,) = (
        process
        for process in psutil.Process().children(recursive=True)
        if "ray::DashboardAgent" in process.as_dict(["cmdline"], ad_value=[])["cmdline"]
    )
    agent.suspend()
    try:
        yield
    finally:
        agent.resume()


@asynccontextmanager
async def failing_job(drill: Drill) -> AsyncIterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        steps = [20, FAILING["num_inference_steps"]] * 500
        prompts = pa.table({"prompt": ["a"] * len(steps), "num_inference_steps": steps})
        pq.write_table(prompts, f"{folder}/prompts.parquet")
        command = [sys.executable, "-m", "jobs.render", "--model", drill.model]
        command += ["--input", f"{folder}/prompts.parquet", "--output", f"{folder}/out"]
        command += ["--concurrency", "1", "--num-cpus", "2"]  # beside the generator
        address = ray.get_runtime_context().gcs_address
        job = subprocess.Popen(
            command, env=os.environ | {"RAY_ADDRESS": address}, stdout=subprocess.DEVNULL
        )
        try:
            yield
        finally:
            job.terminate()
            job.wait()


# By the alert that it is for.
FAULTS: dict[str, Fault] = {
    "GeneratorsDie": deaths,
    "DeployFailed": bad_configuration,
    "RequestsFail": load(2, FAILING),
    "RequestsTooLate": load(2, LONG, timeout_s=0.5),
    "BulkImagesFail": failing_job,
    "RequestsRefused": load(50, SMALL),
    "BacklogTooLong": load(40, LONG),
    "GeneratorStalled": hang,
    "ServiceUnhealthy": no_checkpoint,
    "ForwardsCutInTwo": no_memory,
    "MetricsMissing": no_agent,
}

_PTRACE_SEIZE, _PTRACE_INTERRUPT, _ALL_CHILDREN = 0x4206, 0x4207, 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def ptrace(request: int, thread: int) -> None:
    if _libc.ptrace(request, thread, None, None):
        raise OSError(ctypes.get_errno(), "ptrace")


async def busiest_thread(process: psutil.Process) -> int:
    """Of those that compute, the youngest: it holds no lock of Python's, as the eldest may."""
    before = {thread.id: thread.user_time for thread in process.threads()}
    await asyncio.sleep(2)
    return max(
        thread.id
        for thread in process.threads()
        if thread.user_time - before.get(thread.id, thread.user_time) > 0.5
    )


class Prometheus:
    """The real one, with our rules, before the Ray of this process."""

    def __init__(self, folder: Path) -> None:
        for name in ("alerts.yaml", "prometheus.yaml"):
            (folder / name).write_text(faster((DEPLOY / "prometheus" / name).read_text()))
        config = yaml.safe_load((folder / "prometheus.yaml").read_text())
        (node,) = ray.nodes()
        target = f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"
        (job,) = config["scrape_configs"]
        del job["file_sd_configs"]  # written by Ray's dashboard, which is left out here
        job["static_configs"] = [{"targets": [target]}]
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        address = f"127.0.0.1:{free_port()}"
        self._api = f"http://{address}/api/v1"
        self.process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yaml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            stderr=(folder / "log").open("w"),
        )

    def firing(self) -> set[str]:
        try:
            alerts = httpx.get(f"{self._api}/alerts").json()["data"]["alerts"]
        except httpx.TransportError:  # it is starting
            return set()
        return {each["labels"]["alertname"] for each in alerts if each["state"] == "firing"}

    def series(self, query: str, start: float, end: float) -> list[dict[str, Any]]:
        arguments = {"query": query, "start": start, "end": end, "step": 5}
        answer = httpx.get(f"{self._api}/query_range", params=arguments).json()
        if answer["status"] != "success":
            raise ValueError(f"{query}: {answer['error']}")
        series: list[dict[str, Any]] = answer["data"]["result"]
        return series


def faster(text: str) -> str:
    """Its durations, and not the numbers that something is compared with."""

    def shorter(match: re.Match[str]) -> str:
        seconds = int(match[1]) * {"s": 1, "m": 60}[match[2]]
        return f"{max(1, seconds // FASTER)}s"

    return re.sub(r"\b(\d+)([sm])\b", shorter, text)


@dataclass(frozen=True)
class Fired:
    alert: str
    at: float
    after_s: float
    beside: set[str]


async def run(drill: Drill, prometheus: Prometheus, chosen: list[str]) -> list[Fired]:
    fired = []
    async with drill.callers(1, SMALL):
        await asyncio.sleep(60)  # what is well does not fire
        if prometheus.firing():
            raise AssertionError(f"{prometheus.firing()} fire without a fault")
        for alert in chosen:
            await until(lambda alert=alert: alert not in prometheus.firing())
            began = time.time()
            async with FAULTS[alert](drill):
                await until(lambda alert=alert: alert in prometheus.firing())
                beside = prometheus.firing() - {alert}
            fired.append(Fired(alert, began, time.time() - began, beside))
            also = f", beside {', '.join(sorted(beside))}" if beside else ""
            print(f"{alert:18} fired after {fired[-1].after_s:4.0f} s{also}", flush=True)
        await asyncio.sleep(60)
    return fired


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():
            await asyncio.sleep(1)


def panels() -> list[dict[str, Any]]:
    """Of the dashboard, with its variables filled in."""
    text = (DEPLOY / "grafana" / "dashboard.json").read_text()
    text = text.replace("$application", ".*").replace("$__rate_interval", "5m")
    found: list[dict[str, Any]] = json.loads(faster(text))["panels"]
    return found


def plot(prometheus: Prometheus, fired: list[Fired], start: float, file: Path) -> None:
    from matplotlib import pyplot  # the bench extra; only this needs it

    shown = panels()
    figure, axes = pyplot.subplots(
        math.ceil(len(shown) / 4), 4, figsize=(18, 12), layout="constrained", sharex=True
    )
    end = time.time()
    for panel, axis in zip(shown, axes.flat, strict=False):
        axis.set_title(f"{panel['title']} ({panel['fieldConfig']['defaults']['unit']})", fontsize=9)
        for target in panel["targets"]:
            for each in prometheus.series(target["expr"], start, end):
                name = re.sub("[{}]", "", target["legendFormat"])
                name = each["metric"].get(name, name)
                times, values = zip(*each["values"], strict=True)
                axis.plot(
                    [(at - start) / 60 for at in times], [float(v) for v in values], label=name
                )
        for i, fault in enumerate(fired):
            begin = (fault.at - start) / 60
            axis.axvspan(begin, begin + fault.after_s / 60, color="0.9" if i % 2 else "0.95")
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
        if len(axis.lines) <= 6:
            axis.legend(frameon=False, fontsize=6)
    for fault in fired:
        begin = (fault.at - start) / 60
        axes[-1][0].annotate(fault.alert, (begin, 0), rotation=90, fontsize=6)
    figure.supxlabel("minutes; grey: a fault, until its alert fired")
    figure.savefig(file, dpi=110)


def without_data(prometheus: Prometheus, start: float) -> list[str]:
    """Panels of which a query found nothing in all that time."""
    return [
        panel["title"]
        for panel in panels()
        for target in panel["targets"]
        if not prometheus.series(target["expr"], start, time.time())
    ]


def lcm_model(folder: Path) -> Path:
    """The bundled model with a noise scheduler that fails, if it is asked for too many steps."""
    model = Path(shutil.copytree(BUNDLED_MODELS / "postcard", folder / "model"))
    config = model / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "LCMScheduler"}))
    return model


def main() -> int:
    options = _parse()
    if shutil.which("prometheus") is None:
        print("There is no prometheus here: apt-get install prometheus", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        model = lcm_model(Path(folder))
        with local_service(cluster_cpus=ROOM) as service:
            drill = Drill(service, model)
            drill.deploy()
            prometheus = Prometheus(Path(folder))
            try:
                start = time.time()
                fired = asyncio.run(run(drill, prometheus, options.alerts))
                empty = without_data(prometheus, start)
                if options.plot:
                    plot(prometheus, fired, start, options.plot)
            finally:
                prometheus.process.terminate()
                prometheus.process.wait()
    if empty:
        print(f"Panels without data: {', '.join(empty)}")
    return 1 if empty else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--alerts", nargs="+", choices=FAULTS, default=[*FAULTS])
    parser.add_argument("--plot", type=Path, help="a PNG file to draw it into")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
