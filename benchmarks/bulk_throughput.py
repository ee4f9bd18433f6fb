"""Pictures per second of a bulk job beside those of the bare engine, on the same cores.

python benchmarks/bulk_throughput.py
python benchmarks/bulk_throughput.py -- --concurrency 2 --num-cpus 1    an engine for each core
python benchmarks/bulk_throughput.py --engines 2 -- --concurrency 2 --num-cpus 1    on both sides

The same requests, by turns: `python -m jobs.render` in its steady state (between a tenth and nine
tenths of its pictures), and an engine in a process of its own that has all of them at once, on all
cores; or several such, that share the cores. What stands behind `--` is given to the job.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batch.output_folder import OutputFolder
from batch.plan import read_plan, shard_file
from batch.records import planned_images
from shared.cpu_workers import CPU_WORKER

STEADY = (0.1, 0.9)
_MEAN_STEPS = 20


def main() -> None:
    options = _parse()
    if options.engine_of:
        print(asyncio.run(engine_rate(options.engine_of)))
        return
    ratios = []
    with tempfile.TemporaryDirectory(prefix="sdr-", dir="/tmp") as name:
        folder = Path(name)
        write_prompts(folder / "prompts.parquet", options)
        for number in range(options.rounds):
            output = folder / f"out-{number}"
            job = job_rate(folder, output, options.job_arguments, _MEAN_STEPS)
            engine = rate_of_engines(output, options.engines)
            ratios.append(job / engine)
            print(
                f"job {job:.2f} pictures/s, engine {engine:.2f}, ratio {ratios[-1]:.3f}", flush=True
            )
    print(f"ratio: {statistics.median(ratios):.3f} (median of {len(ratios)})")


def job_rate(folder: Path, output: Path, arguments: Sequence[str], mean_steps: int) -> float:
    """Of a job that renders `folder`/prompts.parquet into `output`."""
    command = [sys.executable, "-m", "jobs.render", "--input", str(folder / "prompts.parquet")]
    command += arguments
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": str(folder)}
    subprocess.run(
        [*command, "--output", str(output)], check=True, env=environment, capture_output=True
    )
    tables = [pq.read_table(file) for file in (output / "metadata").glob("*.parquet")]
    rows = pa.concat_tables(tables).select(["finished_at", "num_inference_steps"]).to_pylist()
    finished = [(row["finished_at"].timestamp(), row["num_inference_steps"]) for row in rows]
    return steady_rate(finished, mean_steps)


def rate_of_engines(output: Path, number: int) -> float:
    """Of all together; each renders all the pictures."""
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
    return sum(float(engine.communicate()[0].splitlines()[-1]) for engine in engines)


async def engine_rate(folder: Path) -> float:
    """Of the pictures that are planned in `folder`, rendered but not kept."""
    from shared.config import EngineConfig, ModelConfig
    from shared.renderer import Renderer

    output = OutputFolder(str(folder))
    plan = read_plan(output)
    assert plan is not None
    tables = output.read_tables([*map(shard_file, plan.shards)])
    images = [each for table in tables for each in planned_images(table)]
    finished: list[tuple[float, int]] = []
    engine = EngineConfig(max_queued=len(images))
    with Renderer(ModelConfig(), engine) as renderer:

        async def render(number: int) -> None:
            await renderer.render(images[number].request)
            finished.append((time.time(), images[number].request.num_inference_steps))

        await asyncio.gather(*map(render, range(len(images))))
    return steady_rate(finished, _MEAN_STEPS)


def steady_rate(finished: Sequence[tuple[float, int]], mean_steps: int) -> float:
    """Pictures of so many steps a second, of when each was finished and its steps.

    Without the start and the end.
    """
    finished = sorted(finished)
    first, last = (int(part * (len(finished) - 1)) for part in STEADY)
    steps = sum(steps for _, steps in finished[first + 1 : last + 1])
    return steps / mean_steps / (finished[last][0] - finished[first][0])


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
