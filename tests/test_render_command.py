"""`python -m jobs.render` where it needs no Ray, in this process."""

import asyncio
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from batch.estimate import estimate
from batch.render import CannotRender
from jobs.progress import Progress, duration
from jobs.render import main
from shared.config import EngineConfig, ModelConfig
from shared.image_codec import encode
from shared.model_files import describe_model
from shared.renderer import Renderer
from shared.request import CanonicalRequest
from tests.bulk import PlainRenderer, plan_run

FAILING = "fail <this>"  # to a PlainRenderer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "missing.parquet", "--output", "out"], "error: there is no missing.parquet"),
        (
            ["--input", "examples/prompts.parquet", "--output", "out", "--model", "/no/model"],
            "error: there is no folder /no/model",
        ),
        (
            ["--input", "examples/prompts.parquet", "--output", "/proc/out"],
            "error: cannot make the folder /proc/out: ",
        ),
        (
            ["--input", "examples/prompts.parquet", "--output", "out", "--via-service", "host:80"],
            "error: host:80 is no address: they begin with http:// or https://",
        ),
        (["--replay", "README.md"], "error: README.md: it is no picture"),
        (
            ["--replay", "docs/images/page.jpg"],
            "error: docs/images/page.jpg: the picture carries no provenance",
        ),
        (
            ["--input", "examples/prompts.parquet", "--output", "out", "--model", "tests"],
            "error: tests is not a diffusers folder: no model_index.json in it",
        ),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(message)


def test_an_output_in_the_input_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / "prompts.parquet")
    assert main(["--input", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith(f"error: --output {tmp_path}/out lies")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "out"], "--input and --output are required"),
        (["--column", "prompt"], "'prompt' is not like name=value"),
        (["--limit", "0"], "must be 1 or more"),
        (["--num-cpus", "-1"], "must be 0 or more"),
        (["--num-gpus", "nan"], "must be 0 or more"),
        (["--num-images-per-prompt", "101"], "must be 100 or less"),
        (["--adapter", "an ink=ink.safetensors"], "'an ink': letters, digits, - and _ make"),
    ],
)
def test_arguments_that_are_none_end_the_parser(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err


def test_a_run_that_breaks_off_says_in_a_line_why_and_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plan").write_text("in the way of the folder")
    assert main(["--input", "examples/prompts.parquet", "--output", str(tmp_path)]) == 1
    *_, why, how = capsys.readouterr().err.splitlines()
    assert re.match(r"error: \w+: .*plan", why)
    assert how == "The same command goes on with the shards that are not finished"


def test_a_picture_is_rendered_again_from_its_own_metadata(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = CanonicalRequest(
        prompt="twin peaks",
        seed=3,
        **describe_model(ModelConfig()).defaults.model_dump()
        | {"width": 64, "height": 64, "num_inference_steps": 4},
    )
    with Renderer(ModelConfig(), EngineConfig()) as renderer:
        image = asyncio.run(renderer.render(request))
    file = tmp_path / "picture.png"
    file.write_bytes(image.data)
    assert main(["--replay", str(file)]) == 0
    assert f"The same {len(image.data)} bytes" in capsys.readouterr().out

    with Image.open(file) as picture:
        spoilt = ImageOps.invert(picture)
    file.write_bytes(encode(spoilt, image.provenance))
    assert main(["--replay", str(file)]) == 3
    assert re.search(r"pixels that differ by up to \d+ of 255", capsys.readouterr().out)

    file.write_bytes(encode(spoilt, image.provenance.model_copy(update={"model_fingerprint": "f"})))
    assert main(["--replay", str(file)]) == 2
    assert "error: it was made with the weights f, and postcard" in capsys.readouterr().err


def test_a_picture_that_fails_ends_no_estimate(tmp_path: Path) -> None:
    plan, output = plan_run(tmp_path, {"prompt": [FAILING, "good", "good", "good"]})
    found = asyncio.run(estimate(plan, output, PlainRenderer()))
    assert (found.num_sampled, found.num_bytes > 0) == (4, True)


def test_a_sample_that_fails_whole_is_told(tmp_path: Path) -> None:
    plan, output = plan_run(tmp_path, {"prompt": [FAILING] * 4})
    with pytest.raises(CannotRender, match="none of the 4 pictures"):
        asyncio.run(estimate(plan, output, PlainRenderer()))


def test_lines_say_how_far_it_is_and_how_long_it_takes() -> None:
    counts: dict[str, int] | None = {"ok": 0, "error": 0}
    progress = Progress(40, lambda: counts)
    assert re.fullmatch(r"0 s: loading the model .*", progress.line() or "")
    counts = {"ok": 19, "error": 1}
    line = progress.line() or ""
    assert re.fullmatch(r"0 s: 20 of 40 pictures, [\d.]+/s, 1 failed, about 0 s left", line)
    counts = None
    assert progress.line() is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations_are_said_as_people_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text
