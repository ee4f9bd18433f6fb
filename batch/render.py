"""Render: a Ray Data job over the shards that are not committed yet, on a pool of engine actors."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import ray
from ray.actor import ActorHandle
from ray.data import ActorPoolStrategy, DataContext
from ray.util import metrics
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from batch.image_store import Format, ShardImages, picture_name, shard_images
from batch.ledger import Assignment, Ledger, ProcessDied
from batch.output_folder import OutputFolder
from batch.plan import Plan, shard_file
from batch.records import (
    METADATA_SCHEMA,
    PlannedImage,
    beside,
    dataset_rows,
    failed_row,
    kept_columns,
    planned_images,
    rendered_row,
    to_table,
)
from shared.config import EngineConfig, Settings
from shared.cpu_workers import CPU_WORKER
from shared.errors import EngineDead
from shared.model_profile import ModelProfile
from shared.request import CanonicalRequest, GeneratedImage
from shared.watchdog import end_process

# Of one engine: the next ones feed it while the last pictures of a shard are finishing.
SHARDS_AT_ONCE = 5
# Enough that the engine never waits for a picture to be stored; the rest of the shards stays out of
# memory until then.
_IMAGES_AT_ONCE = 2 * EngineConfig().max_in_flight
# Seconds between two tellings of how many pictures are done.
_NEWS_EVERY_S = 1.0
# Shards that Ray Data hands out at once are a block; it keeps some 8 kB for each.
_MAX_BLOCKS = 2000


class CannotRender(RuntimeError):
    """Whoever renders cannot go on, whatever the picture; the message says why."""


class ImageRenderer(Protocol):
    """What renders: `shared.renderer.Renderer`, or another of its kind."""

    @property
    def profile(self) -> ModelProfile: ...

    async def render(self, request: CanonicalRequest) -> GeneratedImage: ...


class Workers(Settings):
    """How many engines render, and what Ray reserves for each. CPUs are torch's threads too."""

    concurrency: int
    num_cpus: float
    num_gpus: float


@dataclass(frozen=True)
class Job:
    """What every engine needs to know. `make_renderer` is called where it is to render.

    What it gives works on so many pictures at once, with those that are being stored, and shards.
    """

    output: str
    format: Format
    make_renderer: Callable[[], ImageRenderer]
    retry_failed: bool = False
    images_at_once: int = _IMAGES_AT_ONCE
    shards_at_once: int = SHARDS_AT_ONCE


def metadata_file(shard: str) -> str:
    return f"metadata/{shard}.parquet"


def pending_shards(
    plan: Plan, output: OutputFolder, *, retry_failed: bool = False
) -> dict[str, int]:
    """The shards to render, and how many pictures of each: those that are not committed.

    With `retry_failed` also those of which pictures failed.
    """
    files = set(output.list("metadata"))
    sizes = zip(plan.shards, plan.shard_sizes, strict=True)
    pending = {shard: size for shard, size in sizes if f"{shard}.parquet" not in files}
    if retry_failed:
        committed = [shard for shard in plan.shards if shard not in pending]
        tables = output.read_tables([*map(metadata_file, committed)])
        for shard, metadata in zip(committed, tables, strict=True):
            if num_failed := metadata.column("status").to_pylist().count("error"):
                pending[shard] = num_failed
    return pending


def start_ledger() -> ActorHandle:
    """On the driver's node: what ends it ends the job too."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    ledger = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Ledger)
    return ledger.options(scheduling_strategy=here).remote()


def render_shards(
    shards: list[str], job: Job, workers: Workers, ledger: ActorHandle
) -> Iterator[str]:
    """Render and commit `shards`; each is told when it is committed."""
    # Loading a model for the first time may take longer than any guess of ours.
    DataContext.get_current().execution_no_progress_timeout_s = -1
    committed = ray.data.from_items(
        [{"shard": shard} for shard in shards], override_num_blocks=min(len(shards), _MAX_BLOCKS)
    ).map_batches(
        _EngineActor,
        batch_size=1,
        fn_constructor_args=(job, ledger),
        num_cpus=workers.num_cpus,
        num_gpus=workers.num_gpus,
        runtime_env={"env_vars": CPU_WORKER},
        compute=ActorPoolStrategy(
            size=workers.concurrency,
            max_tasks_in_flight_per_actor=job.shards_at_once + 1,
            max_concurrent_calls_per_actor=job.shards_at_once,
        ),
    )
    for row in committed.iter_rows():
        yield row["shard"]


async def render_here(shards: list[str], job: Job, ledger: Ledger) -> None:
    """As `render_shards`, by this process, for renderers that only ask others."""
    renderer = ShardRenderer(job, ledger)
    left = iter(shards)

    async def keep_rendering() -> None:
        for shard in left:
            await renderer.render(shard)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(job.shards_at_once):
                group.create_task(keep_rendering())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


class _DoneImages:
    """What Prometheus sees of a job: its pictures that are done, told by processes of a cluster."""

    def __init__(self) -> None:
        self._images = metrics.Counter(
            "sd_bulk_images", "Pictures of a job that are done.", ("status", "job_id")
        )
        self._job = {"job_id": ray.get_runtime_context().get_job_id()}

    def add(self, statuses: Mapping[str, int]) -> None:
        for status, number in statuses.items():
            self._images.inc(number, {"status": status} | self._job)


class CountedLedger(Ledger):
    """The ledger of a job whose own process renders, in a cluster: Prometheus is told as well."""

    def __init__(self) -> None:
        super().__init__()
        self._done = _DoneImages()

    async def count(self, statuses: Mapping[str, int]) -> None:
        await super().count(statuses)
        self._done.add(statuses)


class _RemoteLedger:
    """The job's ledger, for those who render in other processes. Prometheus is told as well."""

    def __init__(self, actor: ActorHandle) -> None:
        self._actor = actor
        self._done = _DoneImages()
        self._untold = Counter[str]()
        self._told_at = time.monotonic()

    async def count(self, statuses: Mapping[str, int]) -> None:
        """Told now and then: a call for each picture would be the dearest part of a cheap one."""
        self._untold.update(statuses)
        if time.monotonic() - self._told_at > _NEWS_EVERY_S:
            self._tell()

    async def begin(self, shard: str, num_rows: int) -> Assignment:
        assignment: Assignment = await self._actor.begin.remote(shard, num_rows)
        return assignment

    async def enter(self, shard: str, group: int) -> None:
        await self._actor.enter.remote(shard, group)

    async def leave(self, shard: str) -> None:
        await self._actor.leave.remote(shard)

    async def end(self, shard: str) -> None:
        self._tell()
        await self._actor.end.remote(shard)

    def _tell(self) -> None:
        self._actor.count.remote(dict(self._untold))  # nobody waits for it
        self._done.add(self._untold)
        self._untold.clear()
        self._told_at = time.monotonic()


class _EngineActor:
    """A ShardRenderer for Ray Data: it takes batches of one shard name each."""

    def __init__(self, job: Job, ledger: ActorHandle) -> None:
        self._renderer = ShardRenderer(job, _RemoteLedger(ledger))

    async def __call__(self, batch: dict[str, np.ndarray]) -> AsyncIterator[dict[str, Any]]:
        shard = str(batch["shard"][0])
        try:
            await self._renderer.render(shard)
        except EngineDead:
            end_process()
        yield {"shard": [shard]}


class ShardRenderer:
    """One engine, that renders shards and commits them."""

    def __init__(self, job: Job, ledger: Ledger | _RemoteLedger) -> None:
        self._job = job
        self._ledger = ledger
        self._output = OutputFolder(job.output)
        self._renderer = job.make_renderer()
        self._engine = _Sharing(job.shards_at_once)
        self._room = asyncio.Semaphore(job.images_at_once)

    async def render(self, shard: str) -> None:
        """Store the shard's pictures, then its metadata in one write: that commits it."""
        metadata = await asyncio.to_thread(self._output.find_table, metadata_file(shard))
        if metadata is not None and not self._job.retry_failed:
            return  # by another run at the same time, or a try whose end was not heard
        plan = await asyncio.to_thread(self._output.read_table, shard_file(shard))
        rendering = _Shard(
            planned_images(plan), shard_images(self._output, shard, self._job.format)
        )
        if metadata is not None:
            await asyncio.to_thread(rendering.keep, metadata)
        assignment = await self._ledger.begin(shard, len(rendering.images))
        for row in assignment.given_up:
            await self._fail(rendering, row, ProcessDied())
        async with self._engine.alone() if assignment.is_suspect else self._engine.shared():
            for index, group in enumerate(assignment.groups):
                await self._ledger.enter(shard, index)
                await asyncio.gather(*(self._render_image(rendering, row) for row in group))
            await self._ledger.leave(shard)
        table = beside(to_table(rendering.rows, METADATA_SCHEMA), kept_columns(plan))
        await asyncio.to_thread(self._commit, shard, rendering.stored, table)
        await self._ledger.end(shard)

    def _commit(self, shard: str, images: ShardImages, metadata: pa.Table) -> None:
        images.finish(dataset_rows(metadata))
        self._output.write_table(metadata_file(shard), metadata)

    async def _render_image(self, shard: "_Shard", row: int) -> None:
        if shard.rows[row]:
            return
        async with self._room:
            planned = shard.images[row]
            try:
                image = await self._renderer.render(planned.request)
            except (CannotRender, EngineDead):
                raise
            except Exception as error:
                await self._fail(shard, row, error)
                return
            name = f"{planned.image_id}.{image.format}"
            file_name = await asyncio.to_thread(shard.stored.add, name, image.data)
            await self._finish(shard, row, rendered_row(planned, image, file_name))

    async def _fail(self, shard: "_Shard", row: int, error: Exception) -> None:
        profile = self._renderer.profile
        await self._finish(shard, row, failed_row(shard.images[row], profile, error))

    async def _finish(self, shard: "_Shard", row: int, metadata: dict[str, Any]) -> None:
        shard.rows[row] = metadata
        await self._ledger.count({metadata["status"]: 1})


class _Shard:
    """A shard on its way: what it is to hold, and the metadata of what it holds already."""

    def __init__(self, images: list[PlannedImage], stored: ShardImages) -> None:
        self.images = images
        self.stored = stored
        self.rows: list[dict[str, Any]] = [{} for _ in images]

    def keep(self, metadata: pa.Table) -> None:
        """Keep the pictures that were rendered before."""
        for index, row in enumerate(metadata.select(METADATA_SCHEMA.names).to_pylist()):
            if row["status"] == "ok":
                self.stored.keep(picture_name(row["file_name"]))
                self.rows[index] = row


class _Sharing:
    """So many may use an engine together, or one alone."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._places = asyncio.Semaphore(number)
        self._one_waits = asyncio.Lock()

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        async with self._places:
            yield

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        taken = 0
        try:
            async with self._one_waits:
                while taken < self._number:
                    await self._places.acquire()
                    taken += 1
            yield
        finally:
            for _ in range(taken):
                self._places.release()
