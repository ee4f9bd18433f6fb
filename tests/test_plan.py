import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch.output_folder import OutputFolder
from batch.plan import DifferentRun, Plan, RunSettings, make_plan, read_plan, shard_file
from batch.prompts import InputUnusable, PromptTable
from batch.records import PlannedImage, kept_columns, planned_images
from shared.model_profile import ModelProfile
from tests.bulk import MALFORMED, a_thousand_rows


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


def images_of(folder: Path, shard: str = "000000") -> list[PlannedImage]:
    return planned_images(OutputFolder(str(folder)).read_table(shard_file(shard)))


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
    images = [image for shard in plan.shards for image in images_of(tmp_path / "out", shard)]
    assert [image.request.prompt for image in images] == [f"p{i}" for i in range(7)]
    assert [image.source_row for image in images] == list(range(7))
    assert plan.shard_sizes == [3, 3, 1]
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
        return [image.request.seed for image in images_of(tmp_path / folder)]

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
    first = images_of(tmp_path / "out")[0]
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
    images = images_of(tmp_path / "out")
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
    second = images_of(tmp_path / "out")[1].request
    assert (second.prompt, second.seed, second.width) == ("b", 77, 64)


def test_a_file_of_another_type_loses_only_its_rows(tmp_path: Path, profile: ModelProfile) -> None:
    folder = tmp_path / "input"
    folder.mkdir()
    pq.write_table(pa.table({"prompt": ["a"], "seed": [1]}), folder / "0.parquet")
    pq.write_table(pa.table({"prompt": ["b"], "seed": ["one"]}), folder / "1.parquet")
    pq.write_table(pa.table({"prompt": [3], "seed": [3]}), folder / "2.parquet")
    assert plan_into(tmp_path / "out", str(folder), profile).num_rejected == 2
    rejected = pq.read_table(tmp_path / "out/rejected/000000.parquet").to_pylist()
    assert [(row["source_row"], row["field"]) for row in rejected] == [(1, "seed"), (2, "prompt")]


def test_text_that_is_no_text_is_rejected(tmp_path: Path, profile: ModelProfile) -> None:
    broken = pa.array([b"fine", b"\xff\xfe", None, "schön".encode()]).cast(pa.string(), safe=False)
    plan = plan_into(tmp_path / "out", write_input(tmp_path, {"prompt": broken}), profile)
    assert (plan.num_planned, plan.num_rejected) == (2, 2)
    assert images_of(tmp_path / "out")[1].request.prompt == "schön"
    rejected = pq.read_table(tmp_path / "out/rejected/000000.parquet").to_pylist()
    assert "Unicode" in rejected[0]["reason"]


@pytest.mark.parametrize(
    "weights",
    [
        [{"ink": 0.8}, {"gold": 1}, None],  # a struct of both in each row
        pa.array(
            [[("ink", 0.8), ("gold", math.nan)], [("gold", 1)], []],
            pa.map_(pa.string(), pa.float32()),
        ),
        ["ink:0.8", "gold:1", ""],
    ],
    ids=["struct", "map", "text"],
)
def test_weights_of_adapters_are_those_that_a_row_names(
    tmp_path: Path, profile: ModelProfile, weights: Any
) -> None:
    adapted = profile.model_copy(update={"adapters": {"ink": "a" * 8, "gold": "b" * 8}})
    source = write_input(tmp_path, {"prompt": ["a", "b", "c"], "lora": weights})
    assert plan_into(tmp_path / "out", source, adapted).num_rejected == 0
    found = [image.request.lora for image in images_of(tmp_path / "out")]
    assert found == [{"ink": pytest.approx(0.8)}, {"gold": 1}, {}]


def test_weights_that_are_none_are_rejected(tmp_path: Path, profile: ModelProfile) -> None:
    source = write_input(tmp_path, {"prompt": ["a", "b"], "lora": [[1, 2], [3]]})
    assert plan_into(tmp_path / "out", source, profile).num_rejected == 2


def test_a_field_may_have_a_column_of_another_name(tmp_path: Path, profile: ModelProfile) -> None:
    source = write_input(tmp_path, {"caption": ["a", "b"], "prompt": [1, 2], "status": ["x", "y"]})
    columns = {"prompt": "caption"}
    plan = make_plan(
        PromptTable(source, columns),
        OutputFolder(str(tmp_path / "out")),
        settings(source, profile, columns=columns),
    )
    assert [image.request.prompt for image in images_of(tmp_path / "out")] == ["a", "b"]
    shard = OutputFolder(str(tmp_path / "out")).read_table(shard_file(plan.shards[0]))
    assert kept_columns(shard).to_pydict() == {"input_prompt": [1, 2], "input_status": ["x", "y"]}
    with pytest.raises(DifferentRun, match=r"columns\.prompt"):
        plan_into(tmp_path / "out", source, profile)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": "text"}, "has no column 'text'; it has: prompt"),
        ({"style": "prompt"}, "'style' is not a field of a request; there are: prompt, negative"),
    ],
)
def test_a_column_that_cannot_be_is_refused(
    tmp_path: Path, columns: dict[str, str], message: str
) -> None:
    with pytest.raises(InputUnusable, match=message):
        PromptTable(write_input(tmp_path, {"prompt": ["a"]}), columns)


def test_other_columns_come_along(tmp_path: Path, profile: ModelProfile) -> None:
    folder = tmp_path / "input"
    folder.mkdir()
    tags = pa.array([["x"], None, ["y", "z"]])
    pq.write_table(pa.table({"prompt": ["a", "", "c"], "tags": tags}), folder / "0.parquet")
    pq.write_table(pa.table({"prompt": ["d"], "rank": [1.5]}), folder / "1.parquet")
    plan = plan_into(tmp_path / "out", str(folder), profile)
    kept = kept_columns(OutputFolder(str(tmp_path / "out")).read_table(shard_file(plan.shards[0])))
    assert kept.to_pydict() == {"tags": [["x"], ["y", "z"], None], "rank": [None, None, 1.5]}


def test_other_columns_have_to_be_of_one_type(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["a"], "rank": [1]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"prompt": ["a"], "rank": ["one"]}), tmp_path / "1.parquet")
    with pytest.raises(InputUnusable, match=r"column 'rank' of .* differs between files"):
        PromptTable(str(tmp_path))


def test_a_row_may_ask_for_several_pictures(tmp_path: Path, profile: ModelProfile) -> None:
    source = write_input(
        tmp_path,
        {
            "prompt": ["a", "b", "c", "d"],
            "seed": [5, None, None, None],
            "num_images_per_prompt": [2, 2, None, 0],
            "id": [10, 11, 12, 13],
        },
    )
    plan = plan_into(tmp_path / "out", source, profile, num_images_per_prompt=3, shard_rows=8)
    images = images_of(tmp_path / "out")
    assert [(image.source_row, image.image_index) for image in images] == [
        (row, index) for row, number in enumerate([2, 2, 3]) for index in range(number)
    ]
    assert [image.request.seed for image in images[:2]] == [5, 6]
    assert len({image.request.seed for image in images}) == 7
    assert len({image.image_id for image in images}) == 7
    shard = OutputFolder(str(tmp_path / "out")).read_table(shard_file(plan.shards[0]))
    assert shard.column("id").to_pylist() == [10, 10, 11, 11, 12, 12, 12]
    rejected = pq.read_table(tmp_path / "out/rejected/000000.parquet").to_pylist()
    assert [row["field"] for row in rejected] == ["num_images_per_prompt"]


def test_only_the_first_rows_may_count(tmp_path: Path, profile: ModelProfile) -> None:
    source = write_input(tmp_path, {"prompt": ["a", "", "c", "d"]})
    plan = plan_into(tmp_path / "out", source, profile, limit=3)
    assert (plan.num_planned, plan.num_rejected) == (2, 1)
    with pytest.raises(DifferentRun, match="limit = 3, not None"):
        plan_into(tmp_path / "out", source, profile)


def test_a_run_that_is_being_planned_keeps_others_out(
    tmp_path: Path, profile: ModelProfile
) -> None:
    source = write_input(tmp_path, {"prompt": [f"p{i}" for i in range(7)]})
    plan_into(tmp_path / "out", source, profile)
    (tmp_path / "out/plan/run.json").unlink()
    with pytest.raises(DifferentRun, match="seed = 0, not 1"):
        plan_into(tmp_path / "out", source, profile, seed=1)
    assert plan_into(tmp_path / "out", source, profile).num_planned == 7


def test_a_plan_that_fails_leaves_the_folder_to_others(
    tmp_path: Path, profile: ModelProfile
) -> None:
    source = write_input(tmp_path, {"prompt": ["a"]})
    table, asked = PromptTable(source), settings(source, profile)
    Path(source).unlink()
    with pytest.raises(InputUnusable):
        make_plan(table, OutputFolder(str(tmp_path / "out")), asked)
    write_input(tmp_path, {"prompt": ["b"]})
    assert plan_into(tmp_path / "out", source, profile).num_planned == 1


def test_planning_again_changes_nothing(tmp_path: Path, profile: ModelProfile) -> None:
    source = write_input(tmp_path, {"prompt": ["a", "b"]})
    plan = plan_into(tmp_path / "out", source, profile)
    before = files(tmp_path / "out")
    assert plan_into(tmp_path / "out", source, profile) == plan
    assert files(tmp_path / "out") == before


def test_an_interrupted_plan_is_made_again(tmp_path: Path, profile: ModelProfile) -> None:
    source = write_input(tmp_path, {"prompt": [f"p{i}" for i in range(7)]})
    plan_into(tmp_path / "out", source, profile)
    whole = files(tmp_path / "out")
    (tmp_path / "out/plan/run.json").unlink()
    (tmp_path / "out/plan/shards/000001.parquet").unlink()
    assert read_plan(OutputFolder(str(tmp_path / "out"))) is None
    plan_into(tmp_path / "out", source, profile)
    assert files(tmp_path / "out") == whole


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
    for name, reason in {"missing": "there is no /", "text": "as Parquet"}.items():
        with pytest.raises(InputUnusable, match=reason):
            PromptTable(str(tmp_path / f"{name}.parquet"))


def test_an_input_without_prompts_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(InputUnusable, match="no column 'prompt'; it has: caption, id"):
        PromptTable(write_input(tmp_path, {"caption": ["a"], "id": [1]}))


def test_two_hundred_malformed_rows_of_a_thousand_in_ten_ways(
    tmp_path: Path, profile: ModelProfile
) -> None:
    source = write_input(tmp_path, a_thousand_rows())
    plan = plan_into(tmp_path / "out", source, profile, shard_rows=100)
    assert (plan.num_planned, plan.num_rejected) == (800, 200)
    rejected = pq.read_table(tmp_path / "out" / plan.rejected_files[0]).to_pylist()
    assert [row["source_row"] for row in rejected] == list(range(0, 1000, 5))
    for number, wrong in enumerate(MALFORMED):
        assert {row["field"] for row in rejected[number::10]} == set(wrong)
        assert all(row["reason"] for row in rejected[number::10])
