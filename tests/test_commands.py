"""The commands that a user types, in processes of their own."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests

import jobs.render
import serving.__main__
from tests.bulk import a_thousand_rows, pictures
from tests.conftest import BIN, RAY_FOLDER, REPO, Cluster, free_port

pytestmark = pytest.mark.cluster

SMALL = {"width": 64, "height": 64, "num_inference_steps": 4}
RENDER = [sys.executable, "-m", "jobs.render"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.parquet"
    table = {"prompt": [f"twin peaks {i}" for i in range(6)]}
    small = {"width": [64] * 6, "height": [64] * 6, "num_inference_steps": [4] * 6}
    pq.write_table(pa.table(table | small), file)
    return file


def with_a_bad_row(file: Path) -> None:
    bad = pa.table({"prompt": [""]} | {name: [value] for name, value in SMALL.items()})
    pq.write_table(pa.concat_tables([pq.read_table(file), bad]), file)


def run(
    command: list[str], cluster: Cluster | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    environment = (cluster.environment() if cluster else os.environ) | environment
    return subprocess.run(
        command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=240
    )


def test_bulk_renders_everything_once(
    cluster: Cluster, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    arguments = [f"--input={prompts}", f"--output={output}", "--shard-rows=2", "--num-cpus=1"]

    with_a_bad_row(prompts)
    first = run([*RENDER, *arguments], cluster)
    assert first.returncode == 3, first.stderr
    assert "Planned 6 pictures in 3 shards; 1 input rows rejected" in first.stdout
    assert "rendered  6 of 6 pictures" in first.stdout
    assert re.search(
        r"^\d+ s: 6 of 6 pictures, [\d.]+/s, 0 failed, about 0 s left$", first.stdout, re.M
    )
    assert json.loads((output / "summary.json").read_text())["num_ok"] == 6
    assert len(pictures(output / "images")) == 6
    rendered = pictures(output)

    assert jobs.render.main(arguments) == 3
    assert "Nothing to do" in capsys.readouterr().out

    (output / "metadata" / "000001.parquet").unlink()
    resumed = run([*RENDER, *arguments], cluster)
    assert resumed.returncode == 3, resumed.stderr
    assert "Rendering 1 of 3 shards" in resumed.stdout
    assert pictures(output) == rendered

    assert jobs.render.main([*arguments, "--seed=1"]) == 2
    told = capsys.readouterr().err
    assert "error: the output folder holds a run with seed = 0, not 1" in told


@pytest.mark.slow
def test_a_thousand_rows_of_which_two_hundred_are_malformed(tmp_path: Path) -> None:
    pq.write_table(pa.table(a_thousand_rows()), tmp_path / "prompts.parquet")
    command = [*RENDER, f"--input={tmp_path}/prompts.parquet", f"--output={tmp_path}/out"]

    done = run(command)
    assert done.returncode == 3, done.stderr
    assert "Planned 800 pictures in 50 shards; 200 input rows rejected" in done.stdout
    assert "rendered  800 of 800 pictures" in done.stdout
    assert len(pictures(tmp_path / "out/images")) == 800

    again = run(command)
    assert again.returncode == 3
    assert "Nothing to do" in again.stdout


@pytest.mark.slow
def test_an_engine_that_this_machine_has_no_room_for_is_refused(
    prompts: Path, tmp_path: Path
) -> None:
    command = [*RENDER, f"--input={prompts}", f"--output={tmp_path}/out", "--num-cpus=9999"]
    done = run(command)
    assert done.returncode == 2
    assert "error: --num-cpus 9999: this machine has " in done.stderr


KILLING_RUN = """
import sys
from functools import partial
from pathlib import Path
import ray
from batch.render import Job, Workers, render_shards, start_ledger
from batch.report import write_report
from tests.bulk import PlainRenderer, plan_run

plan, output = plan_run(Path(sys.argv[1]), {"prompt": ["a", "b", "die", "d"]})
ray.init(log_to_driver=False)
make_renderer = partial(PlainRenderer, plan.settings.model)
job = Job(output.location, plan.settings.format, make_renderer)
workers = Workers(concurrency=1, num_cpus=1, num_gpus=0)
shards = sorted(render_shards(plan.shards, job, workers, start_ledger()))
assert shards == plan.shards, shards
write_report(plan, output)
"""


def test_a_row_that_kills_its_process_is_given_up(cluster: Cluster, tmp_path: Path) -> None:
    done = run([sys.executable, "-c", KILLING_RUN, str(tmp_path)], cluster)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert (summary["num_ok"], summary["num_error"], summary["num_missing"]) == (3, 1, 0)
    rows = pq.read_table(tmp_path / "out/metadata/000001.parquet").to_pylist()
    assert rows[0]["prompt"] == "die"
    assert "ProcessDied" in rows[0]["error"]


def test_a_dry_run_says_how_long_and_how_large(prompts: Path, cluster: Cluster) -> None:
    with_a_bad_row(prompts)
    done = run([*RENDER, "--input", str(prompts), "--dry-run", "--num-cpus=1"], cluster)
    assert done.returncode == 3, done.stderr
    assert "Planned 6 pictures in 1 shards" in done.stdout
    assert "  row 6: prompt: must not be empty" in done.stdout
    assert re.search(
        r"^6 pictures took \d+ s; all 6 will take about \d+ s "
        r"on 1 engine\(s\) with 1 CPUs and 0 GPUs each, and 0\.\d MB$",
        done.stdout,
        re.M,
    )


def test_what_an_engine_lacks_on_its_node_is_one_line(cluster: Cluster, prompts: Path) -> None:
    command = [*RENDER, "--input", str(prompts), "--output", str(prompts.parent / "out")]
    done = run([*command, "--num-cpus=1", "--device=cuda:99"], cluster)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: there is no device 'cuda:99' here (")


def test_a_submitted_job_renders(cluster: Cluster, prompts: Path, tmp_path: Path) -> None:
    submit = [str(BIN / "ray"), "job", "submit", "--working-dir", "."]
    job = ["python", "-m", "jobs.render", "--num-cpus=1", "--input", str(prompts), "--output"]

    done = run([*submit, "--", *job, str(tmp_path / "out")], cluster)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(pictures(tmp_path / "out")) == 6

    lost = run([*submit, "--", *job, "out"], cluster)
    assert lost.returncode != 0
    assert "would be lost with it; give an absolute path or a URI" in lost.stdout


def test_two_generators_serve_until_ctrl_c_and_leave_no_process_behind() -> None:
    port = free_port()
    service = subprocess.Popen(
        [sys.executable, "-m", "serving", "--port", str(port), "--num-generators", "2"],
        cwd=REPO,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"RAY_TMPDIR": str(RAY_FOLDER / "ctrl-c")},
        start_new_session=True,
    )
    try:
        assert service.stdout is not None
        output = []
        for line in service.stdout:
            output.append(line)
            if line.startswith("Ready: "):
                break
        assert f"Ready: http://localhost:{port} (Ctrl-C to stop)\n" in output, "".join(output)
        assert requests.get(f"http://localhost:{port}/healthz", timeout=30).status_code == 200
        answers = [requests.get(f"http://localhost:{port}/forwards", timeout=30) for _ in range(40)]
        assert len({answer.json()["engine"] for answer in answers}) == 2  # by chance, either
        session = _processes_of(RAY_FOLDER / "ctrl-c")
        assert session

        os.killpg(service.pid, signal.SIGINT)  # as a terminal does: to all of them
        assert service.wait(timeout=60) == 0
        deadline = time.monotonic() + 20
        while (left := _processes_of(RAY_FOLDER / "ctrl-c")) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert left == []
    finally:
        with suppress(ProcessLookupError):
            os.killpg(service.pid, signal.SIGKILL)


def test_a_taken_port_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = run([sys.executable, "-m", "serving", "--port", str(taken.getsockname()[1])])
    assert done.returncode == 1
    assert re.fullmatch(r"Port \d+ is taken\. .*make serve PORT=8001\n", done.stdout)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--model=/no/model"], "there is no folder /no/model"),
        (
            ["--model=/a/sdxl", "--model=/b/sdxl"],
            "Several models are named 'sdxl': the last parts of their folders have to differ",
        ),
        (["--adapter=ink=/no/ink"], "adapter ink: cannot read /no/ink: No such file or directory"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serving.__main__.main([*arguments, f"--port={free_port()}"]) == 1
    assert capsys.readouterr().out == f"{line}\n"


def test_tokens_that_cannot_be_read_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("API_TOKEN_FILE", "/no/tokens")
    assert serving.__main__.main([f"--port={free_port()}"]) == 1
    line = "API_TOKEN_FILE: [Errno 2] No such file or directory: '/no/tokens'"
    assert capsys.readouterr().out == f"{line}\n"


@pytest.mark.parametrize("module", ["serving", "jobs.render"])
def test_a_cluster_that_is_not_there_is_one_line(module: str, tmp_path: Path) -> None:
    port = [f"--port={free_port()}"]
    folders = [f"--input={REPO / 'examples' / 'prompts.parquet'}", f"--output={tmp_path / 'out'}"]
    arguments = {"serving": port, "jobs.render": folders}[module]
    done = run([sys.executable, "-m", module, *arguments], RAY_ADDRESS="nowhere")
    assert done.returncode in (1, 2)
    said = done.stdout + done.stderr
    assert re.search("here is no Ray cluster at RAY_ADDRESS=nowhere.*ray start --head", said)
    assert "Traceback" not in done.stderr


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
