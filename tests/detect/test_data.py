import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.testing import assert_close
from torchvision.ops import box_iou  # type: ignore[import-untyped]

from hardpatch.detect.batches import ScaleJitter, evaluation_samples, extent, training_samples
from hardpatch.detect.data import CocoSet, check_images, mask_of, read_coco
from hardpatch.errors import UserError

# 4 rows of 6: columns 2 and 3 of rows 1 and 2. Run lengths go down the columns, zeros first.
SQUARE = {"counts": [9, 2, 2, 2, 9], "size": [4, 6]}
COMPRESSED = {"counts": "92207", "size": [4, 6]}


def content() -> dict[str, Any]:
    """Three images of 4 x 6 pixels: two objects and a crowd, nothing, one object."""
    image: dict[str, Any] = {"height": 4, "width": 6}
    square = {"bbox": [2, 1, 2, 2], "area": 4, "segmentation": SQUARE}
    return {
        "images": [image | {"id": number, "file_name": f"{number}.png"} for number in (7, 3, 5)],
        "categories": [{"id": 90, "name": "dog"}, {"id": 4, "name": "cat"}],
        "annotations": [
            square | {"id": 0, "image_id": 7, "category_id": 90, "segmentation": [[2, 1, 4, 1, 4, 3, 2, 3]]},
            square | {"id": 1, "image_id": 7, "category_id": 4, "iscrowd": 0},
            square | {"id": 2, "image_id": 7, "category_id": 4, "iscrowd": 1},
            square | {"id": 3, "image_id": 5, "category_id": 4, "segmentation": COMPRESSED},
        ],
    }


@pytest.fixture
def read(tmp_path: Path) -> Callable[[Any], CocoSet]:
    def reading(what: Any) -> CocoSet:
        path = tmp_path / "annotations.json"
        path.write_text(what if isinstance(what, str) else json.dumps(what))
        return read_coco(path)

    return reading


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in (7, 3, 5):
        pixels = np.full((4, 6, 3), number, dtype=np.uint8)
        pixels[1:3, 2:4] = 200
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_a_file_by_hand(read: Callable[[Any], CocoSet]) -> None:
    coco = read(content())
    assert coco.categories == {4: "cat", 90: "dog"}
    assert coco.labels == {4: 1, 90: 2}
    assert coco.category_ids == [4, 90]
    assert [(image.id, image.file, len(image.objects)) for image in coco.images] == [
        (7, "7.png", 3),
        (3, "3.png", 0),
        (5, "5.png", 1),
    ]
    assert [thing.crowd for thing in coco.images[0].objects] == [False, False, True]
    assert coco.dropped == 0
    square = np.zeros((4, 6), dtype=np.uint8)
    square[1:3, 2:4] = 1
    for thing in (*coco.images[0].objects, *coco.images[2].objects):
        assert np.array_equal(mask_of(thing, 4, 6), square), thing


def test_ground_truth_is_the_file_with_ids_from_one(read: Callable[[Any], CocoSet]) -> None:
    truth = read(content()).ground_truth()
    assert [thing["id"] for thing in truth["annotations"]] == [1, 2, 3, 4]
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
def test_degenerate_annotations_are_dropped(read: Callable[[Any], CocoSet], change: dict[str, Any]) -> None:
    changed = content()
    changed["annotations"][3] |= change
    coco = read(changed)
    assert coco.dropped == 1
    assert [len(image.objects) for image in coco.images] == [3, 0, 0]


@pytest.mark.parametrize(
    ("part", "change", "told"),
    [
        ("images", None, "expected COCO annotations, with a list 'images'; found none"),
        ("categories", [], "expected at least one of 'categories', got none"),
        ("images", {"file_name": None}, "images[0] has no 'file_name'; expected id, file_name, height, width"),
        ("images", {"id": 3}, "two images have the id 3"),
        ("annotations", {"bbox": None}, "annotations[0] has no 'bbox'"),
        ("annotations", {"segmentation": None}, "annotations[0] has no 'segmentation'"),
        ("annotations", {"image_id": 8}, "an annotation is of image 8, which is not among 'images'"),
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
            "annotation 0: its mask is of an image of [6, 4] pixels, image 7 has [4, 6]",
        ),
    ],
)
def test_wrong_files(read: Callable[[Any], CocoSet], part: str, change: Any, told: str) -> None:
    changed = content()
    if isinstance(change, dict):
        entry = changed[part][0]
        entry |= change
        changed[part][0] = {key: value for key, value in entry.items() if value is not None}
    elif change is None:
        del changed[part]
    else:
        changed[part] = change
    with pytest.raises(UserError) as raised:
        read(changed)
    assert told in str(raised.value)
    assert "annotations.json" in str(raised.value)


def test_files_that_are_none(read: Callable[[Any], CocoSet], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected COCO annotations as JSON"):
        read("not JSON")
    with pytest.raises(UserError, match="with a list 'images'"):
        read([])
    with pytest.raises(UserError, match=r"missing\.json: cannot be read: No such file"):
        read_coco(tmp_path / "missing.json")


def test_images_that_do_not_belong(read: Callable[[Any], CocoSet], images: Path, tmp_path: Path) -> None:
    coco = read(content())
    check_images(coco, images)
    (images / "3.png").unlink()
    with pytest.raises(UserError, match=r"no such image: 3\.png, one of 1 that"):
        check_images(coco, images)
    with pytest.raises(UserError, match=r"has none of the 3 images of .*; do the two belong together\?"):
        check_images(coco, tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        check_images(coco, tmp_path / "elsewhere")


def test_training_samples(read: Callable[[Any], CocoSet], images: Path) -> None:
    coco = read(content())
    batches = training_samples(coco, images, ScaleJitter(12, (1, 1), 0), batch_size=3, seed=0)
    samples = {sample.place: sample for sample in next(batches)}
    assert set(samples) == {0, 1, 2}
    assert all(sample.image.shape == (3, 8, 12) for sample in samples.values())
    first, empty, last = (samples[k].target for k in range(3))
    assert first["labels"].tolist() == [2, 1]  # without the crowd
    assert first["boxes"].tolist() == [[4, 2, 8, 6]] * 2
    assert last["labels"].tolist() == [1]
    square = torch.zeros(8, 12, dtype=torch.uint8)
    square[2:6, 4:8] = 1
    assert torch.equal(first["masks"], square.expand(2, 8, 12))
    assert empty["boxes"].shape == (0, 4)
    assert empty["labels"].shape == (0,)
    assert empty["masks"].shape == (0, 8, 12)


def test_training_samples_go_on_where_they_stopped(read: Callable[[Any], CocoSet], images: Path) -> None:
    coco = read(content())

    def taken(start: int, number: int, workers: int = 0) -> list[Any]:
        transform = ScaleJitter(8, (0.5, 2.0), 0.5)
        batches = training_samples(coco, images, transform, batch_size=2, seed=3, start=start, workers=workers)
        return [(s.place, s.image.tolist(), s.target["boxes"].tolist()) for _ in range(number) for s in next(batches)]

    whole = taken(0, 6)
    assert taken(4, 2) == whole[8:]
    assert taken(2, 2, workers=1) == whole[4:8]
    assert sorted(place for place, _, _ in whole) == sorted([0, 1, 2] * 4)


def test_evaluation_samples(read: Callable[[Any], CocoSet], images: Path) -> None:
    batches = list(evaluation_samples(read(content()), images, 9, batch_size=2))
    assert [[sample.place for sample in batch] for batch in batches] == [[0, 1], [2]]
    assert all(sample.image.shape == (3, 6, 9) and not sample.target for batch in batches for sample in batch)


def test_images_of_another_size_or_none(read: Callable[[Any], CocoSet], images: Path) -> None:
    coco = read(content())
    (images / "3.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"cannot use an image: .*3\.png: not a JPEG"):
        list(evaluation_samples(coco, images, 9, batch_size=2))
    Image.new("RGB", (4, 6)).save(images / "3.png")
    with pytest.raises(UserError, match=r"3\.png: the annotation file says 4x6 pixels, the image has 6x4"):
        list(evaluation_samples(coco, images, 9, batch_size=2, workers=1))


def rectangle(box: list[int], height: int, width: int) -> np.ndarray:
    mask = np.zeros((1, height, width), dtype=np.uint8)
    mask[0, box[1] : box[3], box[0] : box[2]] = 1
    return mask


def test_a_flip_by_hand() -> None:
    image = np.arange(24, dtype=np.uint8).reshape(4, 6, 1)
    box = [1, 0, 3, 2]
    boxes = np.array([box], dtype=np.float32)
    flipped = ScaleJitter(6, (1, 1), flip=1.0)
    pixels, target = flipped(image, boxes, np.array([5]), rectangle(box, 4, 6), np.random.default_rng(0))
    assert torch.equal(pixels[0], torch.from_numpy(image[:, ::-1, 0].copy()))
    assert target["boxes"].tolist() == [[3, 0, 5, 2]]
    assert target["labels"].tolist() == [5]
    assert_close(extent(target["masks"]), target["boxes"])


@given(
    size=st.integers(8, 40),
    box=st.tuples(st.integers(0, 20), st.integers(0, 14), st.integers(2, 20), st.integers(2, 14)),
    scale=st.floats(0.2, 3.0),
    seed=st.integers(0, 1000),
)
def test_boxes_masks_and_pixels_stay_together(
    size: int, box: tuple[int, int, int, int], scale: float, seed: int
) -> None:
    height, width = 16, 24
    corners = [box[0], box[1], min(box[0] + box[2], width), min(box[1] + box[3], height)]
    mask = rectangle(corners, height, width)
    image = (mask[0, :, :, None] * 255).astype(np.uint8)
    transform = ScaleJitter(size, (scale, scale))
    boxes = np.array([corners], dtype=np.float32)
    pixels, target = transform(image, boxes, np.array([1]), mask, np.random.default_rng(seed))
    assert max(pixels.shape[1:]) <= size
    assert target["masks"].shape[1:] == pixels.shape[1:]
    if len(target["boxes"]):
        found = target["boxes"][0]
        assert found.min() >= 0
        assert bool((found[2:] > found[:2]).all())
        assert found[2] <= pixels.shape[2]
        assert found[3] <= pixels.shape[1]
        # the mask is in whole pixels, the box is not
        assert (extent(target["masks"])[0] - found).abs().max() <= 1
        inside = target["masks"][0].bool()
        assert (pixels[0][inside].float().mean() > 127) or inside.sum() < 20
        assert (pixels[0][~inside].float().mean() < 127) or (~inside).sum() < 20


def test_what_is_cut_off_gets_the_box_of_the_rest() -> None:
    # An L: a column on the left, a row at the bottom. Of a crop that misses the column only the row is left.
    image, mask = np.zeros((10, 10, 1), dtype=np.uint8), np.zeros((1, 10, 10), dtype=np.uint8)
    mask[0, :, 0], mask[0, 8:, :] = 1, 1
    boxes = np.array([[0, 0, 10, 10]], dtype=np.float32)
    seen = set()
    for seed in range(40):
        crop = ScaleJitter(5, (2, 2), flip=0.0)
        _, target = crop(image, boxes, np.array([1]), mask, np.random.default_rng(seed))
        seen |= {tuple(box) for box in target["boxes"].tolist()}
        assert torch.equal(target["boxes"], extent(target["masks"]))
    assert (0.0, 3.0, 5.0, 5.0) in seen


def test_extent_by_hand() -> None:
    masks = torch.zeros(2, 4, 5, dtype=torch.uint8)
    masks[0, 1:3, 2:5] = 1
    assert extent(masks).tolist() == [[2, 1, 5, 3], [0, 0, 0, 0]]
    assert extent(masks[:0]).shape == (0, 4)


def test_a_range_of_sizes_must_rise() -> None:
    for scale in ((0.0, 1.0), (2.0, 1.0)):
        with pytest.raises(ValueError, match=r"jitter: expected two rising numbers above 0"):
            ScaleJitter(8, scale)


def test_the_real_files(shared: Path) -> None:
    coco = read_coco(shared / "data/coco_mini/annotations/instances_train2017.json")
    check_images(coco, shared / "data/coco_mini/train2017")
    objects = [(image, thing) for image in coco.images for thing in image.objects]
    assert (len(coco.images), len(coco.categories), len(objects) + coco.dropped) == (128, 80, 939)
    assert sum(thing.crowd for _, thing in objects) == 10
    assert list(coco.labels.values()) == list(range(1, 81))
    assert sum(not image.objects for image in coco.images) == 2
    for image, thing in objects[::20]:
        left, top, width, height = thing.box
        box = torch.tensor([[left, top, left + width, top + height]])
        if width * height > 200:  # masks lose what is thinner than a pixel
            assert box_iou(box, extent(torch.from_numpy(mask_of(thing, image.height, image.width))[None])) > 0.8
