"""Numbers and text of a table, against cases computed by hand."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from hardpatch.study import table as output
from hardpatch.study.picture import draw
from hardpatch.study.rows import StudyRow, Table
from hardpatch.study.table import MeanStd, RowResult, collect

TABLE = Table(
    "tableX",
    "Two rows",
    (
        StudyRow("plain", {"method.alpha_end": 0.0}, {"finetune": 82.2}),
        StudyRow("mined | hard", {}, {"finetune": 82.95}, default=True),
        StudyRow("not available", {"method.frozen": "dino"}),
    ),
    "From a README.",
)
HEADER = {
    "scale": "micro",
    "scale_about": "small",
    "seeds": 3,
    "data": "d",
    "train": "t",
    "val": "v",
    "command": "hardpatch study tableX",
}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Three seeds of the first row, one of the second, none of the third."""
    results: dict[str, list[dict[str, float]]] = {
        "plain": [{"knn": 0.5, "linear": 0.75}, {"knn": 0.6, "linear": 0.75}, {"knn": 0.7, "linear": 0.75}],
        "mined_hard": [{"knn": 0.25}],
    }
    for key, seeds in results.items():
        for seed, metrics in enumerate(seeds):
            folder = tmp_path / key / f"seed_{seed}"
            folder.mkdir(parents=True)
            (folder / "result.json").write_text(json.dumps({"metrics": metrics}))
    return tmp_path


def collected(out: Path) -> list[RowResult]:
    return collect(TABLE, out, 3, {"not_available": "it needs --dino_weights FILE"})


def test_mean_and_standard_deviation_by_hand() -> None:
    metric = MeanStd((0.5, 0.6, 0.7))
    assert metric.mean == pytest.approx(0.6)
    assert metric.std == pytest.approx(0.1)  # (0.01 + 0 + 0.01) / (3 - 1)
    assert str(metric) == "60.00 ± 10.00"
    assert str(MeanStd((0.1234,))) == "12.34"
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


def test_missing_seeds_have_a_reason(out: Path) -> None:
    first, second, third = collected(out)
    assert first.missing == ""
    assert second.missing == "1 of 3 seeds: pending"
    assert third.missing == "not run: it needs --dino_weights FILE"
    assert set(first.ours) == {"knn", "linear"}
    assert third.ours == {}


def test_markdown(out: Path) -> None:
    text = output.markdown(TABLE, collected(out), HEADER).splitlines()
    rows = [line for line in text if line.startswith("|")]
    assert rows == [
        "|  | k-NN | linear probe | paper's fine-tuning |",
        "| --- | ---: | ---: | ---: |",
        "| plain | 60.00 ± 10.00 | 75.00 ± 0.00 | 82.2 |",
        r"| **mined \| hard** (1 of 3 seeds: pending) | 25.00 |  | 82.95 |",
        "| not available (not run: it needs --dino_weights FILE) |  |  |  |",
    ]
    assert any("From a README." in line for line in text)
    assert any("over 3 seeds" in line for line in text)


def test_json(out: Path) -> None:
    content: dict[str, Any] = json.loads(json.dumps(output.as_json(TABLE, collected(out), HEADER), allow_nan=False))
    plain, mined, missing = content["rows"]
    assert plain["ours"]["knn"] == {
        "mean": pytest.approx(0.6),
        "std": pytest.approx(0.1),
        "seeds": 3,
        "values": [0.5, 0.6, 0.7],
    }
    assert mined["ours"]["knn"]["std"] is None
    assert mined["default"]
    assert plain["paper_per_cent"] == {"finetune": 82.2}
    assert missing["ours"] == {}
    assert missing["missing"].startswith("not run")


def test_writing_leaves_no_partial_files(out: Path) -> None:
    output.write(out, TABLE, collected(out), HEADER)
    assert "hardpatch study tableX" in (out / "README.md").read_text()
    assert not list(out.glob(".*"))


def test_picture(out: Path) -> None:
    path = draw(out, TABLE, collected(out), HEADER)
    assert path == out / "table.png"
    height, width, _ = imread(path).shape
    assert width > 1000  # three panels
    assert 250 < height < 500
    assert not list(out.glob(".*"))


def test_no_picture_without_results(tmp_path: Path) -> None:
    assert draw(tmp_path, TABLE, collect(TABLE, tmp_path, 1, {}), HEADER) is None
