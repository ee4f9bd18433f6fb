"""The bulk door without Ray: shards rendered in this process, then held against the plan."""

import asyncio
import contextlib
import io
import json
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from datasets import load_dataset
from PIL import Image

from batch.image_store import Format
from batch.ledger import Ledger
from batch.output_folder import OutputFolder
from batch.plan import Plan, shard_file
from batch.reconcile import reconcile
from batch.records import planned_images
from batch.render import pending_shards
from batch.report import write_report
from shared.config import EngineConfig, ModelConfig
from shared.errors import EngineDead
from shared.image_codec import read_provenance
from shared.renderer import Renderer
from shared.request import CanonicalRequest, GeneratedImage
from tests.bulk import PlainRenderer, plan_run, render

PROMPTS = ["twin <peaks>", "", "a lake", "a forest", "dunes"]

every_format = pytest.mark.parametrize("format", get_args(Format))


@pytest.fixture
def planned(tmp_path: Path) -> tuple[Plan, OutputFolder]:
    return plan_run(tmp_path, {"prompt": PROMPTS, "rating": [0.5, 1.5, 2.5, 3.5, 4.5]})


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_a_run_is_complete_and_exact(planned: tuple[Plan, OutputFolder]) -> None:
    plan, output = planned
    assert pending_shards(plan, output) == {"000000": 2, "000001": 2}
    render(plan, output, plan.shards)
    assert pending_shards(plan, output) == {}
    summary = write_report(plan, output)
    assert summary.is_exact
    assert (summary.num_ok, summary.num_rejected, summary.num_error) == (4, 1, 0)
    assert json.loads(output.read("summary.json"))["num_ok"] == 4
    page = output.read("report.html").decode()
    assert page.count("<figure>") == 4
    assert "twin &lt;peaks&gt;" in page
    assert "row 1: prompt: must not be empty" in page
    assert "64×64</th><td>4</td>" in page


def test_metadata_says_what_each_file_is(planned: tuple[Plan, OutputFolder]) -> None:
    plan, output = planned
    render(plan, output, plan.shards[:1])
    rows = output.read_table("metadata/000000.parquet").to_pylist()
    assert [row["image_id"] for row in rows] == [
        image.image_id for image in planned_images(output.read_table(shard_file("000000")))
    ]
    for row in rows:
        data = output.read(f"images/{row['file_name']}")
        assert len(data) == row["num_bytes"]
        assert read_provenance(data).request.seed == row["seed"]
        assert row["file_name"] == f"000000/{row['image_id']}.png"
        assert (row["status"], row["error"], row["model"]) == ("ok", None, "postcard")
        assert row["rating"] == row["source_row"] + 0.5


def test_bulk_and_online_give_the_same_bytes(planned: tuple[Plan, OutputFolder]) -> None:
    plan, output = planned
    with Renderer(ModelConfig(), EngineConfig()) as renderer:
        render(plan, output, plan.shards, lambda: renderer)
        rows = output.read_table("metadata/000001.parquet").to_pylist()
        request = planned_images(output.read_table(shard_file("000001")))[0].request
        online = asyncio.run(renderer.render(request))
    assert online.sha256 == rows[0]["sha256"]
    assert online.data == output.read(f"images/{rows[0]['file_name']}")


@every_format
def test_a_dataset_is_the_same_bytes_in_every_run(tmp_path: Path, format: Format) -> None:
    def dataset(name: str) -> dict[str, bytes]:
        folder = tmp_path / name
        folder.mkdir()
        plan, output = plan_run(folder, {"prompt": PROMPTS}, format=format)
        render(plan, output, plan.shards)
        write_report(plan, output)
        of_the_run = ("metadata", "summary.json", "report.html")
        there = files(folder / "out")
        return {name: data for name, data in there.items() if not name.startswith(of_the_run)}

    assert dataset("a") == dataset("b")


def by_files(plan: Plan, output: OutputFolder) -> dict[str, np.ndarray]:
    """The pictures of a run in `files`, by their prompts."""
    found = {}
    for shard in plan.shards:
        for row in output.read_table(f"metadata/{shard}.parquet").to_pylist():
            data = output.read(f"images/{row['file_name']}")
            found[row["prompt"]] = np.asarray(Image.open(io.BytesIO(data)))
    return found


def load_files(folder: Path, cache: Path) -> dict[str, np.ndarray]:
    rows = load_dataset(
        "imagefolder", data_dir=str(folder / "images"), split="train", cache_dir=str(cache)
    )
    return {row["prompt"]: np.asarray(row["image"]) for row in rows}


def load_parquet(folder: Path, cache: Path) -> dict[str, np.ndarray]:
    rows = load_dataset(
        "parquet", data_dir=str(folder / "data"), split="train", cache_dir=str(cache)
    )
    return {row["prompt"]: np.asarray(row["image"]) for row in rows}


def load_webdataset(folder: Path, _: Path) -> dict[str, np.ndarray]:
    shards = sorted(str(file) for file in (folder / "shards").iterdir())
    rows = webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8")
    return {row["json"]["prompt"]: row["png"] for row in rows}


@pytest.mark.parametrize(
    ("format", "load"),
    [("files", load_files), ("parquet", load_parquet), ("webdataset", load_webdataset)],
)
def test_dataset_libraries_load_the_same_pictures(
    planned: tuple[Plan, OutputFolder],
    tmp_path: Path,
    format: Format,
    load: Callable[[Path, Path], dict[str, np.ndarray]],
) -> None:
    render(planned[0], planned[1], planned[0].shards)
    expected = by_files(*planned)
    folder = tmp_path / format
    folder.mkdir()
    columns = {"prompt": [*PROMPTS, "fail <this>"], "rating": list(range(6))}
    plan, output = plan_run(folder, columns, format=format)
    render(plan, output, plan.shards)
    assert write_report(plan, output).num_error == 1
    loaded = load(folder / "out", tmp_path / "cache")
    assert loaded.keys() == expected.keys()
    for prompt, picture in loaded.items():
        np.testing.assert_array_equal(picture, expected[prompt])


def test_each_format_has_its_own_files(tmp_path: Path) -> None:
    found = {}
    for format in get_args(Format):
        folder = tmp_path / format
        folder.mkdir()
        plan, output = plan_run(folder, {"prompt": ["a"], "note": ["x"]}, format=format)
        render(plan, output, plan.shards)
        summary = write_report(plan, output)
        assert (summary.is_exact, summary.num_ok) == (True, 1)
        assert "data:image/jpeg" in output.read("report.html").decode()
        found[format] = folder / "out"
    (row,) = pq.read_table(found["files"] / "images/metadata.parquet").to_pylist()
    assert (found["files"] / "images" / row["file_name"]).is_file()
    (row,) = pq.read_table(found["parquet"] / "data/000000.parquet").to_pylist()
    assert row["image"]["path"] == row["file_name"] == f"{row['image_id']}.png"
    with tarfile.open(found["webdataset"] / "shards/000000.tar") as archive:
        assert archive.getnames() == [f"{row['image_id']}.{kind}" for kind in ("png", "json")]
        about = json.load(archive.extractfile(archive.getmembers()[1]))  # type: ignore[arg-type]
    assert (about["note"], about["sha256"]) == ("x", row["sha256"])


@every_format
def test_a_column_of_broken_text_keeps_no_picture_back(tmp_path: Path, format: Format) -> None:
    note = pa.array([b"fine", b"\xff\xfe"]).cast(pa.string(), safe=False)
    notes = pa.ListArray.from_arrays(pa.array([0, 1, 2]), note)
    columns = {"prompt": ["a", "b"], "note": note, "notes": notes}
    plan, output = plan_run(tmp_path, columns, format=format)
    render(plan, output, plan.shards)
    summary = write_report(plan, output)
    assert (summary.is_exact, summary.num_ok) == (True, 2)


def test_a_shard_that_is_committed_is_not_rendered_again(
    planned: tuple[Plan, OutputFolder],
) -> None:
    plan, output = planned
    renderer = PlainRenderer()
    render(plan, output, plan.shards[:1], lambda: renderer)
    render(plan, output, plan.shards, lambda: renderer)
    assert sorted(renderer.rendered) == sorted(prompt for prompt in PROMPTS if prompt)


class FailingRenderer(PlainRenderer):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    async def render(self, request: CanonicalRequest) -> GeneratedImage:
        raise self._error


def test_a_picture_that_fails_is_a_row_with_its_error(planned: tuple[Plan, OutputFolder]) -> None:
    plan, output = planned
    render(plan, output, ["000000"], lambda: FailingRenderer(RuntimeError("no <luck>")))
    render(plan, output, ["000001"])
    summary = write_report(plan, output)
    assert summary.is_exact
    assert (summary.num_ok, summary.num_error) == (2, 2)
    assert "RuntimeError: no &lt;luck&gt;" in output.read("report.html").decode()


@every_format
def test_what_failed_can_be_tried_again(tmp_path: Path, format: Format) -> None:
    prompts = ["a", "fail <this>", "c", "d"]
    plan, output = plan_run(tmp_path, {"prompt": prompts}, format=format)
    render(plan, output, plan.shards)
    assert pending_shards(plan, output) == {}
    assert pending_shards(plan, output, retry_failed=True) == {"000000": 1}

    class Better(PlainRenderer):
        async def render(self, request: CanonicalRequest) -> GeneratedImage:
            image = await super().render(request.model_copy(update={"prompt": "better"}))
            return image.model_copy(
                update={"provenance": image.provenance.model_copy(update={"request": request})}
            )

    renderer = Better()
    render(plan, output, ["000000"], lambda: renderer, retry_failed=True)
    assert renderer.rendered == ["better"]
    summary = write_report(plan, output)
    assert (summary.num_ok, summary.num_error, summary.is_exact) == (4, 0, True)
    load: dict[str, Any] = {"files": load_files, "parquet": load_parquet}
    loaded = load.get(format, load_webdataset)(tmp_path / "out", tmp_path / "cache")
    assert sorted(loaded) == sorted(prompts)


def test_a_dead_engine_commits_nothing(planned: tuple[Plan, OutputFolder]) -> None:
    plan, output = planned
    with pytest.raises(EngineDead):
        render(plan, output, ["000000"], lambda: FailingRenderer(EngineDead("gone")))
    assert list(pending_shards(plan, output)) == plan.shards


class Killed(BaseException):
    """Stands for the end of a process."""


KILLED = threading.Event()


class KillingRenderer(PlainRenderer):
    """Ends its process for one of its prompts, and for whatever is in it at that time."""

    def __init__(self, kills: str) -> None:
        super().__init__()
        self._kills = kills

    async def render(self, request: CanonicalRequest) -> GeneratedImage:
        if request.prompt == self._kills:
            KILLED.set()
            raise Killed
        return await super().render(request)


class LedgerOfTheKilled(Ledger):
    """Hears nothing more of a process that has ended, whose tasks may run on for a moment here."""

    async def enter(self, shard: str, group: int) -> None:
        if not KILLED.is_set():
            await super().enter(shard, group)

    async def leave(self, shard: str) -> None:
        if not KILLED.is_set():
            await super().leave(shard)


def test_a_row_that_kills_is_found_and_given_up(tmp_path: Path) -> None:
    prompts = [f"p{i}" for i in range(16)]
    plan, output = plan_run(tmp_path, {"prompt": prompts}, shard_rows=8)
    ledger = LedgerOfTheKilled()
    num_deaths = 0
    while pending := pending_shards(plan, output):
        KILLED.clear()
        try:
            render(plan, output, pending, lambda: KillingRenderer("p3"), ledger=ledger)
        except Killed:
            num_deaths += 1
    # In company of 8, 4 and 2, and three times alone.
    assert num_deaths == 6
    summary = write_report(plan, output)
    assert (summary.num_ok, summary.num_error, summary.is_exact) == (15, 1, True)
    rows = output.read_table("metadata/000000.parquet").to_pylist()
    assert [row["prompt"] for row in rows if row["status"] == "error"] == ["p3"]
    assert "died of it 3 times, alone" in rows[3]["error"]


class SlowFolder(OutputFolder):
    """The process ends before it has written the second shard's metadata, if it is to end."""

    def write_table(self, name: str, table: pa.Table) -> None:
        if name == "metadata/000001.parquet" and KILLED.wait(1):
            raise OSError("its process is gone")
        super().write_table(name, table)


def test_who_only_waits_to_be_committed_is_not_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batch.render.OutputFolder", SlowFolder)
    prompts = [f"p{i}" for i in range(10)]
    plan, output = plan_run(tmp_path, {"prompt": prompts}, shard_rows=8)
    ledger = LedgerOfTheKilled()
    while pending := pending_shards(plan, output):
        KILLED.clear()
        with contextlib.suppress(Killed):  # the shard of two is rendered before the one that kills
            shards = [*pending][::-1]
            render(plan, output, shards, lambda: KillingRenderer("p3"), ledger=ledger)
    tables = output.read_tables(["metadata/000000.parquet", "metadata/000001.parquet"])
    rows = [row for table in tables for row in table.to_pylist()]
    assert [row["prompt"] for row in rows if row["status"] == "error"] == ["p3"]


@every_format
def test_a_second_try_that_is_killed_loses_nothing(tmp_path: Path, format: Format) -> None:
    plan, output = plan_run(tmp_path, {"prompt": ["a", "fail <this>", "c"]}, format=format)
    render(plan, output, plan.shards)
    before = files(tmp_path / "out")
    with pytest.raises(Killed):
        render(plan, output, plan.shards, lambda: KillingRenderer("fail <this>"), retry_failed=True)
    assert files(tmp_path / "out") == before


def test_what_is_missing_or_foreign_is_counted(planned: tuple[Plan, OutputFolder]) -> None:
    plan, output = planned
    render(plan, output, plan.shards[:1])
    assert reconcile(plan, output)[0].num_missing == 2
    table = output.read_table("metadata/000000.parquet")
    output.write_table("metadata/000001.parquet", table)
    summary, _ = reconcile(plan, output)
    assert (summary.num_missing, summary.num_unexpected, summary.is_exact) == (2, 2, False)
