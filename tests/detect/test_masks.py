"""Masks that are trained and measured where objects have none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hardpatch.detect.annotations import AnnotatedImage, AnnotatedObject, AnnotationSet
from hardpatch.detect.batches import ScaleJitter, training_batches
from hardpatch.detect.masks import choose_masks, object_mask
from hardpatch.detect.measure import average_precision
from hardpatch.detect.model import mask_rcnn
from hardpatch.detect.pictures import detection_sheet
from hardpatch.errors import UserError
from tests.detect.small import detection, run_lengths, scene, small_encoder

BOXES: tuple[tuple[int, int, int, int], ...] = ((0, 0, 100, 100), (150, 0, 100, 100))


def partly(*masks: bool, crowd: bool = False) -> AnnotationSet:
    """One image with an object for each of ``masks``, True if it has one."""
    objects = [
        AnnotatedObject(4, box, run_lengths(box) if mask else None, 10_000.0, False)
        for box, mask in zip(BOXES, masks, strict=False)
    ]
    if crowd:
        objects.append(AnnotatedObject(4, (0, 200, 50, 50), run_lengths((0, 200, 50, 50)), 2500.0, True))
    return AnnotationSet("a.json", {4: "cat"}, [AnnotatedImage(1, "1.png", 300, 300, objects)])


@pytest.mark.parametrize(
    ("choice", "train", "val", "trained", "measured", "line"),
    [
        ("auto", (True, True), (True,), True, True, "trained on the polygons or run lengths of every object"),
        ("auto", (True, False), (True,), True, True, "1 of 2 objects of --train have no usable polygon: they train"),
        ("auto", (False, False), (True,), False, False, "none of the 2 objects of --train has a usable polygon: a box"),
        (
            "polygons",
            (True, False),
            (True,),
            True,
            True,
            "1 of 2 objects of --train have no usable polygon: they train",
        ),
        ("boxes", (True, False), (False,), True, True, "1 of 2 objects of --train and 1 of 1 of --val, which have no"),
        ("boxes", (True, True), (True,), True, True, "trained on the polygons or run lengths: every object has one"),
        ("none", (True, True), (True,), False, False, "no mask head; box AP only"),
        ("auto", (True, True), (False,), True, False, "none of the 1 objects of --val has a usable polygon: mask AP"),
        ("auto", (True, True), (True, False), True, True, "1 of 2 objects of --val have no usable polygon: mask AP"),
    ],
)
def test_choices(
    choice: Any, train: tuple[bool, ...], val: tuple[bool, ...], trained: bool, measured: bool, line: str
) -> None:
    masks = choose_masks(choice, partly(*train, crowd=True), partly(*val, crowd=True))
    assert (masks.trained, masks.measured) == (trained, measured)
    assert masks.lines[-1].startswith(line)
    has = [obj.segmentation is not None for obj in masks.train.objects]
    assert has == ([True] * 2 if choice == "boxes" else [False] * 2 if not trained else list(train))


def test_polygons_are_insisted_on() -> None:
    with pytest.raises(UserError, match=r"--masks polygons: none of the 2 objects of a\.json has a usable polygon"):
        choose_masks("polygons", partly(False, False), partly(True))


def test_a_box_as_a_mask() -> None:
    masks = choose_masks("boxes", partly(False), partly(False))
    mask = object_mask(masks.train.objects[0], 300, 300)
    assert mask.sum() == 100 * 100
    assert mask[:100, :100].all()


def test_mask_ap_ignores_detections_on_objects_without_a_mask() -> None:
    results = [detection(BOXES[0], 0.5), detection(BOXES[1], 0.9)]
    precision = average_precision(partly(True, False).ground_truth(), results)
    assert precision["box"]["AP"] == pytest.approx(1.0)
    assert precision["mask"]["AP"] == pytest.approx(1.0)
    elsewhere = [*results, detection((0, 150, 100, 100), 0.95)]
    assert average_precision(partly(True, False).ground_truth(), elsewhere)["mask"]["AP"] == pytest.approx(0.5)


def test_box_ap_alone() -> None:
    boxes = [{key: value for key, value in detection(BOXES[0], 0.5).items() if key != "segmentation"}]
    precision = average_precision(partly(False).ground_truth(), boxes, ("box",))
    assert precision == {"box": pytest.approx({**precision["box"], "AP": 1.0, "AP_large": 1.0})}


def jittered(size: int, has_mask: list[bool] | None, seed: int = 0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Transform an image of 8 x 8 whose objects are its left half; their masks are one column within."""
    boxes = np.array([[0, 0, 4, 8]] * 2, dtype=np.float32)
    masks = np.zeros((2, 8, 8), dtype=np.uint8)
    known = None
    if has_mask is not None:
        known = np.array(has_mask)
        masks[known, :, 1:2] = 1
    labels, rng = np.array([1, 2]), np.random.default_rng(seed)
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    return ScaleJitter(size, (1, 1), 0.0)(image, boxes, labels, None if known is None else masks, rng, known)


def test_boxes_are_cropped_without_masks() -> None:
    _, target = jittered(8, None)
    assert target.keys() == {"boxes", "labels"}
    assert target["boxes"].tolist() == [[0, 0, 4, 8]] * 2
    jitter, rng = ScaleJitter(4, (2, 2), 0.0), np.random.default_rng(0)
    lefts = {}
    for _ in range(60):
        image, boxes = np.zeros((8, 8, 3), dtype=np.uint8), np.array([[0, 0, 4, 8]], dtype=np.float32)
        image[:] = np.arange(8)[None, :, None]
        pixels, target = jitter(image, boxes, np.array([1]), None, rng)
        lefts[int(pixels[0, 0, 0])] = target["boxes"].tolist()
    # the window of 4 px shows what is left of the box; nothing if it begins at 4
    assert lefts == {left: [[0, 0, 4 - left, 4]] if left < 4 else [] for left in range(5)}


def test_the_rest_of_an_object_without_a_mask_is_that_of_its_box() -> None:
    _, target = jittered(8, [True, False])
    assert target["has_mask"].tolist() == [True, False]
    assert target["boxes"].tolist() == [[0, 0, 4, 8]] * 2  # wholly inside: as annotated
    assert target["masks"].flatten(1).any(1).tolist() == [True, False]


def small_detector(masks: bool = True) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"image_size": 32, "channels": 8, "head_width": 8, "rois": 8, "global_blocks": 1}
    return mask_rcnn(small_encoder(), (0.5,) * 3, (0.2,) * 3, classes=2, window=4, masks=masks, **sizes)


def losses(model: Any, has_mask: list[bool] | None, mask_value: int = 1) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    masks = torch.zeros(2, 32, 32, dtype=torch.uint8)
    masks[0, 4:12, 4:12], masks[1, 20:30, 20:30] = 1, mask_value
    target = {"boxes": torch.tensor([[4.0, 4, 12, 12], [20, 20, 30, 30]]), "labels": torch.tensor([1, 2])}
    target |= {"masks": masks} if has_mask is None else {"masks": masks, "has_mask": torch.tensor(has_mask)}
    return model.train()([torch.zeros(3, 32, 32, dtype=torch.uint8)], [target])


def test_the_mask_loss_leaves_out_objects_without_a_mask() -> None:
    model = small_detector()
    whole, all_known = losses(model, None), losses(model, [True, True])
    assert {name: value.item() for name, value in whole.items()} == {n: v.item() for n, v in all_known.items()}
    # whatever the mask of the unknown object holds, the losses are the same, and those of the boxes are unchanged
    partial, other = losses(model, [True, False]), losses(model, [True, False], mask_value=0)
    assert {name: value.item() for name, value in partial.items()} == {n: v.item() for n, v in other.items()}
    assert losses(model, [True, True], mask_value=0)["loss_mask"] != whole["loss_mask"]
    for name in ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"):
        assert partial[name].item() == pytest.approx(whole[name].item()), name
    assert losses(model, [False, False])["loss_mask"].item() == 0.0


def test_a_detector_of_boxes_has_no_mask_head() -> None:
    model = small_detector(masks=False)
    assert not any("mask" in name for name in model.state_dict() if "mask_token" not in name)
    target = {"boxes": torch.tensor([[4.0, 4, 12, 12]]), "labels": torch.tensor([1])}
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    assert set(model.train()([image], [target])) == {
        *("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg")
    }
    with torch.no_grad():
        assert set(model.eval()([image])[0]) == {"boxes", "labels", "scores"}


def test_batches_of_boxes(coco: AnnotationSet, images: Path) -> None:
    batch = next(training_batches(coco, images, ScaleJitter(12, (1, 1), 0), batch_size=3, seed=0, masks=False))
    targets = {sample.image_index: sample.target for sample in batch.samples}
    assert all(target.keys() == {"boxes", "labels"} for target in targets.values())
    assert targets[0]["boxes"].tolist() == [[4, 2, 8, 6]] * 2
    assert targets[1]["boxes"].shape == (0, 4)


def test_pictures_of_boxes(rectangles: tuple[AnnotationSet, Path]) -> None:
    coco, folder = rectangles
    boxes = choose_masks("none", coco, coco).train
    results = [{"image_id": 0, "category_id": 4, "bbox": [3, 4, 12, 10], "score": 0.9}]
    with_boxes = np.asarray(detection_sheet(boxes, folder, results))
    assert (with_boxes != np.asarray(detection_sheet(boxes, folder, []))).any()
    assert (with_boxes != np.asarray(detection_sheet(coco, folder, results))).any()  # whose masks are shaded


def test_every_object_of_a_scene_has_a_mask() -> None:
    assert all(obj.segmentation is not None for obj in scene((0, 0, 9, 9)).objects)
