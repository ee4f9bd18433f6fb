"""Pictures per second of a bulk job beside those of the bare engine, on the same cores.

python benchmarks/bulk_throughput.py
python benchmarks/bulk_throughput.py -- --concurrency 2 --num-cpus 1    an engine for each core
python benchmarks/bulk_throughput.py --engines 2 -- --concurrency 2 --num-cpus 1    on both sides

The same requests, by turns: `python -m jobs.render` in its steady state (between a tenth and nine
tenths of its pictures), and an engine in a process of its own that has all of them at once, on all
cores; or several such, that share the cores. What stands behind `--` is given to the job. Seconds
are those of a machine clock.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from machine_clock import MachineClock

from batch.output_folder import OutputFolder
from batch.plan import read_plan, shard_file
from batch.records import planned_images
from shared.cpu_workers import CPU_WORKER

STEADY = (0.1, 0.9)
_MEAN_STEPS = 20


class Finished(NamedTuple):
    """A picture of so many steps, at that moment of `perf_counter`."""

    wall_s: float
    steps: int


def main() -> None:
    options = _parse()
    if options.engine_of:
        print(json.dumps(asyncio.run(finished_by_engine(options.engine_of))))
        return
    ratios = []
    with tempfile.TemporaryDirectory(prefix="sdr-", dir="/tmp") as name, MachineClock() as clock:
        folder = Path(name)
        write_prompts(folder / "prompts.parquet", options)
        for number in range(options.rounds):
            output = folder / f"out-{number}"
            by_job = finished_by_job(folder, output, options.job_arguments)
            job = steady_rate(by_job, _MEAN_STEPS, clock)
            engine = sum(
                steady_rate(finished, _MEAN_STEPS, clock)
                for finished in finished_by_engines(output, options.engines)
            )
            ratios.append(job / engine)
            print(
                f"job {job:.2f} pictures/s, engine {engine:.2f}, ratio {ratios[-1]:.3f}", flush=True
            )
    print(f"ratio: {statistics.median(ratios):.3f} (median of {len(ratios)})")


def finished_by_job(folder: Path, output: Path, arguments: Sequence[str]) -> list[Finished]:
    """By one that renders `folder`/prompts.parquet into `output`."""
    command = [sys.executable, "-m", "jobs.render", "--input", str(folder / "prompts.parquet")]
    command += arguments
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": str(folder)}
    subprocess.run(
        [*command, "--output", str(output)], check=True, env=environment, capture_output=True
    )
    tables = [pq.read_table(file) for file in (output / "metadata").glob("*.parquet")]
    rows = pa.concat_tables(tables).select(["finished_at", "num_inference_steps"]).to_pylist()
    return [
        Finished(by_perf_counter(row["finished_at"]), row["num_inference_steps"]) for row in rows
    ]


def by_perf_counter(moment: datetime) -> float:
    """`moment`, which another process noted, as `perf_counter` has it."""
    return moment.timestamp() + time.perf_counter() - time.time()


def finished_by_engines(output: Path, number: int) -> list[list[Finished]]:
    """By so many at once, each of which renders all the pictures."""
    threads = {"OMP_NUM_THREADS": str((os.cpu_count() or 1) // number)}
    engines = [
        subprocess.Popen(
            [sys.executable, __file__, "--engine-of", str(output)],
            env=os.environ | CPU_WORKER | threads,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(number)
    ]
    printed = [json.loads(engine.communicate()[0].splitlines()[-1]) for engine in engines]
    return [[Finished(*each) for each in finished] for finished in printed]


async def finished_by_engine(folder: Path) -> list[Finished]:
    """The pictures that are planned in `folder`, rendered but not kept."""
    from shared.config import EngineConfig, ModelConfig
    from shared.renderer import Renderer

    output = OutputFolder(str(folder))
    plan = read_plan(output)
    assert plan is not None
    tables = output.read_tables([*map(shard_file, plan.shards)])
    images = [each for table in tables for each in planned_images(table)]
    finished: list[Finished] = []
    engine = EngineConfig(max_queued=len(images))
    with Renderer(ModelConfig(), engine) as renderer:

        async def render(number: int) -> None:
            await renderer.render(images[number].request)
            finished.append(
                Finished(time.perf_counter(), images[number].request.num_inference_steps)
            )

        await asyncio.gather(*map(render, range(len(images))))
    return finished


def steady_rate(finished: Sequence[Finished], mean_steps: int, clock: MachineClock) -> float:
    """Pictures of so many steps a second, without the start and the end."""
    finished = sorted(finished)
    first, last = (int(part * (len(finished) - 1)) for part in STEADY)
    steps = sum(each.steps for each in finished[first + 1 : last + 1])
    seconds = clock.between(finished[first].wall_s, finished[last].wall_s)
    return steps / mean_steps / seconds


def write_prompts(file: Path, options: argparse.Namespace) -> None:
    number, size = options.pictures, options.size
    columns = {
        "prompt": [f"twin peaks {i}" for i in range(number)],
        "width": [size] * number,
        "height": [size] * number,
        "num_inference_steps": [_MEAN_STEPS - 10 + i % 21 for i in range(number)],
    }
    pq.write_table(pa.table(columns), file)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=200, help="(%(default)s)")
    parser.add_argument("--size", type=int, default=128, help="pixels a side (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--engines", type=int, default=1, help="without Ray (%(default)s)")
    parser.add_argument("job_arguments", nargs="*", help="of python -m jobs.render, after --")
    parser.add_argument("--engine-of", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
