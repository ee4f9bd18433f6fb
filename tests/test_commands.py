"""The commands that a user types, in processes of their own."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests

from tests.conftest import BIN, RAY_FOLDER, REPO, Cluster, free_port

pytestmark = pytest.mark.cluster

RENDER = [sys.executable, "-m", "jobs.render"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.parquet"
    table = {"prompt": [f"twin peaks {i}" for i in range(6)]}
    small = {"width": [64] * 6, "height": [64] * 6, "num_inference_steps": [4] * 6}
    pq.write_table(pa.table(table | small), file)
    return file


def run(command: list[str], cluster: Cluster | None = None) -> subprocess.CompletedProcess[str]:
    environment = cluster.environment() if cluster else os.environ
    return subprocess.run(
        command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=240
    )


def pictures(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.png")}


def test_bulk_renders_everything_once(cluster: Cluster, prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = [*RENDER, "--input", str(prompts), "--output", str(output), "--shard-rows=2"]
    command += ["--num-cpus=1"]

    first = run(command, cluster)
    assert first.returncode == 0, first.stderr
    assert "Planned 6 pictures in 3 shards" in first.stdout
    assert re.search(
        r"^\d+ s: 6 of 6 pictures, [\d.]+/s, 0 failed, about 0 s left$", first.stdout, re.M
    )
    assert json.loads((output / "summary.json").read_text())["num_ok"] == 6
    assert len(pictures(output / "images")) == 6
    rendered = pictures(output)

    again = run(command, cluster)
    assert again.returncode == 0
    assert "Nothing to do" in again.stdout

    (output / "metadata" / "000001.parquet").unlink()
    resumed = run(command, cluster)
    assert resumed.returncode == 0, resumed.stderr
    assert "Rendering 1 of 3 shards" in resumed.stdout
    assert pictures(output) == rendered

    other = run([*command, "--seed=1"], cluster)
    assert other.returncode == 2
    assert other.stderr.splitlines()[-1].startswith(
        "error: the output folder holds a run with seed = 0, not 1"
    )


def test_rejected_rows_are_told_by_the_exit_code(
    cluster: Cluster, prompts: Path, tmp_path: Path
) -> None:
    table = pq.read_table(prompts).slice(0, 2)
    odd = pa.table({"prompt": [""], "width": [64], "height": [64], "num_inference_steps": [4]})
    pq.write_table(pa.concat_tables([table, odd]), prompts)
    done = run(
        [*RENDER, "--input", str(prompts), "--output", str(tmp_path / "out"), "--num-cpus=1"],
        cluster,
    )
    assert done.returncode == 3, done.stderr
    assert "2 of 2 pictures rendered, 0 failed, 1 rows rejected" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "missing.parquet", "--output", "out"], "error: cannot read missing.parquet"),
        (["--input", "examples", "--output", "examples/out"], "error: --output examples/out lies"),
        (
            ["--input", "examples/prompts.parquet", "--output", "out", "--model", "/no/model"],
            "error: /no/model is not a diffusers folder",
        ),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    done = run([*RENDER, *arguments])
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(message)
    assert "Traceback" not in done.stderr


def test_a_submitted_job_renders(cluster: Cluster, prompts: Path, tmp_path: Path) -> None:
    submit = [str(BIN / "ray"), "job", "submit", "--working-dir", "."]
    job = ["python", "-m", "jobs.render", "--num-cpus=1", "--input", str(prompts), "--output"]

    done = run([*submit, "--", *job, str(tmp_path / "out")], cluster)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(pictures(tmp_path / "out")) == 6

    lost = run([*submit, "--", *job, "out"], cluster)
    assert lost.returncode != 0
    assert "would be lost with it; give an absolute path or a URI" in lost.stdout


def test_ctrl_c_leaves_no_process_behind() -> None:
    port = free_port()
    service = subprocess.Popen(
        [sys.executable, "-m", "serving", "--port", str(port)],
        cwd=REPO,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"RAY_TMPDIR": str(RAY_FOLDER / "ctrl-c")},
        start_new_session=True,
    )
    assert service.stdout is not None
    output = []
    for line in service.stdout:
        output.append(line)
        if line.startswith("Ready: "):
            break
    assert f"Ready: http://localhost:{port} (Ctrl-C to stop)\n" in output, "".join(output)
    assert requests.get(f"http://localhost:{port}/healthz", timeout=30).status_code == 200
    session = _processes_of(RAY_FOLDER / "ctrl-c")
    assert session

    os.killpg(service.pid, signal.SIGINT)  # as a terminal does: to all of them
    assert service.wait(timeout=60) == 0
    deadline = time.monotonic() + 20
    while (left := _processes_of(RAY_FOLDER / "ctrl-c")) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []


def test_a_taken_port_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = run([sys.executable, "-m", "serving", "--port", str(taken.getsockname()[1])])
    assert done.returncode == 1
    assert re.fullmatch(r"Port \d+ is taken\. .*make serve PORT=8001\n", done.stdout)


def test_a_model_that_is_not_there_is_one_line() -> None:
    done = run(
        [sys.executable, "-m", "serving", "--model", "/no/model", "--port", str(free_port())]
    )
    assert done.returncode == 1
    assert done.stdout == "/no/model is not a diffusers folder: no model_index.json in it\n"


def _processes_of(folder: Path) -> list[str]:
    """The command lines of all living processes whose Ray folder this is."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes().split(b"\0")
            state = (process / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if f"RAY_TMPDIR={folder}".encode() in environment and state != "Z":
            found.append((process / "cmdline").read_text().replace("\0", " ").strip())
    return found
