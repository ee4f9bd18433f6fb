"""What the bulk door costs where rendering costs nothing: rows per second, from few rows to many.

python benchmarks/bulk_overhead.py

Planned, rendered through Ray Data by an engine whose pictures are ready, and reconciled; each
number of rows in a process of its own, so that its memory can be told.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import get_args

os.environ |= {"RAY_AUTH_MODE": "disabled"}

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from batch.image_store import Format
from batch.output_folder import OutputFolder
from batch.plan import Plan, RunSettings, make_plan
from batch.prompts import PromptTable
from batch.reconcile import reconcile
from batch.render import Job, Workers, metadata_file, render_shards, start_ledger
from jobs.renderers import start_ray
from shared.config import ModelConfig
from shared.model_files import describe_model
from shared.model_profile import ModelProfile
from shared.request import CanonicalRequest, GeneratedImage, Provenance, Timings


class FreeRenderer:
    """All its pictures are the same kilobyte."""

    def __init__(self) -> None:
        self.profile: ModelProfile = describe_model(ModelConfig())

    async def render(self, request: CanonicalRequest) -> GeneratedImage:
        return GeneratedImage(
            data=bytes(1024),
            format="png",
            provenance=Provenance(
                request=request, model="none", model_fingerprint="none", dtype="float32"
            ),
            timings=Timings(
                queue_s=0, render_s=0, encode_s=0, num_forwards=0, num_shared_forwards=0
            ),
        )


def main() -> None:
    options = _parse()
    if options.alone:
        measure(options.rows[0], options.format, options.shard_rows)
        return
    for rows in options.rows:
        arguments = ["--alone", "--rows", str(rows), "--format", options.format]
        arguments += ["--shard-rows", str(options.shard_rows)]
        subprocess.run([sys.executable, __file__, *arguments], check=True)


def measure(num_rows: int, format: Format, shard_rows: int) -> None:
    with tempfile.TemporaryDirectory(dir=os.environ.get("OUTPUT_FOLDER")) as name:
        source = Path(name) / "prompts.parquet"
        prompts = (f"twin peaks, number {i}" for i in range(num_rows))
        pq.write_table(pa.table({"prompt": pa.array(prompts, size=num_rows)}), source)
        output = OutputFolder(f"{name}/out")
        timer = Timer(num_rows)
        table = PromptTable(str(source))
        settings = RunSettings(
            input_files=table.files(),
            model=describe_model(ModelConfig()),
            dtype="auto",
            seed=0,
            shard_rows=shard_rows,
            format=format,
        )
        plan = make_plan(table, output, settings)
        timer.tell("planned")
        start_ray()
        job = Job(output.location, format, FreeRenderer)
        workers = Workers(concurrency=1, num_cpus=1, num_gpus=0)
        num_shards = sum(1 for _ in render_shards(plan.shards, job, workers, start_ledger()))
        timer.tell("rendered", seconds=rendering_s(plan, output))
        summary, _ = reconcile(plan, output)
        timer.tell("reconciled")
        assert (num_shards, summary.is_exact) == (plan.num_shards, True)
        print(f"{num_rows} rows in {format}: {timer.report()}", flush=True)


def rendering_s(plan: Plan, output: OutputFolder) -> float:
    """From the first picture to the last, without what Ray and the actor take to start."""
    finished = [
        time
        for shard in (plan.shards[0], plan.shards[-1])
        for time in output.read_table(metadata_file(shard)).column("finished_at").to_pylist()
    ]
    return (max(finished) - min(finished)).total_seconds()


class Timer:
    """Rows per second of each phase, and the memory of this process after it."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self._phases: list[str] = []
        self._last = time.perf_counter()

    def tell(self, phase: str, seconds: float | None = None) -> None:
        """It took `seconds`, or all the time since the phase before."""
        now = time.perf_counter()
        seconds, self._last = seconds or now - self._last, now
        per_s = self._num_rows / seconds
        memory_mb = psutil.Process().memory_info().rss / 1e6
        self._phases.append(f"{phase} in {seconds:.1f} s ({per_s:.0f}/s), {memory_mb:.0f} MB")

    def report(self) -> str:
        return "; ".join(self._phases)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--format", choices=get_args(Format), default="parquet")
    parser.add_argument("--shard-rows", type=int, default=100, help="(%(default)s)")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
