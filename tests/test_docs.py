"""What the documents point at is there."""

import re
from pathlib import Path

import pytest

from tests.conftest import REPO

DOCUMENTS = [REPO / "README.md", *(REPO / "docs").glob("*.md"), *(REPO / "models").rglob("*.md")]
NOTEBOOKS = [*(REPO / "notebooks").glob("*.ipynb")]
LINK = re.compile(r"\]\(([^)\s]+)\)")
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


def anchors(document: Path) -> set[str]:
    """Of a document's headings, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", prose, re.M)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}
