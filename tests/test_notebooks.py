import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from tests.conftest import REPO, free_port

NOTEBOOKS = sorted((REPO / "notebooks").glob("*.ipynb"))


@pytest.mark.cluster
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs_from_top_to_bottom(
    notebook: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORT", str(free_port()))
    content = nbformat.read(notebook, as_version=4)
    kept = plain_values(content)
    folder = {"metadata": {"path": str(notebook.parent)}}  # where Jupyter runs it
    NotebookClient(content, timeout=240, resources=folder).execute()
    assert plain_values(content) == kept


def plain_values(content: NotebookNode) -> list[str]:
    """What cells gave that is the same in every run: True, an HTTP status, an error's text."""
    outputs = [output for cell in content.cells for output in cell.get("outputs", [])]
    texts = [output.get("data", {}).get("text/plain", "") for output in outputs]
    return [text for text in texts if re.match(r"True|False|\(\d{3},", text)]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_is_kept_with_what_it_gave_and_small(notebook: Path) -> None:
    content = nbformat.read(notebook, as_version=4)
    counts = [cell.execution_count for cell in content.cells if cell.cell_type == "code"]
    assert counts == [*range(1, len(counts) + 1)]
    assert notebook.stat().st_size < 500_000
    outputs = [output for cell in content.cells for output in cell.get("outputs", [])]
    # Progress bars and warnings, which say where somebody's files are.
    assert not [each.text for each in outputs if each.get("name") == "stderr"]
    texts = [each.get("text") or each.get("data", {}).get("text/plain", "") for each in outputs]
    assert not [text for text in texts if re.search(r"(^|\s)/\w+/", text)]
