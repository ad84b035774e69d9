"""COCO files: what is read, what is dropped, and errors that name the file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou  # type: ignore[import-untyped]

from hardpatch.detect.batches import mask_boxes
from hardpatch.detect.data import CocoSet, check_images, object_mask, read_coco
from hardpatch.errors import UserError
from tests.detect.small import COMPRESSED, coco_content, read_content


def test_a_file_by_hand(coco: CocoSet) -> None:
    assert coco.categories == {4: "cat", 90: "dog"}
    assert coco.labels == {4: 1, 90: 2}
    assert coco.category_ids == [4, 90]
    assert [(image.id, image.file, len(image.objects)) for image in coco.images] == [
        (7, "7.png", 3),
        (3, "3.png", 0),
        (5, "5.png", 1),
    ]
    assert [obj.crowd for obj in coco.images[0].objects] == [False, False, True]
    assert coco.dropped == 0
    square = np.zeros((4, 6), dtype=np.uint8)
    square[1:3, 2:4] = 1
    for obj in (*coco.images[0].objects, *coco.images[2].objects):
        assert np.array_equal(object_mask(obj, 4, 6), square), obj


def test_ground_truth_is_the_file_with_ids_from_one(coco: CocoSet) -> None:
    truth = coco.ground_truth()
    assert [annotation["id"] for annotation in truth["annotations"]] == [1, 2, 3, 4]
    assert truth["annotations"][3] == {
        "id": 4,
        "image_id": 5,
        "category_id": 4,
        "bbox": [2, 1, 2, 2],
        "area": 4,
        "iscrowd": 0,
        "segmentation": COMPRESSED,
    }
    assert [image["id"] for image in truth["images"]] == [7, 3, 5]
    assert truth["categories"] == [{"id": 4, "name": "cat"}, {"id": 90, "name": "dog"}]


def test_images_are_left_out_with_their_objects(coco: CocoSet) -> None:
    rest = coco.without({0, 1})
    assert [image.id for image in rest.images] == [5]
    assert [annotation["image_id"] for annotation in rest.ground_truth()["annotations"]] == [5]
    assert rest.categories == coco.categories


@pytest.mark.parametrize(
    "change",
    [
        {"bbox": [2, 1, 0, 2]},
        {"bbox": [2, 1, 2, -1]},
        {"bbox": [6, 1, 2, 2]},
        {"bbox": [-3, 1, 3, 2]},
        {"segmentation": []},
        {"segmentation": [[1, 2, 3, 4]]},
    ],
)
def test_degenerate_annotations_are_dropped(tmp_path: Path, change: dict[str, Any]) -> None:
    content = coco_content()
    content["annotations"][3] |= change
    coco = read_content(tmp_path, content)
    assert coco.dropped == 1
    assert [len(image.objects) for image in coco.images] == [3, 0, 0]


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("images", None, "expected COCO annotations, with a list 'images'; found none"),
        ("categories", [], "expected at least one of 'categories', got none"),
        ("images", {"file_name": None}, "images[0] has no 'file_name'; expected id, file_name, height, width"),
        ("images", {"id": 3}, "two images have the id 3"),
        ("annotations", {"bbox": None}, "annotations[0] has no 'bbox'"),
        ("annotations", {"segmentation": None}, "annotations[0] has no 'segmentation'"),
        ("annotations", {"image_id": 8}, "an annotation has image 8, not among 'images'"),
        ("annotations", {"category_id": 1}, "an annotation has category 1, not among 'categories'"),
        (
            "annotations",
            {"bbox": [1, 2, 3]},
            "annotation 0: expected bbox as [left, top, width, height], got [1, 2, 3]",
        ),
        ("annotations", {"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "annotation 0: expected polygons"),
        ("annotations", {"segmentation": {"counts": [24]}}, "annotation 0: expected segmentation as polygons or"),
        (
            "annotations",
            {"segmentation": {"counts": [24], "size": [6, 4]}},
            "annotation 0: its mask has [6, 4] pixels, image 7 has [4, 6]",
        ),
    ],
)
def test_files_with_mistakes(tmp_path: Path, part: str, change: Any, message: str) -> None:
    content = coco_content()
    if isinstance(change, dict):
        entry = content[part][0] | change
        content[part][0] = {key: value for key, value in entry.items() if value is not None}
    elif change is None:
        del content[part]
    else:
        content[part] = change
    with pytest.raises(UserError) as error:
        read_content(tmp_path, content)
    assert message in str(error.value)
    assert "annotations.json" in str(error.value)


def test_files_that_are_not_coco(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected COCO annotations as JSON"):
        read_content(tmp_path, "not JSON")
    with pytest.raises(UserError, match="with a list 'images'"):
        read_content(tmp_path, [])
    with pytest.raises(UserError, match=r"missing\.json: cannot be read: No such file"):
        read_coco(tmp_path / "missing.json")


def test_images_that_do_not_belong_to_the_file(coco: CocoSet, images: Path, tmp_path: Path) -> None:
    check_images(coco, images)
    (images / "3.png").unlink()
    with pytest.raises(UserError, match=r"no such image: 3\.png, one of 1 that"):
        check_images(coco, images)
    with pytest.raises(UserError, match=r"has none of the 3 images of .*; do the two belong together\?"):
        check_images(coco, tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        check_images(coco, tmp_path / "elsewhere")


def test_real_files(shared: Path) -> None:
    coco = read_coco(shared / "data/coco_mini/annotations/instances_train2017.json")
    check_images(coco, shared / "data/coco_mini/train2017")
    objects = [(image, obj) for image in coco.images for obj in image.objects]
    assert (len(coco.images), len(coco.categories), len(objects) + coco.dropped) == (128, 80, 939)
    assert sum(obj.crowd for _, obj in objects) == 10
    assert list(coco.labels.values()) == list(range(1, 81))
    assert sum(not image.objects for image in coco.images) == 2
    for image, obj in objects[::20]:
        left, top, width, height = obj.box
        box = torch.tensor([[left, top, left + width, top + height]])
        if width * height > 200:  # masks lose what is thinner than a pixel
            assert box_iou(box, mask_boxes(torch.from_numpy(object_mask(obj, image.height, image.width))[None])) > 0.8
