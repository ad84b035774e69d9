"""COCO files: what is read, what is dropped, and errors that name the file."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import box_iou  # type: ignore[import-untyped]

from hardpatch.detect.annotations import AnnotationSet, counts, summary
from hardpatch.detect.batches import mask_boxes
from hardpatch.detect.coco import read_coco
from hardpatch.detect.extents import NO_BOX, NO_EXTENT, OUTSIDE, REPEATED, place
from hardpatch.detect.masks import mask_tools, object_mask, run_lengths
from hardpatch.detect.read import check_images
from hardpatch.errors import UserError
from tests.detect.small import COMPRESSED, coco_content, read_content

DELETED = object()
"""Value of a key that is taken out of an entry."""


def test_a_file_by_hand(coco: AnnotationSet) -> None:
    assert coco.categories == {4: "cat", 90: "dog"}
    assert coco.labels == {4: 1, 90: 2}
    assert coco.category_ids == [4, 90]
    assert [(image.id, image.file, len(image.objects)) for image in coco.images] == [
        (7, "7.png", 3),
        (3, "3.png", 0),
        (5, "5.png", 1),
    ]
    assert [obj.crowd for obj in coco.images[0].objects] == [False, False, True]
    assert not coco.left_out
    square = np.zeros((4, 6), dtype=np.uint8)
    square[1:3, 2:4] = 1
    for obj in (*coco.images[0].objects, *coco.images[2].objects):
        assert np.array_equal(object_mask(obj, 4, 6), square), obj


def test_ground_truth_is_the_file_with_ids_from_one(coco: AnnotationSet) -> None:
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


def test_images_are_left_out_with_their_objects(coco: AnnotationSet) -> None:
    rest = coco.without({0, 1})
    assert [image.id for image in rest.images] == [5]
    assert [annotation["image_id"] for annotation in rest.ground_truth()["annotations"]] == [5]
    assert rest.categories == coco.categories


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bbox": [2, 1, 0, 2]}, NO_EXTENT),
        ({"bbox": [2, 1, 2, -1]}, NO_EXTENT),
        ({"bbox": [6, 1, 2, 2]}, OUTSIDE),
        ({"bbox": [-3, 1, 3, 2]}, OUTSIDE),
        ({"bbox": None, "segmentation": []}, NO_BOX),
        ({"bbox": [], "segmentation": None}, NO_BOX),
    ],
)
def test_objects_without_a_place_are_left_out(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    content = coco_content()
    content["annotations"][3] |= change
    coco = read_content(tmp_path, content)
    assert +Counter(coco.left_out) == {reason: 1}
    assert [len(image.objects) for image in coco.images] == [3, 0, 0]
    assert f"left out: 1 object {reason}" in summary(coco)


def test_a_copy_of_an_annotation_is_left_out_and_another_of_its_id_kept(tmp_path: Path) -> None:
    content = coco_content()
    copy, other = dict(content["annotations"][3]), content["annotations"][3] | {"bbox": [1, 1, 2, 2]}
    content["annotations"] += [copy, other]
    coco = read_content(tmp_path, content)
    assert +Counter(coco.left_out) == {REPEATED: 1}
    assert [obj.box for obj in coco.images[2].objects] == [(2, 1, 2, 2), (1, 1, 2, 2)]
    assert coco.notes == ("1 annotation with the id of another; all are used, ids do not matter",)


@pytest.mark.parametrize(
    ("segmentation", "note"),
    [
        ([], ""),
        (None, ""),
        ({}, ""),
        ([[]], ""),
        ([2, 1, 4, 1, 4, 3, 2, 3], "a flat list of numbers"),
        ([[[2, 1], [4, 1], [4, 3]]], "lists of points"),
        ([[1, 2, 3, 4]], "polygons of fewer than three corners"),
        ([[1, 2, 3, 2, 5, 2]], "polygons without an area"),
        ({"counts": [24], "size": [4, 6]}, ""),
    ],
)
def test_an_object_without_a_usable_polygon_keeps_its_box(tmp_path: Path, segmentation: Any, note: str) -> None:
    content = coco_content()
    content["annotations"][0]["segmentation"] = segmentation
    coco = read_content(tmp_path, content)
    (first, *_), number = coco.images[0].objects, counts(coco)
    assert (first.box, first.segmentation) == ((2, 1, 2, 2), None)
    assert (number["boxes"], number["objects"], number["objects with a mask"], number["crowds"]) == (4, 3, 2, 1)
    assert not any(coco.left_out.values())
    assert [line.split(";")[0] for line in coco.notes] == ([f"the segmentation of 1 object is {note}"] if note else [])
    assert "segmentation" not in coco.ground_truth()["annotations"][0]


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("annotations", {"area": None}),
        ("annotations", {"area": "4.0", "iscrowd": "0", "bbox": ["2", 1.0, "2.0", 2], "image_id": "7"}),
        ("annotations", {"category_id": 90.0, "image_id": 7.0, "iscrowd": None}),
        ("annotations", {"iscrowd": False, "segmentation": [["2", 1, "4", 1, "4", "3", 2, 3]]}),
        ("annotations", {"segmentation": {"counts": [9, 2, 2, 2, 9], "size": ["4", 6.0]}}),
        ("annotations", {"bbox": None}),
        ("images", {"width": "6", "height": 4.0, "id": "7"}),
        ("categories", {"id": "90"}),
    ],
)
def test_numbers_are_read_as_tools_write_them(tmp_path: Path, part: str, change: dict[str, Any]) -> None:
    content = coco_content()
    content[part][0] |= change
    coco = read_content(tmp_path, content)
    obj = coco.images[0].objects[0]
    assert (obj.category, obj.box, obj.area, obj.crowd) == (90, (2, 1, 2, 2), 4, False)
    assert object_mask(obj, 4, 6).sum() == 4


@pytest.mark.parametrize(
    ("value", "crowd"), [("0", False), ("1", True), (1.0, True), (True, True), ("false", False), (None, False)]
)
def test_a_crowd_is_what_says_so(tmp_path: Path, value: Any, crowd: bool) -> None:
    content = coco_content()
    content["annotations"][0]["iscrowd"] = value
    assert read_content(tmp_path, content).images[0].objects[0].crowd is crowd


@pytest.mark.parametrize("size", [{"width": None}, {"height": 0}, {"width": "0", "height": None}])
def test_a_size_that_is_not_there_is_that_of_the_image(tmp_path: Path, size: dict[str, Any]) -> None:
    content = coco_content()
    content["images"][0] |= size
    (tmp_path / "a.json").write_text(json.dumps(content))
    coco = read_coco(tmp_path / "a.json")
    assert [image.has_size for image in coco.images] == [False, True, True]
    placed = place(coco, {"7.png": (4, 6)})
    assert (placed.images[0].height, placed.images[0].width) == (4, 6)
    assert placed.notes == ("the annotations have no size of 1 image: taken from the file",)


def test_polygons_that_are_not_in_pixels_are_told(tmp_path: Path) -> None:
    content = coco_content()
    content["annotations"][0]["segmentation"] = [[0.3, 0.2, 0.6, 0.2, 0.6, 0.7, 0.3, 0.7]]
    note = "1 object with polygons that do not touch the box: are both in pixels?"
    assert read_content(tmp_path, content).notes == (note,)


def test_a_box_over_the_edge_is_cut_there(tmp_path: Path) -> None:
    content = coco_content()
    content["annotations"][0]["bbox"], content["annotations"][1]["bbox"] = [-2, 1, 4, 9], [-0.5, 1, 4, 2]
    coco = read_content(tmp_path, content)
    assert [obj.box for obj in coco.images[0].objects[:2]] == [
        (0, 1, 2, 3),
        (-0.5, 1, 4, 2),
    ]  # half a pixel is rounding
    assert coco.notes == ("1 box over the edge of the image by more than a pixel, cut there",)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("images", None, "expected COCO annotations, with a list 'images'; found none"),
        ("categories", None, """with a list 'categories' such as [{"id": 1, "name": "cat"}]; found none"""),
        ("categories", [], "expected at least one of 'categories' such as"),
        ("images", {"file_name": DELETED}, "images[0] has no 'file_name'; expected id, file_name"),
        ("images", {"file_name": 7}, "image 7: file_name: expected the name of a file, as text, got 7"),
        ("images", {"file_name": None}, "image 7: file_name: expected the name of a file, as text, got null"),
        ("images", {"file_name": "3.png"}, "images 7 and 3 are the same file, 3.png"),
        ("images", {"width": "wide"}, 'image 7: width: expected a number of pixels, got "wide"'),
        ("images", {"height": -4}, "image 7: height: expected a number of pixels, got -4"),
        ("images", {"id": None}, "images[0]: id: expected a number or a text, got null"),
        ("images", {"id": 3}, "two images have the id 3"),
        ("categories", {"id": "dog"}, 'categories[0]: id: expected a whole number, got "dog"'),
        ("categories", {"name": None}, "categories[0]: name: expected a text, got null"),
        ("categories", {"id": 4}, "two categories have the id 4: 'dog' and 'cat'"),
        ("annotations", {"image_id": DELETED}, "annotations[0] has no 'image_id'"),
        ("annotations", {"image_id": 8}, "annotation 0: image_id: expected one of the ids of 'images', got 8"),
        ("annotations", {"image_id": None}, "annotation 0: image_id: expected one of the ids of 'images', got null"),
        (
            "annotations",
            {"category_id": 1},
            "annotation 0: category_id: expected one of the ids of 'categories', got 1",
        ),
        ("annotations", {"category_id": "dog"}, "annotation 0: category_id: expected one of the ids of 'categories'"),
        ("annotations", {"bbox": [1, 2, 3]}, "annotation 0: bbox: expected [left, top, width, height], got [1, 2, 3]"),
        (
            "annotations",
            {"bbox": [1, 2, None, 3]},
            "annotation 0: bbox: expected [left, top, width, height], got [1, 2,",
        ),
        ("annotations", {"bbox": [1, 2, math.nan, 3]}, "annotation 0: bbox: expected [left, top, width, height], got"),
        ("annotations", {"bbox": {"x": 1}}, "annotation 0: bbox: expected [left, top, width, height], got {"),
        ("annotations", {"area": "large"}, 'annotation 0: area: expected a number of pixels, got "large"'),
        ("annotations", {"iscrowd": 2}, "annotation 0: iscrowd: expected 0 or 1, got 2"),
        ("annotations", {"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "annotation 0: expected polygons"),
        ("annotations", {"segmentation": [[1, 2, 3, None, 5, 6]]}, "annotation 0: segmentation: expected numbers"),
        ("annotations", {"segmentation": "mask.png"}, "annotation 0: segmentation: expected polygons"),
        ("annotations", {"segmentation": {"counts": [24]}}, "annotation 0: expected segmentation as polygons or"),
        (
            "annotations",
            {"segmentation": {"counts": [24], "size": [6, 4]}},
            "annotation 0: its mask has [6, 4] pixels, image 7 has [4, 6]",
        ),
        (
            "annotations",
            {"segmentation": {"counts": [10, 5], "size": None}},
            "annotation 0: segmentation.size: expected [height, width], got null",
        ),
        (
            "annotations",
            {"segmentation": {"counts": [10, 5], "size": [4, 6]}},
            "annotation 0: segmentation.counts: expected run lengths of 4 x 6 = 24 pixels, got [10, 5]",
        ),
        (
            "annotations",
            {"segmentation": {"counts": "922", "size": [4, 6]}},
            "annotation 0: segmentation.counts: expected run lengths of 4 x 6 = 24 pixels",
        ),
    ],
)
def test_files_with_mistakes(tmp_path: Path, part: str, change: Any, message: str) -> None:
    content = coco_content()
    if isinstance(change, dict):
        entry = content[part][0] | change
        content[part][0] = {key: value for key, value in entry.items() if value is not DELETED}
    elif change is None:
        del content[part]
    else:
        content[part] = change
    with pytest.raises(UserError) as error:
        read_content(tmp_path, content)
    assert message in str(error.value)
    assert "annotations.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_fields_that_are_not_used_are_told(tmp_path: Path) -> None:
    content = coco_content()
    content["annotations"][0] |= {"keypoints": [1, 2, 2], "num_keypoints": 1, "attributes": {"occluded": True}}
    content["annotations"][1] |= {"keypoints": [0, 0, 0], "attributes": {"occluded": False}, "ignore": 1}
    line = "fields that are not used: keypoints (1 object), attributes.occluded (1 object), ignore (1 object)"
    assert read_content(tmp_path, content).notes == (line,)


@pytest.mark.parametrize(
    ("degrees", "box"), [(90, (40, 15, 20, 30)), (-90.0, (40, 15, 20, 30)), (180, (35, 20, 30, 20)), (0.0, None)]
)
def test_a_box_that_cvat_rotates(tmp_path: Path, degrees: float, box: tuple[float, ...] | None) -> None:
    content = coco_content()
    content["images"][0] |= {"height": 60, "width": 80}
    content["annotations"][:3] = []
    entry = {"id": 9, "image_id": 7, "category_id": 4, "bbox": [35, 20, 30, 20], "segmentation": []}
    content["annotations"].append(entry | {"attributes": {"rotation": degrees, "occluded": False}})
    coco = read_content(tmp_path, content)
    assert coco.images[0].objects[0].box == pytest.approx(box or (35, 20, 30, 20))
    assert coco.notes == (("1 box rotated: taken as the upright box around it",) if box else ())


def test_boxes_in_other_layouts_are_asked_about(tmp_path: Path) -> None:
    content = coco_content()
    content["images"] = [image | {"height": 40, "width": 60} for image in content["images"]]
    corners = [[2, 3, 10, 12], [30, 20, 50, 36], [5, 25, 55, 39], [10, 10, 40, 30]]
    for entry, box in zip(content["annotations"], corners, strict=True):
        entry |= {"bbox": box, "segmentation": None}
    note = read_content(tmp_path, content).notes[-1]
    assert note.startswith(
        "2 of 4 boxes reach over the edge, and in all of them the third and fourth number are larger"
    )
    assert note.endswith("are they left, top, right, bottom? expected left, top, width, height")
    for entry, (left, top, right, bottom) in zip(content["annotations"], corners, strict=True):
        entry["bbox"] = [left, top, right - left, bottom - top]
    assert read_content(tmp_path, content).notes == ()
    for entry, (left, top, right, bottom) in zip(content["annotations"], corners, strict=True):
        entry["bbox"] = [left / 60, top / 40, (right - left) / 60, (bottom - top) / 40]
    with pytest.raises(
        UserError, match=r"expected boxes in pixels, and all 4 are within one pixel .* if they are frac"
    ):
        read_content(tmp_path, content)


@given(height=st.integers(1, 12), width=st.integers(1, 12), seed=st.integers(0, 1000))
def test_compressed_run_lengths_are_those_of_pycocotools(height: int, width: int, seed: int) -> None:
    mask = np.random.default_rng(seed).integers(0, 2, (height, width), dtype=np.uint8)
    encoded = mask_tools().encode(np.asfortranarray(mask))
    flat = np.append(0, mask.T.ravel())
    changes = np.flatnonzero(np.diff(flat))
    assert run_lengths(encoded["counts"].decode()) == np.diff([0, *changes, height * width]).tolist()


def test_files_that_are_not_coco(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected COCO annotations as JSON"):
        read_content(tmp_path, "not JSON")
    with pytest.raises(UserError, match="with a list 'images'"):
        read_content(tmp_path, [])
    with pytest.raises(UserError, match=r"missing\.json: cannot be read: No such file"):
        read_coco(tmp_path / "missing.json")


def test_images_that_do_not_belong_to_the_file(coco: AnnotationSet, images: Path, tmp_path: Path) -> None:
    check_images(coco, images)
    (images / "3.png").unlink()
    check_images(coco, images)  # a single one counts as a file that cannot be used
    with pytest.raises(UserError, match=r"has none of the 3 images of .*; do the two belong together\?"):
        check_images(coco, tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        check_images(coco, tmp_path / "elsewhere")


def test_real_files(shared: Path) -> None:
    coco = read_coco(shared / "data/coco_mini/annotations/instances_train2017.json")
    check_images(coco, shared / "data/coco_mini/train2017")
    objects = [(image, obj) for image in coco.images for obj in image.objects]
    assert (len(coco.images), len(coco.categories), len(objects)) == (128, 80, 939)
    assert sum(obj.crowd for _, obj in objects) == 10
    assert list(coco.labels.values()) == list(range(1, 81))
    assert sum(not image.objects for image in coco.images) == 2
    for image, obj in objects[::20]:
        left, top, width, height = obj.box
        box = torch.tensor([[left, top, left + width, top + height]])
        if width * height > 200:  # masks lose what is thinner than a pixel
            assert box_iou(box, mask_boxes(torch.from_numpy(object_mask(obj, image.height, image.width))[None])) > 0.8
