"""Jitter that keeps boxes, masks and pixels together, batches that resume, images that cannot be used."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.testing import assert_close

from hardpatch.detect.annotations import AnnotationSet
from hardpatch.detect.batches import ScaleJitter, evaluation_batches, mask_boxes, training_batches
from hardpatch.errors import UserError


def test_training_batches_by_hand(coco: AnnotationSet, images: Path) -> None:
    batch = next(training_batches(coco, images, ScaleJitter(12, (1, 1), 0), batch_size=3, seed=0))
    assert batch.bad == []
    samples = {sample.image_index: sample for sample in batch.samples}
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


def test_training_batches_resume_where_they_stopped(coco: AnnotationSet, images: Path) -> None:
    def samples(start: int, count: int, workers: int = 0) -> list[tuple[int, list[int], list[float]]]:
        jitter = ScaleJitter(8, (0.5, 2.0), 0.5)
        batches = training_batches(coco, images, jitter, batch_size=2, seed=3, start=start, workers=workers)
        return [
            (sample.image_index, sample.image.tolist(), sample.target["boxes"].tolist())
            for _ in range(count)
            for sample in next(batches).samples
        ]

    whole = samples(0, 6)
    assert samples(4, 2) == whole[8:]
    assert samples(2, 2, workers=1) == whole[4:8]
    assert sorted(index for index, _, _ in whole) == sorted([0, 1, 2] * 4)


def test_evaluation_batches_by_hand(coco: AnnotationSet, images: Path) -> None:
    batches = list(evaluation_batches(coco, images, 9, batch_size=2))
    assert [[sample.image_index for sample in batch.samples] for batch in batches] == [[0, 1], [2]]
    samples = [sample for batch in batches for sample in batch.samples]
    assert all(sample.image.shape == (3, 6, 9) and not sample.target for sample in samples)


@pytest.mark.parametrize("workers", [0, 1])
def test_unusable_images_are_named_and_skipped(coco: AnnotationSet, images: Path, workers: int) -> None:
    (images / "3.png").write_bytes(b"no picture")
    Image.new("RGB", (4, 6)).save(images / "5.png")
    messages = [
        f"{images / '3.png'}: not a JPEG",
        f"{images / '5.png'}: the annotations say 4x6 pixels, the image has 6x4",
    ]
    evaluated = list(evaluation_batches(coco, images, 9, batch_size=2, workers=workers))
    assert [[sample.image_index for sample in batch.samples] for batch in evaluated] == [[0], []]
    bad = [entry for batch in evaluated for entry in batch.bad]
    assert [entry.startswith(message) for entry, message in zip(bad, messages, strict=True)] == [True, True]

    batches = training_batches(coco, images, ScaleJitter(12, (1, 1), 0), batch_size=3, seed=0, workers=workers)
    batch = next(batches)
    batches.close()
    assert [sample.image_index for sample in batch.samples] == [0, 0, 0]  # the next usable one takes their place
    assert all(sample.target["labels"].tolist() == [2, 1] for sample in batch.samples)
    assert sorted(batch.bad) == sorted(bad)  # each once


def test_no_image_can_be_used(coco: AnnotationSet, images: Path) -> None:
    for image in images.iterdir():
        image.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"none of the 3 images can be decoded; the last was .*\.png: not a JPEG"):
        next(training_batches(coco, images, ScaleJitter(12), batch_size=2, seed=0))


def rectangle(box: list[int], height: int, width: int) -> np.ndarray:
    """Mask ``[1, height, width]`` of a box of (left, top, right, bottom)."""
    mask = np.zeros((1, height, width), dtype=np.uint8)
    mask[0, box[1] : box[3], box[0] : box[2]] = 1
    return mask


def test_a_flip_by_hand() -> None:
    image = np.arange(24, dtype=np.uint8).reshape(4, 6, 1)
    box = [1, 0, 3, 2]
    boxes = np.array([box], dtype=np.float32)
    jitter = ScaleJitter(6, (1, 1), flip=1.0)
    pixels, target = jitter(image, boxes, np.array([5]), rectangle(box, 4, 6), np.random.default_rng(0))
    assert torch.equal(pixels[0], torch.from_numpy(image[:, ::-1, 0].copy()))
    assert target["boxes"].tolist() == [[3, 0, 5, 2]]
    assert target["labels"].tolist() == [5]
    assert_close(mask_boxes(target["masks"]), target["boxes"])


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
    jitter = ScaleJitter(size, (scale, scale))
    boxes = np.array([corners], dtype=np.float32)
    pixels, target = jitter(image, boxes, np.array([1]), mask, np.random.default_rng(seed))
    assert max(pixels.shape[1:]) <= size
    assert target["masks"].shape[1:] == pixels.shape[1:]
    if len(target["boxes"]):
        jittered = target["boxes"][0]
        assert jittered.min() >= 0
        assert bool((jittered[2:] > jittered[:2]).all())
        assert jittered[2] <= pixels.shape[2]
        assert jittered[3] <= pixels.shape[1]
        # the mask is in whole pixels, the box is not
        assert (mask_boxes(target["masks"])[0] - jittered).abs().max() <= 1
        inside = target["masks"][0].bool()
        assert (pixels[0][inside].float().mean() > 127) or inside.sum() < 20
        assert (pixels[0][~inside].float().mean() < 127) or (~inside).sum() < 20


def test_a_cropped_object_gets_the_box_of_its_remaining_mask() -> None:
    # An L: a column on the left, a row at the bottom. A crop that misses the column keeps the row alone.
    image, mask = np.zeros((10, 10, 1), dtype=np.uint8), np.zeros((1, 10, 10), dtype=np.uint8)
    mask[0, :, 0], mask[0, 8:, :] = 1, 1
    boxes = np.array([[0, 0, 10, 10]], dtype=np.float32)
    cropped = set()
    for seed in range(40):
        jitter = ScaleJitter(5, (2, 2), flip=0.0)
        _, target = jitter(image, boxes, np.array([1]), mask, np.random.default_rng(seed))
        cropped |= {tuple(box) for box in target["boxes"].tolist()}
        assert torch.equal(target["boxes"], mask_boxes(target["masks"]))
    assert (0.0, 3.0, 5.0, 5.0) in cropped


def test_mask_boxes_by_hand() -> None:
    masks = torch.zeros(2, 4, 5, dtype=torch.uint8)
    masks[0, 1:3, 2:5] = 1
    assert mask_boxes(masks).tolist() == [[2, 1, 5, 3], [0, 0, 0, 0]]
    assert mask_boxes(masks[:0]).shape == (0, 4)


def test_a_range_of_scales_must_rise() -> None:
    for scale in ((0.0, 1.0), (2.0, 1.0)):
        with pytest.raises(ValueError, match=r"jitter: expected two rising numbers above 0"):
            ScaleJitter(8, scale)
