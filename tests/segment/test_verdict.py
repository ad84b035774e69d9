"""Verdicts on segmenters, from confusion matrices."""

import pytest
import torch

from hardpatch.segment.measure import measures
from hardpatch.segment.verdict import majority, verdict

NAMES = ("road", "sky", "car")


@pytest.mark.parametrize(
    ("matrix", "learned", "said"),
    [
        (
            [[700, 0, 0], [200, 0, 0], [97, 3, 0]],
            "no",
            "predicts one class only (road, 99.7% of the pixels): mIoU 23.4% is not a result",
        ),
        ([[600, 100, 0], [10, 190, 0], [90, 10, 0]], "yes", "predicts 2 of 3 classes; without car"),
        ([[680, 20, 0], [180, 20, 0], [95, 5, 0]], "barely", "predicts 2 of 3 classes; without car"),
        ([[0, 700, 0], [195, 5, 0], [98, 2, 0]], "no", "predicts one class only (sky, 70.7% of the pixels)"),
        ([[690, 5, 5], [5, 190, 5], [5, 5, 90]], "yes", "road everywhere has mIoU 23.3% and pixel accuracy 70.0%"),
    ],
)
def test_verdicts(matrix: list[list[int]], learned: str, said: str) -> None:
    values = measures(torch.tensor(matrix))
    trivial = majority(values, NAMES, [5000, 10, 10])
    assert trivial == {"class": "road", "miou": pytest.approx(0.7 / 3), "pixel_accuracy": 0.7}
    result = verdict(values, NAMES, trivial)
    assert result.learned == learned
    assert any(reason.startswith(said) for reason in result.reasons), result.reasons
    assert any(reason.startswith("road everywhere") for reason in result.reasons)


def test_the_trivial_predictor_is_that_of_the_training_set() -> None:
    """Measures of a constant prediction: one column of the confusion matrix."""
    values = measures(torch.tensor([[300, 200, 0], [100, 400, 0], [0, 0, 0]]))  # no car in the validation images
    constant = measures(torch.tensor([[0, 500, 0], [0, 500, 0], [0, 0, 0]]))
    trivial = majority(values, NAMES, [10, 20, 0])
    assert trivial == {"class": "sky", "miou": constant.miou, "pixel_accuracy": constant.pixel_accuracy}


def test_one_class_in_the_validation_images() -> None:
    values = measures(torch.tensor([[500, 0, 0], [0, 0, 0], [0, 0, 0]]))
    result = verdict(values, NAMES, majority(values, NAMES, [5, 1, 1]))
    assert (result.learned, result.reasons[-1]) == ("no", "--val has one class only")
