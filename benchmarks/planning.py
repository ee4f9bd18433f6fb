"""Input rows planned per second, and the memory that takes: one pass in the driver, without Ray.

python benchmarks/planning.py --rows 50000
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batch.output_folder import OutputFolder
from batch.plan import RunSettings, make_plan
from batch.prompts import PromptTable
from shared.config import ModelConfig
from shared.model_files import describe_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--shard-rows", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "prompts.parquet"
        prompts = [f"twin peaks in a style of their own, number {i}" for i in range(options.rows)]
        pq.write_table(pa.table({"prompt": prompts}), source)
        started = time.perf_counter()
        table = PromptTable(str(source))
        settings = RunSettings(
            input_files=table.files(),
            model=describe_model(ModelConfig()),
            dtype="auto",
            seed=0,
            shard_rows=options.shard_rows,
        )
        make_plan(table, OutputFolder(f"{folder}/out"), settings)
        elapsed = time.perf_counter() - started
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{options.rows} rows in {elapsed:.1f} s: {options.rows / elapsed:.0f} rows/s")
    print(f"peak memory {peak_mb:.0f} MB, the libraries included")


if __name__ == "__main__":
    main()
