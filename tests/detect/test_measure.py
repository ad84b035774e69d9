"""Average precision against numbers by hand, and the layout of COCO results."""

import contextlib
import io
import json
from pathlib import Path

import pytest
import torch

from hardpatch.detect.annotations import AnnotatedImage, AnnotationSet
from hardpatch.detect.batches import Sample
from hardpatch.detect.coco import read_coco
from hardpatch.detect.masks import decode_mask
from hardpatch.detect.measure import average_precision, in_coco_layout
from tests.detect.small import detection, scene


def test_average_precision_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    """Two objects and three boxes: right, wrong, and one with IoU 0.78, which is right at 6 of the 10 thresholds.

    There the precision is 1 up to recall 1/2 (51 of the 101 points) and 2/3 beyond (50), else 1 and nothing.
    """
    truth = scene((0, 0, 100, 100), (150, 0, 100, 100)).ground_truth()
    results = [
        detection((0, 0, 100, 100), 0.9),
        detection((0, 150, 100, 100), 0.8),
        detection((150, 0, 100, 78), 0.7),
    ]
    loose, strict = (51 + 50 * 2 / 3) / 101, 51 / 101
    expected = {"AP": 0.6 * loose + 0.4 * strict, "AP50": loose, "AP75": loose, "AP_small": None, "AP_medium": None}
    expected["AP_large"] = expected["AP"]
    precision = average_precision(truth, results)
    for kind in ("box", "mask"):
        assert precision[kind] == pytest.approx(expected), kind
    assert capsys.readouterr().out == ""


def test_masks_are_measured_by_their_own_size() -> None:
    """An object of 20 x 20 pixels within a box of 100 x 100 is small, and its box large."""
    coco = scene((0, 0, 20, 20))
    coco.images[0].objects[0] = coco.images[0].objects[0]._replace(box=(0, 0, 100, 100), area=400.0)
    result = detection((0, 0, 20, 20), 0.9) | {"bbox": [0, 0, 100, 100]}
    # a wrong detection, too large to count among the small ones
    wrong = detection((150, 150, 100, 100), 0.95) | {"bbox": [150, 150, 10, 10]}
    precision = average_precision(coco.ground_truth(), [result, wrong])
    assert precision["mask"]["AP_small"] == pytest.approx(1.0)
    assert precision["mask"]["AP"] == pytest.approx(0.5)


def test_detections_in_a_crowd_are_neither_right_nor_wrong() -> None:
    truth = scene((0, 0, 50, 50), crowd=(100, 100, 150, 150)).ground_truth()
    results = [detection((0, 0, 50, 50), 0.5), detection((110, 110, 40, 40), 0.9), detection((170, 110, 40, 40), 0.9)]
    assert average_precision(truth, results)["box"]["AP"] == pytest.approx(1.0)
    assert average_precision(truth, [*results, detection((60, 0, 30, 30), 0.9)])["box"]["AP"] == pytest.approx(0.5)


def test_no_detections_and_no_objects() -> None:
    assert average_precision(scene((0, 0, 50, 50)).ground_truth(), [])["box"]["AP"] == 0.0
    assert average_precision(scene().ground_truth(), [])["mask"]["AP"] is None
    assert average_precision(scene().ground_truth(), [detection((0, 0, 9, 9), 0.9)])["mask"]["AP"] is None


def test_an_annotation_with_id_0_can_be_detected(tmp_path: Path) -> None:
    truth = scene((0, 0, 50, 50)).ground_truth()
    truth["annotations"][0]["id"] = 0
    (tmp_path / "a.json").write_text(json.dumps(truth))
    coco = read_coco(tmp_path / "a.json")
    assert average_precision(coco.ground_truth(), [detection((0, 0, 50, 50), 0.9)])["box"]["AP"] == pytest.approx(1.0)


def test_detections_in_cocos_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a canvas on which 40 x 60 pixels became 20 x 30: label 1 is category 3, the first; boxes double."""
    coco = AnnotationSet("", {3: "a", 8: "b"}, [AnnotatedImage(5, "", 1, 1), AnnotatedImage(6, "", 40, 60)])
    sample = Sample(torch.zeros(3, 20, 30, dtype=torch.uint8), {}, 1)
    masks = torch.zeros(2, 1, 28, 28)
    masks[0], masks[1, :, :, :14] = 1, 1
    boxes = torch.tensor([[0.0, 0.0, 30.0, 20.0], [5.0, 5.0, 15.0, 10.0]])
    detections = {"boxes": boxes, "labels": torch.tensor([2, 1]), "scores": torch.tensor([0.75, 0.5]), "masks": masks}
    first, second = in_coco_layout(detections, sample, coco)
    assert (first["image_id"], first["category_id"], first["score"]) == (6, 8, 0.75)
    assert (second["image_id"], second["category_id"], second["score"]) == (6, 3, 0.5)
    assert first["bbox"] == [0, 0, 60, 40]
    assert second["bbox"] == [10, 10, 20, 10]
    whole, half = (decode_mask(result["segmentation"]) for result in (first, second))
    assert whole.shape == half.shape == (40, 60)
    assert whole[1:-1, 1:-1].all()
    assert half[11:19, 11:19].all()
    assert half.sum() <= 11 * 12
    assert json.loads(json.dumps([first, second])) == [first, second]
    monkeypatch.setattr("hardpatch.detect.measure.PIXELS_AT_ONCE", 1)  # masks are pasted one by one
    assert in_coco_layout(detections, sample, coco) == [first, second]
    none = {name: values[:0] for name, values in detections.items()}
    assert in_coco_layout(none, sample, coco) == []


def test_results_can_be_read_by_pycocotools() -> None:
    from pycocotools.coco import COCO  # type: ignore[import-untyped]

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = scene((0, 0, 100, 100)).ground_truth()
        truth.createIndex()
        loaded = truth.loadRes([detection((0, 0, 100, 100), 0.9)])
    assert len(loaded.anns) == 1
