"""Render: a Ray Data job over the shards that are not committed yet, on a pool of engine actors."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.data import ActorPoolStrategy

from batch.output_folder import OutputFolder
from batch.plan import Plan, read_shard
from batch.records import (
    METADATA_SCHEMA,
    PlannedImage,
    beside,
    failed_row,
    kept_columns,
    planned_images,
    rendered_row,
    to_table,
)
from shared.config import EngineConfig, ModelConfig, Settings
from shared.cpu_workers import CPU_WORKER
from shared.errors import EngineDead
from shared.renderer import Renderer

# The next shard already feeds the engine while the last pictures of one are finishing.
_SHARDS_AT_ONCE = 2


class Workers(Settings):
    """How many engines render, and what Ray reserves for each. CPUs are torch's threads too."""

    concurrency: int
    num_cpus: float
    num_gpus: float


@ray.remote(num_cpus=0)
class ImageCounter:
    """Counts pictures as they are finished, for whoever waits; a shard takes much longer."""

    def __init__(self) -> None:
        self._counts = Counter[str]()

    def add(self, status: str) -> None:
        self._counts[status] += 1

    def counts(self) -> Counter[str]:
        """Pictures by status, "ok" or "error"."""
        return self._counts


def metadata_file(shard: str) -> str:
    return f"metadata/{shard}.parquet"


def pending_shards(plan: Plan, output: OutputFolder) -> list[str]:
    """The shards that are not committed."""
    committed = set(output.list("metadata"))
    return [shard for shard in plan.shards if f"{shard}.parquet" not in committed]


def render_shards(
    shards: list[str],
    output: OutputFolder,
    model: ModelConfig,
    workers: Workers,
    counter: ActorHandle,
) -> None:
    """Render and commit `shards`, telling `counter` of each picture."""
    committed = ray.data.from_items(
        [{"shard": shard} for shard in shards], override_num_blocks=len(shards)
    ).map_batches(
        ShardRenderer,
        batch_size=1,
        fn_constructor_args=(output.location, model, counter),
        num_cpus=workers.num_cpus,
        num_gpus=workers.num_gpus,
        runtime_env={"env_vars": CPU_WORKER},
        compute=ActorPoolStrategy(
            size=workers.concurrency,
            max_tasks_in_flight_per_actor=2 * _SHARDS_AT_ONCE,
            max_concurrent_calls_per_actor=_SHARDS_AT_ONCE,
        ),
    )
    for _ in committed.iter_rows():
        pass


class ShardRenderer:
    """One engine. As a Ray Data actor it takes batches of one shard name each."""

    def __init__(self, output: str, model: ModelConfig, counter: ActorHandle | None = None) -> None:
        engine = EngineConfig()
        self._counter = counter
        self._output = OutputFolder(output)
        self._renderer = Renderer(model, engine)
        # Enough that the engine never waits for a picture to be stored; the rest of the shards
        # stays out of memory until then.
        self._room = asyncio.Semaphore(2 * engine.max_in_flight)

    async def __call__(self, batch: dict[str, np.ndarray]) -> AsyncIterator[dict[str, Any]]:
        shard = str(batch["shard"][0])
        await self.render(shard)
        yield {"shard": [shard]}

    async def render(self, shard: str) -> None:
        """Store the shard's pictures, then its metadata in one write: that commits it."""
        plan = await asyncio.to_thread(read_shard, self._output, shard)
        images = planned_images(plan)
        rows = await asyncio.gather(*(self._render_image(shard, image) for image in images))
        table = beside(to_table(rows, METADATA_SCHEMA), kept_columns(plan))
        await asyncio.to_thread(self._output.write_table, metadata_file(shard), table)

    async def _render_image(self, shard: str, planned: PlannedImage) -> dict[str, Any]:
        async with self._room:
            row = await self._metadata(shard, planned)
        if self._counter is not None:
            self._counter.add.remote(row["status"])
        return row

    async def _metadata(self, shard: str, planned: PlannedImage) -> dict[str, Any]:
        try:
            image = await self._renderer.render(planned.request)
        except EngineDead:
            raise  # nothing more will come of this actor: the job ends, and can be run again
        except Exception as error:
            return failed_row(planned, self._renderer.profile, error)
        file_name = f"{shard}/{planned.image_id}.{image.format}"
        await asyncio.to_thread(self._output.write, f"images/{file_name}", image.data)
        return rendered_row(planned, image, file_name)
