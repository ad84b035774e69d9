"""Crops that keep pixels and labels together, batches that resume, files that cannot be decoded."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from hardpatch.data.reading import Reading
from hardpatch.errors import UserError
from hardpatch.segment.batches import (
    SegmentationTransform,
    distort,
    evaluation_pairs,
    scaled_size,
    segmentation_batches,
)
from hardpatch.segment.check import check_sets
from hardpatch.segment.data import IGNORED, open_segmentation
from tests.segment.small import THREE, blocks


@given(st.integers(0, 2**32), st.integers(8, 40), st.integers(8, 40))
def test_crops_keep_pixels_and_labels_together(seed: int, height: int, width: int) -> None:
    labels = blocks(seed % 97).astype(np.uint8)
    image = np.repeat((20 * labels)[..., None], 3, axis=2)
    transform = SegmentationTransform((height, width), 24, scale=(1.0, 1.0), photometric=False, fill=(1, 2, 3))
    pixels, classes = transform(image, labels, np.random.default_rng(seed))
    assert pixels.shape == (3, height, width)
    assert classes.shape == (height, width)
    inside = classes != IGNORED
    assert inside.sum() == min(height, 24) * min(width, 32)
    for channel, fill in enumerate((1, 2, 3)):
        expected = torch.where(inside, 20 * classes.int(), fill)
        assert torch.equal(pixels[channel].int(), expected)


def test_scaled_crops_keep_pixels_and_labels_together() -> None:
    labels = blocks(5, 96, 128).astype(np.uint8)
    image = np.repeat((20 * labels)[..., None], 3, axis=2)
    transform = SegmentationTransform((64, 64), 96, photometric=False)
    shares = []
    for seed in range(20):
        pixels, classes = transform(image, labels, np.random.default_rng(seed))
        inside = classes != IGNORED
        same = (pixels[0].float() / 20).round() == classes
        shares.append((same & inside).sum() / inside.sum())
    assert min(shares) > 0.8  # the rest are edges, which bicubic smooths; a shift by a square would leave a third


def test_crops_of_one_class_are_redrawn() -> None:
    labels = np.zeros((40, 200), dtype=np.uint8)
    labels[:20, 150:], labels[20:, 150:] = 1, 2
    image = np.zeros((40, 200, 3), dtype=np.uint8)

    def too_uniform(cat_max_ratio: float) -> int:
        transform = SegmentationTransform((40, 40), 40, scale=(1, 1), cat_max_ratio=cat_max_ratio, photometric=False)
        crops = [transform(image, labels, np.random.default_rng(seed))[1] for seed in range(100)]
        return sum(int(np.bincount(crop.flatten()).max()) >= 0.75 * 1600 for crop in crops)

    assert too_uniform(1.0) > 60  # about 121 of the 161 positions
    assert too_uniform(0.75) < 20  # 0.75 ** 10 = 6 % find no good position in ten draws


def test_distortion() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    distorted = [distort(image, np.random.default_rng(seed)) for seed in range(200)]
    assert all(pixels.shape == image.shape and pixels.dtype == np.uint8 for pixels in distorted)
    # one in 16 is unchanged: each of the four changes has probability one half
    assert 2 <= sum(np.array_equal(pixels, image) for pixels in distorted) <= 40
    gray = np.full((4, 4, 3), 100, dtype=np.uint8)
    for seed in range(50):
        pixels = distort(gray, np.random.default_rng(seed))
        assert (pixels == pixels[0, 0, 0]).all()  # gray has neither hue nor saturation
        assert (100 - 32) * 0.5 - 1 <= pixels[0, 0, 0] <= (100 + 32) * 1.5 + 1
    assert len({int(distort(gray, np.random.default_rng(seed))[0, 0, 0]) for seed in range(50)}) > 20
    assert distort(image[..., :1], np.random.default_rng(1)).shape == (6, 8, 1)


def test_batches_resume_where_they_stopped(folder: Path) -> None:
    pairs = open_segmentation(folder, "train", THREE)
    transform = SegmentationTransform((16, 16), 24)

    def tensors(start: int, count: int, workers: int = 0) -> list[torch.Tensor]:
        loader = segmentation_batches(
            pairs, transform, batch_size=4, reading=Reading(3), seed=3, start=start, workers=workers
        )
        batches = [next(loader) for _ in range(count)]
        loader.close()
        assert batches[0].images.shape == (4, 3, 16, 16)
        assert batches[0].images.dtype == batches[0].labels.dtype == torch.uint8
        return [tensor for batch in batches for tensor in (batch.images, batch.labels)]

    whole = tensors(0, 5)
    assert_close(tensors(2, 3), whole[4:], rtol=0, atol=0)
    assert_close(tensors(2, 3, workers=2), whole[4:], rtol=0, atol=0)
    assert not torch.equal(whole[0], whole[2])


@pytest.mark.parametrize("part", ["images", "labels"])
def test_a_broken_file_is_named_and_another_pair_takes_its_place(folder: Path, part: str) -> None:
    broken = folder / part / "train" / "train_1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    pairs = open_segmentation(folder, "train", THREE)
    transform = SegmentationTransform((24, 32), 24, scale=(1, 1), cat_max_ratio=1, flip=0, photometric=False)
    batches = segmentation_batches(pairs, transform, batch_size=3, reading=Reading(3), seed=0)
    batch = next(batches)
    batches.close()
    (bad,) = batch.bad
    assert bad.startswith(f"{broken}: ")
    maps = sorted(labels.tolist() for labels in batch.labels)
    assert maps == sorted([blocks(0).tolist(), blocks(2).tolist(), blocks(2).tolist()])
    assert [
        (pair.bad.startswith(f"{broken}: "), len(pair.image) > 0) for pair in evaluation_pairs(pairs, 24, Reading(3))
    ] == [
        (False, True),
        (True, False),
        (False, True),
    ]


def test_no_file_can_be_decoded(folder: Path) -> None:
    pairs = open_segmentation(folder, "train", THREE)
    check_sets({"train": pairs})
    for image in pairs.images:
        image.write_bytes(image.read_bytes()[:60])
    with pytest.raises(UserError, match=r"none of the 3 images can be decoded; the last was .*train_\d\.png: "):
        next(segmentation_batches(pairs, SegmentationTransform((8, 8), 24), batch_size=2, reading=Reading(3), seed=0))


def test_whole_images_at_another_scale(folder: Path) -> None:
    pairs = open_segmentation(folder, "val", THREE)
    evaluated = list(evaluation_pairs(pairs, 12, Reading(3)))
    assert [pair.image.shape for pair in evaluated] == [(3, 12, 16)] * 2
    assert [pair.labels.shape for pair in evaluated] == [(24, 32)] * 2
    assert evaluated[1].labels.tolist() == blocks(1).tolist()
    assert scaled_size((360, 480), 96) == (96, 128)
    assert scaled_size((480, 361), 100, 0.5) == (66, 50)
