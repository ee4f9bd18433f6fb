"""The bulk door on an object store: a real S3 server, that also fails and is slow."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from batch.output_folder import LocationUnusable, OutputFolder
from batch.prompts import PromptTable
from batch.report import write_report
from tests.bulk import plan_run, render
from tests.conftest import REPO
from tests.s3_server import CREDENTIALS, S3Server

PROMPTS = [f"p{i}" for i in range(6)]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with S3Server().running() as server:
        for name, value in (CREDENTIALS | {"AWS_ENDPOINT_URL": server.url}).items():
            monkeypatch.setenv(name, value)
        storage = fs.S3FileSystem(endpoint_override=server.url, allow_bucket_creation=True)
        storage.create_dir("bucket")
        yield server


def test_a_store_that_fails_and_is_slow_holds_the_same_run(
    server: S3Server, tmp_path: Path
) -> None:
    here, there = plan_run(tmp_path, {"prompt": PROMPTS})
    render(here, there, here.shards)
    server.failing, server.delay_s = 0.3, 0.02
    plan, output = plan_run(tmp_path, {"prompt": PROMPTS}, "s3://bucket/a/run")
    render(plan, output, plan.shards)
    summary = write_report(plan, output)
    assert server.num_failed > 5
    assert (summary.is_exact, summary.num_ok) == (True, 6)
    for shard in plan.shards:
        for row in output.read_table(f"metadata/{shard}.parquet").to_pylist():
            name = f"images/{row['file_name']}"
            assert output.read(name) == there.read(name)


@pytest.mark.slow
@pytest.mark.cluster
def test_a_run_into_a_failing_store_goes_on_after_kills(server: S3Server, tmp_path: Path) -> None:
    columns = {"prompt": [f"twin peaks {i}" for i in range(60)], "width": [64] * 60}
    pq.write_table(pa.table(columns | {"height": [64] * 60}), tmp_path / "prompts.parquet")

    def start(output: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "jobs.render", f"--input={tmp_path}/prompts.parquet"]
        return subprocess.Popen(
            [*command, f"--output={output}", "--shard-rows=4"], cwd=REPO, start_new_session=True
        )

    assert start(f"{tmp_path}/out").wait() == 0
    there = OutputFolder("s3://bucket/out")
    server.failing, server.delay_s = 0.2, 0.02
    for num_shards in (2, 7):
        driver = start(there.location)
        while len(there.list("metadata")) < num_shards:
            assert driver.poll() is None
            time.sleep(0.2)
        driver.kill()
        driver.wait()
    assert start(there.location).wait() == 0

    assert server.num_failed > 10
    folder = tmp_path / "out"
    expected = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.png")}
    assert len(expected) == 60
    assert {name: there.read(name) for name in expected} == expected


def test_a_file_is_written_and_read_in_one_request_each(server: S3Server) -> None:
    output = OutputFolder("s3://bucket/run")
    server.requests.clear()
    output.write("a/b.bin", os.urandom(3 * 2**20))
    assert len(output.read("a/b.bin")) == 3 * 2**20
    methods = [method for method, _, _ in server.requests]
    assert methods == ["PUT", "HEAD", "GET"]


def test_input_is_read_from_the_store(server: S3Server) -> None:
    OutputFolder("s3://bucket").write_table("prompts.parquet", pa.table({"prompt": PROMPTS}))
    (rows,) = PromptTable("s3://bucket/prompts.parquet").rows()
    assert [fields["prompt"] for fields in rows.fields] == PROMPTS


def test_what_is_not_there_is_not_waited_for(server: S3Server) -> None:
    output = OutputFolder("s3://bucket/run")
    server.requests.clear()
    with pytest.raises(FileNotFoundError):
        output.read("missing")
    assert len(server.requests) <= 2
    assert output.list("missing") == []
    assert not output.exists("missing")
    with pytest.raises(LocationUnusable, match="there is no s3"):
        PromptTable("s3://bucket/missing.parquet")


def test_what_breaks_off_is_no_object(server: S3Server) -> None:
    output = OutputFolder("s3://bucket/run")

    def write_half() -> None:
        with output.writing("index") as stream:
            stream.write(b"half")
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        write_half()
    assert not output.exists("index")


def test_a_store_that_will_not_have_us_says_so_at_once(server: S3Server) -> None:
    with pytest.raises(LocationUnusable, match=r"s3://nobody-s/run: .*NO_SUCH_BUCKET"):
        OutputFolder("s3://nobody-s/run").write("a", b"")
    with (
        server.asking_for_keys(),
        pytest.raises(LocationUnusable, match="ACCESS_DENIED"),
    ):
        OutputFolder("s3://bucket/run")
