"""The bulk door without Ray: shards rendered in this process, then held against the plan."""

import asyncio
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch.output_folder import OutputFolder
from batch.plan import Plan, RunSettings, make_plan, read_shard
from batch.prompts import PromptTable
from batch.records import planned_images
from batch.render import ShardRenderer, pending_shards
from batch.report import reconcile, write_report
from shared.config import EngineConfig, ModelConfig
from shared.errors import EngineDead
from shared.image_codec import read_provenance
from shared.model_profile import ModelProfile
from shared.renderer import Renderer
from shared.request import CanonicalRequest, GeneratedImage


@pytest.fixture
def planned(tmp_path: Path, profile: ModelProfile) -> tuple[Plan, OutputFolder]:
    source = tmp_path / "prompts.parquet"
    table = pa.table(
        {
            "prompt": ["twin <peaks>", "", "a lake", "a forest", "dunes"],
            "width": [64] * 5,
            "height": [64] * 5,
            "num_inference_steps": [4] * 5,
            "rating": [0.5, 1.5, 2.5, 3.5, 4.5],
        }
    )
    pq.write_table(table, source)
    prompts = PromptTable(str(source))
    output = OutputFolder(str(tmp_path / "out"))
    settings = RunSettings(
        input_files=prompts.files(), model=profile, dtype="auto", seed=0, shard_rows=2
    )
    return make_plan(prompts, output, settings), output


async def render(output: OutputFolder, shards: list[str]) -> ShardRenderer:
    renderer = ShardRenderer(output.location, ModelConfig())
    await asyncio.gather(*map(renderer.render, shards))
    return renderer


def test_a_run_is_complete_and_exact(planned: tuple[Plan, OutputFolder]) -> None:
    plan, output = planned
    assert pending_shards(plan, output) == ["000000", "000001"]
    asyncio.run(render(output, plan.shards))
    assert pending_shards(plan, output) == []
    summary = write_report(plan, output)
    assert summary.is_exact
    assert (summary.num_ok, summary.num_rejected, summary.num_error) == (4, 1, 0)
    assert json.loads(output.read("summary.json"))["num_ok"] == 4
    page = output.read("report.html").decode()
    assert page.count("<figure>") == 4
    assert "twin &lt;peaks&gt;" in page
    assert "row 1: prompt: must not be empty" in page


def test_metadata_says_what_each_file_is(planned: tuple[Plan, OutputFolder]) -> None:
    plan, output = planned
    asyncio.run(render(output, plan.shards[:1]))
    rows = output.read_table("metadata/000000.parquet").to_pylist()
    assert [row["image_id"] for row in rows] == [
        image.image_id for image in planned_images(read_shard(output, "000000"))
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
    asyncio.run(render(output, plan.shards))
    rows = output.read_table("metadata/000001.parquet").to_pylist()
    request = planned_images(read_shard(output, "000001"))[0].request
    with Renderer(ModelConfig(), EngineConfig()) as renderer:
        online = asyncio.run(renderer.render(request))
    assert online.sha256 == rows[0]["sha256"]
    assert online.data == output.read(f"images/{rows[0]['file_name']}")


def test_a_shard_rendered_twice_is_the_same_shard(planned: tuple[Plan, OutputFolder]) -> None:
    plan, output = planned

    def digests() -> list[str]:
        column = output.read_table("metadata/000000.parquet").column("sha256")
        return [str(each) for each in column.to_pylist()]

    asyncio.run(render(output, plan.shards[:1]))
    first = digests()
    asyncio.run(render(output, plan.shards[:1]))
    assert digests() == first


class FailingRenderer:
    """Renders nothing: fails each request with the error it was made with."""

    def __init__(self, profile: ModelProfile, error: Exception) -> None:
        self.profile = profile
        self._error = error

    async def render(self, request: CanonicalRequest) -> GeneratedImage:
        raise self._error


def failing(output: OutputFolder, profile: ModelProfile, error: Exception) -> ShardRenderer:
    renderer = ShardRenderer(output.location, ModelConfig())
    renderer._renderer.close()
    renderer._renderer = FailingRenderer(profile, error)  # type: ignore[assignment]
    return renderer


def test_a_picture_that_fails_is_a_row_with_its_error(
    planned: tuple[Plan, OutputFolder], profile: ModelProfile
) -> None:
    plan, output = planned

    async def render_failing() -> None:
        await failing(output, profile, RuntimeError("no <luck>")).render("000000")
        await render(output, ["000001"])

    asyncio.run(render_failing())
    summary = write_report(plan, output)
    assert summary.is_exact
    assert (summary.num_ok, summary.num_error) == (2, 2)
    assert "RuntimeError: no &lt;luck&gt;" in output.read("report.html").decode()


def test_a_dead_engine_commits_nothing(
    planned: tuple[Plan, OutputFolder], profile: ModelProfile
) -> None:
    plan, output = planned

    async def render_dead() -> None:
        await failing(output, profile, EngineDead("gone")).render("000000")

    with pytest.raises(EngineDead):
        asyncio.run(render_dead())
    assert pending_shards(plan, output) == plan.shards


def test_what_is_missing_or_foreign_is_counted(planned: tuple[Plan, OutputFolder]) -> None:
    plan, output = planned
    asyncio.run(render(output, plan.shards[:1]))
    assert reconcile(plan, output).num_missing == 2
    table = output.read_table("metadata/000000.parquet")
    output.write_table("metadata/000001.parquet", table)
    summary = reconcile(plan, output)
    assert (summary.num_missing, summary.num_unexpected, summary.is_exact) == (2, 2, False)
