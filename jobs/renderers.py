"""Who renders a run: engines of its own, by Ray Data, or a service that runs already."""

import asyncio
import logging
import math
import os
import signal
import threading
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Protocol, TypeVar

import ray
from ray.actor import ActorHandle
from ray.data import DataContext
from ray.exceptions import RayActorError, RayError, RayTaskError

from batch.estimate import Estimate, estimate, estimate_on_engines
from batch.ledger import Ledger
from batch.output_folder import LocationUnusable, OutputFolder
from batch.plan import Plan
from batch.render import (
    CountedLedger,
    ImageRenderer,
    Job,
    Workers,
    render_here,
    render_shards,
    start_ledger,
)
from batch.service import ServiceUnusable, Unreachable, connect
from batch.service_renderer import MAX_UNDER_WAY, ServiceRenderer
from jobs.arguments import UsageError
from jobs.progress import Progress
from shared.config import EngineConfig, ModelConfig
from shared.errors import DeadlineExceeded, ModelUnavailable, Overloaded
from shared.model_names import find_folder
from shared.model_profile import ServedModel
from shared.watchdog import start_watchdog

ResultT = TypeVar("ResultT")


class Renderers(Protocol):
    served: ServedModel

    def told(self) -> str:
        """Where they render, in a few words."""

    def render(
        self, pending: Mapping[str, int], plan: Plan, output: OutputFolder, *, retry_failed: bool
    ) -> None:
        """Render and commit these shards of so many pictures each, and tell how far it is."""

    def estimate(self, plan: Plan, output: OutputFolder) -> Estimate:
        """What a plan will take, from a sample of it."""


class Engines:
    """As many as `workers` says of the cluster's nodes."""

    def __init__(
        self,
        model: ModelConfig,
        engine: EngineConfig,
        asked: Mapping[str, float | None],
    ) -> None:
        """Raises ModelUnavailable. `asked` are the fields of Workers that are not left to us."""
        find_folder(model)
        from shared.model_files import describe_model  # not in a job through a service:
        from shared.pipeline import check_fits  # these load torch and diffusers

        if _is_local():
            check_fits(model)
        self.served = ServedModel.configured(describe_model(model), model, engine)
        self._make = partial(_watched_renderer, model, engine)
        self._asked = {name: value for name, value in asked.items() if value is not None}

    def told(self) -> str:
        workers = self._workers()
        return (
            f"on {workers.concurrency} engine(s) with {workers.num_cpus:g} CPUs and "
            f"{workers.num_gpus:g} GPUs each"
        )

    def render(
        self, pending: Mapping[str, int], plan: Plan, output: OutputFolder, *, retry_failed: bool
    ) -> None:
        workers, ledger = self._workers(), start_ledger()
        job = Job(output.location, plan.settings.format, self._make, retry_failed)
        with Progress(sum(pending.values()), partial(_counts, ledger)).shown(), _telling_why():
            for _ in render_shards([*pending], job, workers, ledger):
                pass

    def estimate(self, plan: Plan, output: OutputFolder) -> Estimate:
        with _telling_why():
            return estimate_on_engines(plan, output, self._make, self._workers())

    def _workers(self) -> Workers:
        """An engine per GPU; without GPUs one per node, on all its CPUs.

        One that waits where there are no nodes yet: those that scale come for it.
        """
        start_ray()
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        num_gpus = sum(int(node.get("GPU", 0)) for node in nodes)
        cpus = [node["CPU"] for node in nodes if node.get("CPU")]
        default = (
            Workers(concurrency=num_gpus, num_cpus=1, num_gpus=1)
            if num_gpus
            else Workers(concurrency=len(cpus) or 1, num_cpus=min(cpus, default=1), num_gpus=0)
        )
        workers = default.model_copy(update=self._asked)
        if _is_local():
            _check_room(workers, max(cpus, default=0), num_gpus)
        return workers


def _is_local() -> bool:
    """Whether this machine renders, as no cluster is named."""
    return os.environ.get("RAY_ADDRESS", "local") == "local"


def _check_room(workers: Workers, num_cpus: float, num_gpus: float) -> None:
    """Raise UsageError for an engine that this machine has never room for: it would wait."""
    if workers.num_cpus > num_cpus:
        raise UsageError(f"--num-cpus {workers.num_cpus:g}: this machine has {num_cpus:g}")
    if workers.num_gpus > num_gpus:
        raise UsageError(f"--num-gpus {workers.num_gpus:g}: this machine has {num_gpus:g}")


class RunningService:
    """Asked by this process: it needs no engine, and no Ray where it asks over HTTP."""

    def __init__(self, where: str, model: str | None, token: str | None) -> None:
        """Raises ServiceUnusable."""
        if "://" not in where:
            _join_cluster_of(where)
        self._where = where
        self._loop = _Loop()
        self._connect = partial(connect, where, model, token)
        try:
            self.served = self._loop.run(self._connect().served())
        except Unreachable as error:
            raise ServiceUnusable(f"cannot reach {where}: {error}") from None
        except (Overloaded, DeadlineExceeded):
            raise ServiceUnusable(f"{where} is too busy to say what it serves") from None

    def told(self) -> str:
        return f"by {self._where}, where it has nothing else to do"

    def render(
        self, pending: Mapping[str, int], plan: Plan, output: OutputFolder, *, retry_failed: bool
    ) -> None:
        job = Job(
            output.location,
            plan.settings.format,
            self._make,
            retry_failed,
            images_at_once=2 * MAX_UNDER_WAY,
            shards_at_once=math.ceil(MAX_UNDER_WAY / plan.settings.shard_rows) + 1,
        )
        ledger = CountedLedger() if ray.is_initialized() else Ledger()

        def counts() -> Mapping[str, int]:
            return self._loop.run(ledger.counts())

        progress = Progress(
            sum(pending.values()), counts, at_first="waiting for the first pictures"
        )
        with progress.shown():
            self._loop.run(render_here([*pending], job, ledger))

    def estimate(self, plan: Plan, output: OutputFolder) -> Estimate:
        return self._loop.run(estimate(plan, output, self._make()))

    def _make(self) -> ServiceRenderer:
        return ServiceRenderer(self._connect(), self.served.profile)


class _Loop:
    """An event loop that runs until the process ends: a handle of Serve hears of changes by it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="service", daemon=True).start()

    def run(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Give its result; if this thread is interrupted, it is given up."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()


def _join_cluster_of(application: str) -> None:
    if any(sign in application for sign in ":/"):
        raise ServiceUnusable(f"{application} is no address: they begin with http:// or https://")
    try:
        start_ray(default="auto")
    except NoCluster:
        raise ServiceUnusable(
            f"there is no Ray cluster to find the Serve application {application!r} in: set "
            "RAY_ADDRESS, or give the service's address, as in http://localhost:8000"
        ) from None


def end_in_order() -> None:
    """Have `ray job stop` and a plain kill end the job as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


class NoCluster(Exception):
    """Where RAY_ADDRESS says that there is one."""


def start_ray(default: str = "local") -> None:
    """Join the cluster of RAY_ADDRESS, or start one on this machine, without Ray's own noise.

    Raises NoCluster.
    """
    if ray.is_initialized():
        return
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    address = os.environ.get("RAY_ADDRESS", default)
    try:
        ray.init(
            address=address,
            include_dashboard=False,  # docs/decisions.md: it takes as much as all of Ray beside it
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except (ConnectionError, ValueError) as error:
        if address == "local":
            raise
        raise NoCluster(
            f"there is no Ray cluster at RAY_ADDRESS={address}: start one with `ray start --head`, "
            "or unset it"
        ) from error
    end_in_order()  # Ray's own way with the signal is a page of addresses
    # A line of our own every few seconds says more, and reads well in a job's log.
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    DataContext.get_current().enable_progress_bars = False


def _watched_renderer(model: ModelConfig, engine: EngineConfig) -> ImageRenderer:
    """For a process of Ray's, which starts another one where this one ends itself."""
    from shared.renderer import Renderer  # by its process alone: it loads torch

    renderer = Renderer(model, engine)
    start_watchdog(renderer.check_alive)
    return renderer


@contextmanager
def _telling_why() -> Iterator[None]:
    """Raise what an engine raised, or what kept it from starting."""
    try:
        yield
    except RayActorError as error:
        for kind in (ModelUnavailable, LocationUnusable):
            _, name, reason = str(error).rpartition(f"{kind.__name__}: ")
            if name:
                raise kind(reason.strip()) from None
        raise
    except RayTaskError as error:  # what it says itself is its traceback
        raise error.cause from None


def _counts(ledger: ActorHandle) -> Mapping[str, int] | None:
    with suppress(RayError):  # without it the job goes on, and only its lines are missing
        counts: Mapping[str, int] = ray.get(ledger.counts.remote())
        return counts
    return None
