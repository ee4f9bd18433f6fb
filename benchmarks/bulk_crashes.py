"""A bulk run whose processes are killed, and one that loses a node: is a picture lost or changed?

python benchmarks/bulk_crashes.py

The pictures are first rendered undisturbed. Then the driver, an engine's actor or a raylet gets a
kill -9 at random moments, and the command is run again whenever it ended. At last a cluster of
three nodes loses one in the middle of a run.
"""

import argparse
import contextlib
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from batch.output_folder import OutputFolder
from batch.plan import read_plan
from batch.reconcile import reconcile
from batch.render import SHARDS_AT_ONCE, metadata_file

SHARD_ROWS = 8
TARGETS = {"driver": "jobs.render", "actor": "ray::MapWorker", "raylet": "raylet/raylet"}


class Run:
    """The command, in a Ray folder of its own."""

    def __init__(self, folder: Path, name: str, environment: dict[str, str] | None = None) -> None:
        self.output = folder / name
        self._log = folder / f"{name}.log"
        self._command = [sys.executable, "-m", "jobs.render"]
        self._command += ["--input", str(folder / "prompts.parquet"), "--output", str(self.output)]
        # Equal threads wherever it runs: another number of them gives other bits.
        self._command += [f"--shard-rows={SHARD_ROWS}", "--num-cpus=1"]
        self._environment = os.environ | {"RAY_AUTH_MODE": "disabled"} | (environment or {})
        self._environment["SDR_BENCHMARK"] = str(self.output)

    def start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._command, stdout=log, stderr=log, env=self._environment, start_new_session=True
            )

    def processes(self, text: str) -> list[psutil.Process]:
        """Of this run, those whose command line has `text`, the newest last."""
        return [process for process in self._all() if text in " ".join(_command_of(process))]

    def left_over(self, patience_s: float = 30) -> int:
        """How many are still there some time after the driver; they are ended."""
        deadline = time.monotonic() + patience_s
        while self._all() and time.monotonic() < deadline:
            time.sleep(0.5)
        left = self._all()
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        return len(left)

    def committed(self) -> dict[str, int]:
        """The shards with metadata, and when that was written."""
        files = (self.output / "metadata").glob("*.parquet")
        return {file.stem: file.stat().st_mtime_ns for file in files}

    def begun(self) -> set[str]:
        """The shards with pictures."""
        return {folder.name for folder in (self.output / "images").glob("*/")}

    def sha256(self) -> dict[str, str]:
        """Of each picture, as its file has it."""
        output = OutputFolder(str(self.output))
        plan = read_plan(output)
        assert plan is not None
        rows = pa.concat_tables(output.read_tables([*map(metadata_file, plan.shards)])).to_pylist()
        for row in rows:
            data = (self.output / "images" / row["file_name"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == row["sha256"], row["file_name"]
        return {row["image_id"]: row["sha256"] for row in rows}

    def is_exact(self) -> bool:
        output = OutputFolder(str(self.output))
        plan = read_plan(output)
        return plan is not None and reconcile(plan, output)[0].is_exact

    def _all(self) -> list[psutil.Process]:
        mark = self._environment["SDR_BENCHMARK"]
        return [process for process in psutil.process_iter() if _has_mark(process, mark)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=640, help="(%(default)s)")
    parser.add_argument("--kills", type=int, default=20, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (%(default)s)")
    options = parser.parse_args()
    # Short, since sockets lie in it.
    with tempfile.TemporaryDirectory(prefix="sdr-", dir="/tmp") as name:
        folder = Path(name)
        os.environ["RAY_TMPDIR"] = name
        (folder / "ray").mkdir()
        write_prompts(folder / "prompts.parquet", options.pictures)
        undisturbed = Run(folder, "undisturbed")
        code = undisturbed.start().wait()
        expected = undisturbed.sha256()
        say(f"undisturbed: exit code {code}, {len(expected)} pictures")
        kill(Run(folder, "killed"), expected, options.kills, random.Random(options.seed))
        lose_a_node(folder, expected)


def kill(run: Run, expected: dict[str, str], num_kills: int, chance: random.Random) -> None:
    killed: Counter[str] = Counter()
    first_written: dict[str, int] = {}
    most_lost, left_over, starts = 0, 0, 1
    driver = run.start()
    while True:
        wait_s = chance.uniform(1, 20)
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = driver.wait(wait_s)
            left_over += run.left_over()
            if code == 0:
                break
            driver = run.start()
            starts += 1
            continue
        if killed.total() == num_kills:
            continue
        target = chance.choice(list(TARGETS))
        victims = run.processes(TARGETS[target])
        if not victims:
            continue
        victims[-1].kill()
        killed[target] += 1
        first_written = run.committed() | first_written
        most_lost = max(most_lost, len(run.begun() - first_written.keys()))
    rewritten = sum(run.committed()[shard] != at for shard, at in first_written.items())
    found = run.sha256()
    say(
        f"{killed.total()} times kill -9 ({dict(killed)}), {starts} starts: "
        f"exact: {run.is_exact()}, {compared(found, expected)}\n"
        f"  begun and not committed at a kill: {most_lost} shards at most (in flight: "
        f"{SHARDS_AT_ONCE}); committed and written again: {rewritten}\n"
        f"  processes left behind half a minute after the driver: {left_over}"
    )


def lose_a_node(folder: Path, expected: dict[str, str]) -> None:
    with cluster_of_three() as (address, nodes):
        run = Run(folder, "node", {"RAY_ADDRESS": address})
        driver = run.start()
        while len(run.committed()) < len(expected) // SHARD_ROWS // 4:
            time.sleep(0.2)
            assert driver.poll() is None, "the job ended early"
        begun = time.monotonic()
        nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
        at = len(run.committed())
        code = driver.wait()
        found = run.sha256()
        after_s = time.monotonic() - begun
        say(
            f"a node of three lost at {at} shards: exit code {code} {after_s:.0f} s later, "
            f"exact: {run.is_exact()}, {compared(found, expected)}"
        )


def compared(found: dict[str, str], expected: dict[str, str]) -> str:
    num_equal = sum(found.get(image_id) == sha256 for image_id, sha256 in expected.items())
    return f"{num_equal} of {len(expected)} pictures the same bytes"


@contextlib.contextmanager
def cluster_of_three() -> Iterator[tuple[str, Any]]:
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        for _ in range(2):
            nodes.add_node(num_cpus=1)
        yield nodes.address, nodes
    finally:
        nodes.shutdown()


def write_prompts(file: Path, number: int) -> None:
    columns = {
        "prompt": [f"twin peaks {i}" for i in range(number)],
        "width": [64] * number,
        "height": [64] * number,
        # So that pictures end one by one, and a kill finds some of a shard's done.
        "num_inference_steps": [4 + i % 21 for i in range(number)],
    }
    pq.write_table(pa.table(columns), file)


def _command_of(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        command: list[str] = process.cmdline()
        return command
    return []


def _has_mark(process: psutil.Process, mark: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE and mark in process.environ().values()
    return False


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
