"""The tutorial runs from start to end, and its notebook is the same."""

from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_notebook_is_that_of_the_script() -> None:
    script, notebook = jupytext.read(DOCS / "tutorial.py"), nbformat.read(DOCS / "tutorial.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    one, other = ([(cell.cell_type, cell.source) for cell in each.cells] for each in (script, notebook))
    assert one == other
    assert not any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.filterwarnings("default")  # of the notebook's own packages
def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUTORIAL_OUT", str(tmp_path))
    monkeypatch.setenv("TUTORIAL_STEPS", "20")
    notebook = jupytext.read(DOCS / "tutorial.py")
    NotebookClient(notebook, timeout=300).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs)
    assert "learned: " in text
    assert "random weights " in text
    assert "(1, 65, 128)" in text
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
