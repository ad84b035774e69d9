import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from hardpatch.curves import _curve, training_curves

METRICS: list[dict[str, Any]] = [
    {"epoch": 1, "step": 10, "loss": 2.0, "lr": 1e-5, "alpha": 0.0, "note": "text"},
    {"epoch": 2, "step": 20, "loss": None, "lr": 1e-4, "alpha": 0.25},
    {"epoch": 3, "step": 30, "loss": float("nan"), "pair_accuracy": 0.6, "knn_top1": 0.3},
    {"epoch": 4, "step": 40, "loss": 1.0, "predicting_loss": 0.6, "spearman": 0.2},
]


def test_curve_leaves_out_values_that_are_not_finite() -> None:
    assert _curve(METRICS, "epoch", "loss") == ([1.0, 4.0], [2.0, 1.0])
    assert _curve(METRICS, "step", "alpha") == ([10.0, 20.0], [0.0, 0.25])
    assert _curve(METRICS, "step", "missing") == ([], [])


def test_there_is_a_panel_for_each_kind_of_metric(tmp_path: Path) -> None:
    three = training_curves(METRICS[:2], tmp_path / "new" / "three.png")
    five = training_curves(METRICS, tmp_path / "five.png")
    without_epochs = training_curves([{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}], tmp_path / "one.png")
    assert three == tmp_path / "new" / "three.png"
    sizes = [imread(path).shape[:2] for path in (three, five, without_epochs)]
    assert sizes[0][0] < sizes[1][0]  # three panels in one row, five in two
    assert sizes[2][1] * 3 == sizes[0][1]
    for path in (three, five, without_epochs):
        assert imread(path)[..., :3].min() < 0.5  # not a blank page


def test_curves_of_a_file_of_metrics(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps(row) for row in METRICS)
    assert training_curves([json.loads(line) for line in lines.splitlines()], tmp_path / "a.png").stat().st_size > 0


@pytest.mark.parametrize("metrics", [[], [{"epoch": 1, "unknown": 2.0}], [{"loss": 1.0}]])
def test_metrics_without_curves(tmp_path: Path, metrics: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match=r"^metrics: expected rows with"):
        training_curves(metrics, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
