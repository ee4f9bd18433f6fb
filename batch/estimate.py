"""Estimate: how long a planned run will take and how large it will be, from a sample of it."""

import asyncio
import time
from collections.abc import Callable

import pyarrow.compute as pc
import ray

from batch.output_folder import OutputFolder
from batch.plan import Plan, shard_file
from batch.records import planned_images
from batch.render import CannotRender, ImageRenderer, Workers
from shared.config import Settings
from shared.cpu_workers import CPU_WORKER
from shared.errors import EngineDead
from shared.request import CanonicalRequest

# Nearly as fast a picture as the run, where these are small, and soon done where they are large.
_SAMPLE = 16


class Estimate(Settings):
    """Of a whole run on all its engines; without the time that loading the model takes."""

    num_sampled: int
    sample_s: float
    render_s: float
    num_bytes: int


def estimate_on_engines(
    plan: Plan,
    output: OutputFolder,
    make_renderer: Callable[[], ImageRenderer],
    workers: Workers,
) -> Estimate:
    """Render some of the pictures on one engine, and draw from them on all."""
    sample = _sample(plan, output)
    seconds, num_bytes = ray.get(
        ray.remote(_render_there)
        .options(
            num_cpus=workers.num_cpus,
            num_gpus=workers.num_gpus,
            runtime_env={"env_vars": CPU_WORKER},
        )
        .remote(make_renderer, sample)
    )
    engines = min(workers.concurrency, plan.num_shards)
    return _extrapolated(plan, output, sample, seconds, num_bytes, engines)


async def estimate(plan: Plan, output: OutputFolder, renderer: ImageRenderer) -> Estimate:
    """The same with what renders all of them."""
    sample = _sample(plan, output)
    seconds, num_bytes = await _render(renderer, sample)
    return _extrapolated(plan, output, sample, seconds, num_bytes)


def _extrapolated(
    plan: Plan,
    output: OutputFolder,
    sample: list[CanonicalRequest],
    seconds: float,
    num_bytes: int,
    engines: int = 1,
) -> Estimate:
    pixels, pixel_steps = _work(plan, output)
    return Estimate(
        num_sampled=len(sample),
        sample_s=seconds,
        render_s=seconds * pixel_steps / sum(each.pixel_steps for each in sample) / engines,
        num_bytes=round(num_bytes * pixels / sum(each.width * each.height for each in sample)),
    )


def _sample(plan: Plan, output: OutputFolder) -> list[CanonicalRequest]:
    """From shards that are evenly spread over the run."""
    shards = plan.shards[:: max(1, plan.num_shards // _SAMPLE)][:_SAMPLE]
    each = -(-_SAMPLE // len(shards))
    tables = output.read_tables([*map(shard_file, shards)])
    images = [image for table in tables for image in planned_images(table.slice(0, each))]
    return [image.request for image in images][:_SAMPLE]


def _work(plan: Plan, output: OutputFolder) -> tuple[int, int]:
    """Pixels, and pixels times steps, of all pictures."""
    pixels = pixel_steps = 0
    for table in output.read_tables([*map(shard_file, plan.shards)]):
        area = pc.multiply(table["width"].cast("int64"), table["height"].cast("int64"))
        pixels += pc.sum(area).as_py()
        pixel_steps += pc.sum(pc.multiply(area, table["num_inference_steps"])).as_py()
    return pixels, pixel_steps


def _render_there(
    make_renderer: Callable[[], ImageRenderer], requests: list[CanonicalRequest]
) -> tuple[float, int]:
    return asyncio.run(_render(make_renderer(), requests))


async def _render(renderer: ImageRenderer, requests: list[CanonicalRequest]) -> tuple[float, int]:
    """Seconds and bytes that `requests` take, rendered together by what is warm."""
    await _num_bytes(renderer, requests[0])
    started = time.perf_counter()
    made = await asyncio.gather(*(_num_bytes(renderer, each) for each in requests))
    seconds = time.perf_counter() - started
    sizes = [each for each in made if each is not None]
    if not sizes:
        raise CannotRender(f"none of the {len(made)} pictures of a sample could be rendered")
    return seconds, sum(sizes) * len(made) // len(sizes)


async def _num_bytes(renderer: ImageRenderer, request: CanonicalRequest) -> int | None:
    """Of its picture; None where it fails, which in a run would be a row of its own."""
    try:
        return len((await renderer.render(request)).data)
    except (CannotRender, EngineDead):
        raise
    except Exception:
        return None
