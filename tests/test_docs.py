"""What the documents point at is there, and the commands in them can be given."""

import contextlib
import functools
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

import jobs.render
import serving.__main__
from tests.conftest import REPO

DOCUMENTS = [REPO / "README.md", *(REPO / "docs").glob("*.md"), *(REPO / "models").rglob("*.md")]
NOTEBOOKS = [*(REPO / "notebooks").glob("*.ipynb")]
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^```\w*\n(.*?)^```|`([^`]+)`", re.M | re.S)
PROGRAM = re.compile(r"\bpython (?:-m )?(benchmarks/\w+\.py|serving|jobs\.render)\b(.*?)(?= -- |$)")
FILE = re.compile(
    r"\b(?:benchmarks|batch|deploy|docs|examples|jobs|models|notebooks|serving|shared|tests)"
    r"/[\w./-]+\.(?:py|md|yaml|ipynb|parquet|safetensors)\b"
)


@pytest.mark.parametrize("document", [*DOCUMENTS, *NOTEBOOKS], ids=lambda file: file.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in LINK.findall(document.read_text()):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


@pytest.mark.parametrize("document", [*DOCUMENTS, *NOTEBOOKS], ids=lambda file: file.name)
def test_files_that_are_named_are_there(document: Path) -> None:
    for name in FILE.findall(document.read_text()):
        assert (REPO / name).exists(), name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.name)
def test_programs_have_the_options_that_are_named(document: Path) -> None:
    for command in commands(document):
        for program, options in PROGRAM.findall(command):
            for option in re.findall(r"--[a-z][\w-]*", options):
                is_there = re.search(rf"{option}(?![\w-])", text_about(program))
                assert option == "--help" or is_there, command


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.name)
def test_make_has_the_targets_and_tests_that_are_named(document: Path) -> None:
    targets = re.findall(r"^([a-z]+):", (REPO / "Makefile").read_text(), re.M)
    names = "".join(file.read_text() for file in (REPO / "tests").glob("test_*.py"))
    for command in commands(document):
        for wanted in re.findall(r"^make ([a-z]+)", command):
            assert wanted in targets, command
        for first, second in re.findall(r"^make test .*-k (?:'([^']+)'|(\w+))", command):
            for word in (first or second).split(" or "):
                assert re.search(rf"def test_\w*{word}", names), command


@pytest.mark.parametrize("name", ["README.md", "docs/engine.md"])
def test_code_of_a_document_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From top to bottom, but what asks a service: tests/test_service.py does that."""
    (tmp_path / "models").symlink_to(REPO / "models")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (REPO / name).read_text(), re.M | re.S)
    code = [block for block in blocks if "import requests" not in block]
    assert code
    exec("\n".join(code), {})
    for picture in tmp_path.glob("*.png"):
        assert len({*Image.open(picture).convert("RGB").getdata()}) > 1


def commands(document: Path) -> Iterator[str]:
    """Lines of code, and code within lines."""
    for block, inline in CODE.findall(document.read_text()):
        for line in block.replace("\\\n", " ").splitlines() or [inline]:
            yield " ".join(line.partition("  #")[0].split())


@functools.cache
def text_about(program: str) -> str:
    mains: dict[str, Callable[[list[str]], int]] = {
        "serving": serving.__main__.main,
        "jobs.render": jobs.render.main,
    }
    if program not in mains:  # a benchmark, which may take options of the doors too
        files = (program, "benchmarks/arguments.py", "shared/arguments.py")
        return "".join((REPO / each).read_text() for each in files)
    with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit):
        mains[program](["--help"])
    return printed.getvalue()


def anchors(document: Path) -> set[str]:
    """Of a document's headings, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", prose, re.M)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}
