"""Numbers and text of a table, against cases computed by hand."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from hardpatch.study import perform
from hardpatch.study import table as output
from hardpatch.study.page import write_page
from hardpatch.study.picture import draw
from hardpatch.study.plan import Plan, Study
from hardpatch.study.rows import StudyRow, Table
from hardpatch.study.table import collect
from hardpatch.study.values import MeanStd, RowResult
from tests.study.small import study_of

TABLE = Table(
    "tableX",
    "Four rows",
    (
        StudyRow("plain", paper={"finetune": 82.2}),
        StudyRow("mined | hard", paper={"finetune": 83.0, "finetune_large": 84.5}, default=True),
        StudyRow("DINO", paper={"finetune": 83.6}, cited=True),
        StudyRow("faster", settings={"method.frozen": "dino"}),
    ),
    ("finetune", "finetune_large", "speedup"),
    note="A slip of the print.",
)
PLAN = Plan(
    [],
    {
        ("tableX", "plain", False): "mae",
        ("tableX", "mined | hard", False): "hpm",
        ("tableX", "mined | hard", True): "hpm-large",
        ("tableX", "faster", False): "fast",
    },
    {("tableX", "DINO"): "the paper's figure, cited"},
)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Three seeds of the first row, one of the second, none of its larger encoder, two of the last."""
    results: dict[str, list[dict[str, float]]] = {
        "mae": [{"knn": 0.5, "finetune": 0.75}, {"knn": 0.6, "finetune": 0.75}, {"knn": 0.7, "finetune": 0.75}],
        "hpm": [{"knn": 0.25}],
        "hpm-large": [{"finetune": 0.8}, {"finetune": 0.9}, {"finetune": 1.0}],
        "fast": [{"speedup": 1.5}, {"speedup": 1.7}],
    }
    for name, seeds in results.items():
        for seed, metrics in enumerate(seeds):
            folder = tmp_path / "runs" / name / f"seed_{seed}"
            folder.mkdir(parents=True)
            (folder / "measurements.json").write_text(json.dumps({"metrics": metrics}))
    (tmp_path / "tableX").mkdir()
    return replace(study_of(), tables=(TABLE,), out=tmp_path, seeds=3)


def collected(study: Study) -> list[RowResult]:
    return collect(study, TABLE, PLAN, {"fast": "it diverged"})


def test_mean_and_standard_deviation_by_hand() -> None:
    metric = MeanStd((0.5, 0.6, 0.7))
    assert metric.mean == pytest.approx(0.6)
    assert metric.std == pytest.approx(0.1)  # (0.01 + 0 + 0.01) / (3 - 1)
    assert metric.standard_error == pytest.approx(0.1 / math.sqrt(3))
    assert str(metric) == "60.00 ± 10.00"
    assert str(MeanStd((0.1234,))) == "12.34"
    assert str(MeanStd((1.5, 1.7), factor=1.0)) == "1.60 ± 0.14"
    assert MeanStd((0.1234,)).std is None


@given(st.lists(st.floats(0.0, 1.0), min_size=2, max_size=6))
def test_mean_and_standard_deviation_by_their_definition(values: list[float]) -> None:
    metric = MeanStd(tuple(values))
    mean = sum(values) / len(values)
    assert metric.mean == pytest.approx(mean)
    assert metric.std is not None
    assert metric.std == pytest.approx(
        math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1)), abs=1e-7
    )


def test_missing_seeds_have_a_reason(study: Study) -> None:
    plain, mined, cited, fast = collected(study)
    assert plain.missing == ""
    assert mined.missing == "1 of 3 seeds: pending"
    assert cited.missing == "not run: the paper's figure, cited"
    assert fast.missing == "2 of 3 seeds: it diverged"
    assert set(plain.ours) == {"knn", "finetune"}
    assert set(mined.ours) == {"knn", "finetune_large"}
    assert mined.ours["finetune_large"].mean == pytest.approx(0.9)
    assert cited.ours == {}


def test_markdown(study: Study) -> None:
    text = output.markdown(study, TABLE, collected(study))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[:6] == [
        "|  | speedup | fine-tune | fine-tune, width 48 | k-NN | paper: fine-tune | paper: fine-tune, ViT-L |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| plain |  | 75.00 ± 0.00 |  | 60.00 ± 10.00 | 82.2 |  |",
        r"| **mined \| hard** (1 of 3 seeds: pending) |  |  | 90.00 ± 10.00 | 25.00 | 83.0 | 84.5 |",
        "| DINO (not run: the paper's figure, cited) |  |  |  |  | 83.6 |  |",
        "| faster (2 of 3 seeds: it diverged) | 1.60 ± 0.14 |  |  |  |  |  |",
    ]
    assert "A slip of the print." in text
    assert "over 3 seeds" in text
    assert "-35.00: one seed" in text


def test_a_detector_of_boxes_leaves_the_column_of_masks_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = {"box": {"AP": 0.25, "AP50": None}}
    monkeypatch.setattr("hardpatch.study.perform.detection", lambda *_: result)
    study, nothing = replace(study_of(), out=tmp_path), cast(Any, None)
    assert perform._MEASURES["detect"](study, nothing, nothing) == ({"box_ap": 0.25}, result)
    table = Table("tableY", "One row", (StudyRow("plain"),), ("box_ap", "mask_ap"))
    text = output.markdown(study, table, [RowResult(table.rows[0], {"box_ap": MeanStd((0.25,))}, "")])
    assert "|  | AP box |\n" in text
    assert "Not measured: AP mask, because the annotations have no masks." in text


def test_what_another_table_measured_is_no_column(study: Study) -> None:
    table = Table("tableY", "One row", (StudyRow("plain"),), ("linear",))
    result = RowResult(
        table.rows[0], {"linear": MeanStd((0.5,)), "knn": MeanStd((0.4,)), "speedup": MeanStd((1.0,))}, ""
    )
    assert output.columns(table, [result]) == (["linear", "knn"], [])


def test_json(study: Study) -> None:
    content: dict[str, Any] = json.loads(json.dumps(output.as_json(study, TABLE, collected(study)), allow_nan=False))
    plain, mined, cited, _ = content["rows"]
    assert plain["ours"]["knn"] == {
        "mean": pytest.approx(0.6),
        "std": pytest.approx(0.1),
        "seeds": 3,
        "values": [0.5, 0.6, 0.7],
    }
    assert mined["ours"]["knn"]["std"] is None
    assert mined["default"]
    assert mined["runs"] == ["hpm", "hpm-large"]
    assert plain["paper_percent"] == {"finetune": 82.2}
    assert cited["cited"]
    assert cited["missing"].startswith("not run")


def test_writing_leaves_no_partial_files(study: Study) -> None:
    output.write(study, TABLE, collected(study))
    write_page(study, [(TABLE, collected(study))])
    assert "## Four rows" in (study.out / "README.md").read_text()
    assert not list(study.out.rglob(".*"))


def test_picture(study: Study) -> None:
    path = draw(study, TABLE, collected(study))
    assert path == study.out / "tableX" / "table.png"
    height, width, _ = imread(path).shape
    assert width > 1000
    assert 250 < height < 600
    assert not list(study.out.rglob(".*"))


def test_no_picture_without_results(tmp_path: Path) -> None:
    study = replace(study_of(), tables=(TABLE,), out=tmp_path)
    assert draw(study, TABLE, collect(study, TABLE, PLAN, {})) is None
