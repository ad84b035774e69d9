"""Measures against loops, sliding windows against whole images, evaluation at the size of the labels."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from hardpatch.data.bad_files import BadFiles
from hardpatch.data.reading import Reading
from hardpatch.errors import UserError
from hardpatch.segment.data import IGNORED, SegmentationSet
from hardpatch.segment.measure import Confusion, Inference, class_map, evaluate, measures, predict_logits, window_starts
from hardpatch.segment.pictures import label_sheet, palette, table
from tests.segment.small import random_norms, small_upernet
from tests.sheets import watch

CPU = torch.device("cpu")
WHOLE = Inference(24, "whole", (16, 16), (8, 8))


def slow_measures(truth: Tensor, predicted: Tensor, classes: int) -> tuple[list[float], list[float], float]:
    """IoU and accuracy of each class and pixel accuracy, pixel by pixel."""
    iou, accuracy, correct, counted = [], [], 0, 0
    pixels = [(t, p) for t, p in zip(truth.flatten().tolist(), predicted.flatten().tolist(), strict=True) if t != 255]
    for k in range(classes):
        both = sum(t == k and p == k for t, p in pixels)
        either = sum(k in (t, p) for t, p in pixels)
        true = sum(t == k for t, _ in pixels)
        iou.append(both / either if either else math.nan)
        accuracy.append(both / true if true else math.nan)
        correct, counted = correct + both, counted + true
    return iou, accuracy, correct / counted


@given(st.integers(0, 2**32), st.floats(0, 0.9))
def test_measures_equal_a_loop(seed: int, ignored: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, 4, (3, 5, 6), generator=generator).byte()  # class 4 never occurs
    predicted = torch.where(torch.rand(3, 5, 6, generator=generator) < 0.5, truth.long(), 3)
    truth[torch.rand(3, 5, 6, generator=generator) < ignored] = IGNORED
    truth[0, 0, 0] = 0
    confusion = Confusion(5, CPU)
    for true_map, predicted_map in zip(truth, predicted, strict=True):  # image by image
        confusion.add(true_map, predicted_map)
    result = measures(confusion.matrix())
    iou, accuracy, pixel_accuracy = slow_measures(truth, predicted, 5)
    assert result.iou == pytest.approx(iou, nan_ok=True)
    assert result.accuracy == pytest.approx(accuracy, nan_ok=True)
    assert math.isnan(result.iou[4])
    assert result.pixel_accuracy == pytest.approx(pixel_accuracy)
    assert result.miou == pytest.approx(np.nanmean(iou))
    assert result.mean_accuracy == pytest.approx(np.nanmean(accuracy))
    assert sum(result.pixels) == (truth != IGNORED).sum()


def test_measures_by_hand() -> None:
    confusion = Confusion(3, CPU)
    confusion.add(torch.tensor([0, 0, 0, 1, 255, 255]).byte(), torch.tensor([0, 0, 1, 1, 1, 2]))
    result = measures(confusion.matrix())
    assert confusion.matrix().tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert result.iou[:2] == pytest.approx((2 / 3, 1 / 2))
    assert result.miou == pytest.approx(7 / 12)
    assert result.mean_accuracy == pytest.approx((2 / 3 + 1) / 2)
    assert result.pixel_accuracy == 0.75
    values = result.to_dict(["a", "b", "c"])
    assert values["per_class"][2] == {"name": "c", "iou": None, "accuracy": None, "pixels": 0, "predicted": 0}
    lines = table(result, ["a", "b", "c"]).splitlines()
    assert lines[1].split() == ["a", "66.67", "66.67", "75.00"]
    assert lines[3].split() == ["c", "-", "-", "0.00"]


@torch.no_grad()
def test_a_window_that_covers_the_image_is_the_whole() -> None:
    model = small_upernet().eval()
    random_norms(model)
    for size in ((16, 24), (15, 22), (24, 24)):
        images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
        logits = predict_logits(model, images, Inference(24, "slide", (24, 24), (8, 8)))
        assert logits.shape == (2, 5, *size)
        assert_close(logits, predict_logits(model, images, WHOLE))


@torch.no_grad()
def test_windows_are_averaged_where_they_overlap() -> None:
    model = small_upernet().eval()
    random_norms(model)
    images = torch.randint(0, 256, (2, 3, 30, 45), dtype=torch.uint8)  # padded to 32 x 48
    averaged = predict_logits(model, images, Inference(24, "slide", (16, 24), (12, 16)))
    padded = F.pad(model.normalize(images), (0, 3, 0, 2))
    total, overlaps = torch.zeros(2, 5, 32, 48), torch.zeros(32, 48)
    for top in (0, 12, 16):
        for left in (0, 16, 24):
            logits = model(padded[:, :, top : top + 16, left : left + 24]).main
            total[:, :, top : top + 16, left : left + 24] += F.interpolate(logits, (16, 24), mode="bilinear")
            overlaps[top : top + 16, left : left + 24] += 1
    assert overlaps.min() == 1
    assert overlaps.max() == 4
    assert_close(averaged, (total / overlaps)[:, :, :30, :45], rtol=1e-4, atol=1e-4)


def test_starts_of_windows() -> None:
    assert window_starts(512, 512, 341) == [0]
    assert window_starts(683, 512, 341) == [0, 171]
    assert window_starts(1024, 512, 341) == [0, 341, 512]
    assert window_starts(1194, 512, 341) == [0, 341, 682]


def test_images_are_compared_at_the_size_of_their_labels(pairs: SegmentationSet) -> None:
    model = small_upernet(classes=3)
    random_norms(model)
    inference = Inference(48, "whole", (16, 16), (8, 8))  # twice as large as the files
    result = evaluate(model.train(), pairs, inference, device=CPU, keep=(0, 3))
    assert model.training  # as before
    model.eval()
    confusion = Confusion(3, CPU)
    for i in range(5):
        pixels = torch.from_numpy(pairs.image(i, Reading(3))).permute(2, 0, 1)[None]
        large = F.interpolate(pixels, (48, 64), mode="bicubic", antialias=True)
        logits = model(model.normalize(large)).main.detach()
        classes = F.interpolate(logits, (24, 32), mode="bilinear").argmax(dim=1)[0]
        confusion.add(torch.from_numpy(pairs.label_map(i)), classes)
        if i in result.maps:
            assert torch.equal(result.maps[i], classes.byte())
    assert result.maps.keys() == {0, 3}
    assert result.measures == measures(confusion.matrix())


@pytest.mark.parametrize("part", ["images", "label_maps"])
def test_broken_files_are_left_out_of_the_evaluation(pairs: SegmentationSet, part: str) -> None:
    model = small_upernet(classes=3)
    random_norms(model)
    expected = evaluate(model, pairs.without({1}), WHOLE, device=CPU, keep=(0, 2))
    broken: Path = getattr(pairs, part)[1]
    broken.write_bytes(broken.read_bytes()[:60])
    logged: list[str] = []
    bad_files = BadFiles(5, 0.2, "--max_bad_fraction", log=logged.append)
    result = evaluate(model, pairs, WHOLE, device=CPU, keep=(0, 1, 3), bad_files=bad_files)
    assert result.measures == expected.measures
    assert result.maps.keys() == {0, 3}
    assert torch.equal(result.maps[3], expected.maps[2])
    assert len(bad_files) == 1
    assert logged[0].startswith(f"cannot decode {broken}: ")
    with pytest.raises(UserError, match=r"max_bad_fraction: 1 of 5 images \(20.00%\) cannot be decoded"):
        evaluate(model, pairs, WHOLE, device=CPU)
    strict = BadFiles(5, 0.19, "--max_bad_fraction", log=logged.append)
    with pytest.raises(UserError, match=r"at most 19.00% may be; the last: .*; raise --max_bad_fraction to allow more"):
        evaluate(model, pairs, WHOLE, device=CPU, bad_files=strict)


def test_an_evaluation_without_any_image_fails(pairs: SegmentationSet) -> None:
    for image in pairs.images:
        image.write_bytes(b"")
    bad_files = BadFiles(5, 1.0, "--max_bad_fraction", log=lambda line: None)
    with pytest.raises(UserError, match="none of the 5 images can be decoded"):
        evaluate(small_upernet(classes=3), pairs, WHOLE, device=CPU, bad_files=bad_files)


def test_a_class_map_of_a_few_classes_at_a_time_is_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(2, 7, 5, 6, generator=torch.Generator().manual_seed(0))
    logits[:, 4] = logits[:, 1]  # the first of equal ones wins
    expected = F.interpolate(logits, (11, 9), mode="bilinear", align_corners=False).argmax(dim=1)
    assert torch.equal(class_map(logits, (11, 9)), expected)
    for values in (1, 2 * 11 * 9 * 2, 2 * 11 * 9 * 3):
        monkeypatch.setattr("hardpatch.segment.measure.VALUES_AT_ONCE", values)
        assert torch.equal(class_map(logits, (11, 9)), expected)


def test_colors_and_sheets_of_label_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    colors = palette()
    assert colors[:4].tolist() == [[128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]  # PASCAL VOC's 1 to 4
    assert colors[IGNORED].tolist() == [0, 0, 0]
    assert len({tuple(color) for color in colors.tolist()}) == 256
    image = np.zeros((20, 30, 1), dtype=np.uint8)
    truth, predicted = np.zeros((20, 30), dtype=np.uint8), np.ones((20, 30), dtype=np.uint8)
    truth[:, :3] = IGNORED
    drawn = watch(monkeypatch)
    sheet = label_sheet([(image, truth, predicted)] * 2, ["sky", "$5 road$", "car"])
    assert drawn.texts == ["image", "truth", "prediction", "sky", "$5 road$"]
    assert len(drawn.pictures) == 6 + 2
    shown = np.asarray(sheet.image)[35:235, 312:612]  # 300 pixels wide, 6 apart; the upper 35 hold the titles
    assert (shown[:, :30] == 0).all()
    assert (shown[:, 30:] == colors[0]).all()
    drawn.texts.clear()
    many = np.arange(40, dtype=np.uint8).reshape(4, 10)
    names = [f"{number} W{'WMé日' * 9}" for number in range(40)]  # of 40 classes 24 are named
    label_sheet([(image, truth, many)], names, ", channels 0, 1, 2 of 13")
    assert drawn.texts[0] == "image, channels 0, 1, 2 of 13"
    assert [text.split()[0] for text in drawn.texts[3:]] == [str(number) for number in range(24)]
    with pytest.raises(ValueError, match="rows: expected at least one image"):
        label_sheet([], [])
