"""Report and confusion matrix of a classifier, against values computed by hand."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hardpatch.finetune.measure import ClassifierEvaluation, confusion_figure, report


@pytest.fixture
def check_picture() -> Callable[[Path], None]:
    """Check that the diagonal is dark and the rest light."""
    from PIL import Image

    def check(path: Path) -> None:
        pixels = np.asarray(Image.open(path).convert("L"))
        assert pixels.min() < 80
        assert np.median(pixels) > 230

    return check


def test_report_by_hand(tmp_path: Path, check_picture: Callable[[Path], None]) -> None:
    confusion = torch.tensor([[3, 1, 0], [2, 2, 0], [0, 0, 0]])
    evaluation = ClassifierEvaluation(confusion, top5=1.0, loss=0.7)
    assert (evaluation.images, evaluation.top1) == (8, 0.625)
    content = json.loads(json.dumps(report(evaluation, ["a", "b", "c"], best_top1=0.75, best_epoch=4.0)))
    assert content["top1"] == 0.625
    assert (content["best_top1"], content["best_epoch"]) == (0.75, 4.0)
    assert content["per_class"] == [
        {"name": "a", "images": 4, "top1": 0.75},
        {"name": "b", "images": 4, "top1": 0.5},
        {"name": "c", "images": 0, "top1": None},
    ]
    assert content["confusions"] == [
        {"class": "b", "predicted": "a", "images": 2},
        {"class": "a", "predicted": "b", "images": 1},
    ]
    for count in (3, 20, 120):
        names = [f"a rather long name of class $number {k}$" for k in range(count)]
        path = tmp_path / f"{count}.png"
        confusion_figure(torch.eye(count, dtype=torch.int64), names).savefig(path)
        check_picture(path)
