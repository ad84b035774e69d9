"""The five lines of the README in a notebook: progress and pictures appear in it."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

CELL = """
import hardpatch
plan = hardpatch.plan({images!r}, hours=0.003, **{{"model.width": 32, "verdict.images": 4}})
run = hardpatch.pretrain(plan, out={out!r})
print(run.verdict.learned)
run
"""


@pytest.mark.filterwarnings("default")  # of the notebook's own packages
def test_progress_and_pictures_in_a_notebook(images: Path, tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook()  # type: ignore[no-untyped-call]
    source = CELL.format(images=str(images), out=str(tmp_path / "run"))
    cell = nbformat.v4.new_code_cell(source)  # type: ignore[no-untyped-call]
    notebook.cells.append(cell)
    NotebookClient(notebook, timeout=300).execute()
    shown = [output["data"] for output in cell.outputs if output["output_type"] == "display_data"]
    assert "<progress" in shown[0]["text/html"]
    assert "loss" in shown[0]["text/html"]
    (result,) = (output["data"] for output in cell.outputs if output["output_type"] == "execute_result")
    assert "Learned:" in result["text/html"]
    assert "data:image/png;base64," in result["text/html"]
    text = "".join(output["text"] for output in cell.outputs if output.get("name") == "stdout")
    assert text.strip() in ("yes", "barely", "no")
