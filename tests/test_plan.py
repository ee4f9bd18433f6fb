from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch.output_folder import OutputFolder
from batch.plan import (
    DifferentRun,
    InputUnusable,
    Plan,
    PromptTable,
    RunSettings,
    make_plan,
    read_plan,
    read_shard,
)
from shared.model_profile import ModelProfile


def write_input(folder: Path, columns: dict[str, Any]) -> str:
    folder.mkdir(exist_ok=True)
    file = folder / "prompts.parquet"
    pq.write_table(pa.table(columns), file)
    return str(file)


def settings(source: str, profile: ModelProfile, **changed: Any) -> RunSettings:
    fields = {"seed": 0, "shard_rows": 3, "dtype": "auto", "model": profile}
    return RunSettings(input_files=PromptTable(source).files(), **fields | changed)


def plan_into(folder: Path, source: str, profile: ModelProfile, **changed: Any) -> Plan:
    return make_plan(
        PromptTable(source), OutputFolder(str(folder)), settings(source, profile, **changed)
    )


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_every_row_becomes_one_planned_picture(tmp_path: Path, profile: ModelProfile) -> None:
    source = write_input(
        tmp_path, {"prompt": [f"p{i}" for i in range(7)], "seed": [5, None, 7, 8, 9, 10, 11]}
    )
    plan = plan_into(tmp_path / "out", source, profile)
    assert (plan.num_planned, plan.num_rejected, plan.num_shards) == (7, 0, 3)
    output = OutputFolder(str(tmp_path / "out"))
    images = [image for shard in plan.shards for image in read_shard(output, shard)]
    assert [image.request.prompt for image in images] == [f"p{i}" for i in range(7)]
    assert [image.source_row for image in images] == list(range(7))
    assert plan.num_images(plan.shards) == 7
    assert plan.num_images(["000000", "000002"]) == 4
    assert plan.num_images(["000001"]) == 3
    assert [image.request.seed for image in images][2:] == [7, 8, 9, 10, 11]
    assert len({image.image_id for image in images}) == 7


def test_equal_prompts_get_different_seeds_and_the_same_ones_again(
    tmp_path: Path, profile: ModelProfile
) -> None:
    source = write_input(tmp_path, {"prompt": ["same"] * 6})
    plan_into(tmp_path / "a", source, profile)
    plan_into(tmp_path / "b", source, profile)
    plan_into(tmp_path / "c", source, profile, seed=1)
    assert files(tmp_path / "a") == files(tmp_path / "b")

    def seeds(folder: str) -> list[int]:
        output = OutputFolder(str(tmp_path / folder))
        return [image.request.seed for image in read_shard(output, "000000")]

    assert len(set(seeds("a"))) == 3
    assert seeds("a") != seeds("c")


def test_bad_rows_are_rejected_with_their_reason(tmp_path: Path, profile: ModelProfile) -> None:
    source = write_input(
        tmp_path,
        {
            "prompt": ["fine", "", None, "fine too", "odd size"],
            "width": [None, 256, 256, 128.0, 100],
            "guidance_scale": [float("nan"), 1.0, 1.0, 2.0, 1.0],
        },
    )
    plan = plan_into(tmp_path / "out", source, profile)
    assert (plan.num_planned, plan.num_rejected) == (2, 3)
    rejected = pq.read_table(tmp_path / "out/rejected/000000.parquet").to_pylist()
    assert [(row["source_row"], row["field"]) for row in rejected] == [
        (1, "prompt"),
        (2, "prompt"),
        (4, "width"),
    ]
    assert rejected[2]["reason"] == "must be a multiple of 8"
    assert '"odd size"' in rejected[2]["row"]
    first = read_shard(OutputFolder(str(tmp_path / "out")), "000000")[0]
    assert (first.request.width, first.request.guidance_scale) == (256, 4.0)


def test_prompts_that_are_not_text_are_rejected(tmp_path: Path, profile: ModelProfile) -> None:
    source = write_input(tmp_path, {"prompt": [1, 2]})
    assert plan_into(tmp_path / "out", source, profile).num_rejected == 2


def test_a_folder_of_files_is_read_in_order(tmp_path: Path, profile: ModelProfile) -> None:
    folder = tmp_path / "input"
    folder.mkdir()
    for name in ("b", "a", "c"):
        pq.write_table(pa.table({"prompt": [name]}), folder / f"{name}.parquet")
    plan_into(tmp_path / "out", str(folder), profile)
    images = read_shard(OutputFolder(str(tmp_path / "out")), "000000")
    assert [image.request.prompt for image in images] == ["a", "b", "c"]


def test_files_of_a_folder_may_differ_in_their_columns(
    tmp_path: Path, profile: ModelProfile
) -> None:
    folder = tmp_path / "input"
    folder.mkdir()
    nothing = pa.array([None], pa.null())
    pq.write_table(pa.table({"prompt": ["a"], "seed": nothing}), folder / "0.parquet")
    pq.write_table(pa.table({"prompt": ["b"], "seed": [77], "width": [64]}), folder / "1.parquet")
    plan_into(tmp_path / "out", str(folder), profile)
    second = read_shard(OutputFolder(str(tmp_path / "out")), "000000")[1].request
    assert (second.prompt, second.seed, second.width) == ("b", 77, 64)


def test_columns_that_cannot_be_one_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["a"], "seed": [1]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"prompt": ["a"], "seed": ["one"]}), tmp_path / "1.parquet")
    with pytest.raises(InputUnusable, match="seed"):
        PromptTable(str(tmp_path))


def test_text_that_is_no_text_is_refused(tmp_path: Path, profile: ModelProfile) -> None:
    broken = pa.array([b"\xff\xfe"]).cast(pa.string(), safe=False)
    source = write_input(tmp_path, {"prompt": broken})
    with pytest.raises(InputUnusable, match="utf-8"):
        plan_into(tmp_path / "out", source, profile)


def test_planning_again_changes_nothing(tmp_path: Path, profile: ModelProfile) -> None:
    source = write_input(tmp_path, {"prompt": ["a", "b"], "note": ["x", "y"]})
    plan = plan_into(tmp_path / "out", source, profile)
    before = files(tmp_path / "out")
    assert plan_into(tmp_path / "out", source, profile) == plan
    assert files(tmp_path / "out") == before
    assert plan.unused_columns == ("note",)


def test_an_interrupted_plan_is_made_again(tmp_path: Path, profile: ModelProfile) -> None:
    source = write_input(tmp_path, {"prompt": [f"p{i}" for i in range(7)]})
    plan_into(tmp_path / "whole", source, profile)
    plan_into(tmp_path / "cut", source, profile, shard_rows=1)
    (tmp_path / "cut/plan/run.json").unlink()
    assert read_plan(OutputFolder(str(tmp_path / "cut"))) is None
    plan_into(tmp_path / "cut", source, profile)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"seed": 1}, "seed"),
        ({"shard_rows": 4}, "shard_rows"),
        ({"dtype": "bfloat16"}, "dtype"),
    ],
)
def test_another_run_into_the_same_folder_is_refused(
    tmp_path: Path, profile: ModelProfile, changed: dict[str, Any], key: str
) -> None:
    source = write_input(tmp_path, {"prompt": ["a"]})
    plan_into(tmp_path / "out", source, profile)
    with pytest.raises(DifferentRun) as caught:
        plan_into(tmp_path / "out", source, profile, **changed)
    assert caught.value.key == key


def test_another_model_is_refused(tmp_path: Path, profile: ModelProfile) -> None:
    source = write_input(tmp_path, {"prompt": ["a"]})
    plan_into(tmp_path / "out", source, profile)
    other = profile.model_copy(update={"fingerprint": "another"})
    with pytest.raises(DifferentRun, match=r"model\.fingerprint"):
        plan_into(tmp_path / "out", source, other)


def test_another_input_is_refused(tmp_path: Path, profile: ModelProfile) -> None:
    # Of the same size and with the same column statistics: only the content differs.
    source = write_input(tmp_path, {"prompt": ["aaa", "mmm", "zzz"]})
    plan_into(tmp_path / "out", source, profile)
    write_input(tmp_path, {"prompt": ["aaa", "nnn", "zzz"]})
    with pytest.raises(DifferentRun, match="input_files"):
        plan_into(tmp_path / "out", source, profile)


def test_an_input_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("no Parquet")
    for location in (tmp_path / "missing.parquet", tmp_path / "text.parquet"):
        with pytest.raises(InputUnusable, match="as Parquet"):
            PromptTable(str(location))


def test_an_input_without_prompts_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(InputUnusable, match="no column 'prompt'; its columns: caption, id"):
        PromptTable(write_input(tmp_path, {"caption": ["a"], "id": [1]}))
