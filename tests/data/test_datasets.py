"""Several crops of an image in a batch, and images that cannot be decoded."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from hardpatch.data.augment import TrainTransform
from hardpatch.data.batch import CROP_OFFSET, Batch
from hardpatch.data.crop import resize
from hardpatch.data.loader import eval_batches, train_batches
from hardpatch.data.reading import Reading
from hardpatch.data.sources import Source
from hardpatch.errors import UserError
from tests.data.small import EVAL, MANY_WORKERS, NOT_AN_IMAGE, TRAIN, assert_same, make_folder, take

pytestmark = pytest.mark.filterwarnings(MANY_WORKERS)


# several crops of an image


def test_crops_of_an_image_are_in_one_batch(source: Source) -> None:
    single = take(train_batches(source, TRAIN, batch_size=4, seed=3), 11)
    triple = take(train_batches(source, TRAIN, batch_size=12, seed=3, crops=3), 11)
    for one, three in zip(single, triple, strict=True):
        assert three.images.shape == (12, 3, 16, 16)
        assert torch.equal(three.images[:4], one.images), "more crops do not change the first ones"
        assert torch.equal(three.indices % CROP_OFFSET, one.indices.repeat(3))
        assert (three.indices // CROP_OFFSET).tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert torch.equal(three.labels, one.labels.repeat(3))
        assert three.boxes is not None
        assert three.flipped is not None
        assert len(three.boxes.unique(dim=0)) > 8
        for k, (top, left, h, w) in enumerate((three.boxes * torch.tensor([20, 24, 20, 24])).round().int().tolist()):
            image = source.image(int(three.indices[k] % CROP_OFFSET))[top : top + h, left : left + w]
            expected = resize(image, (16, 16))
            expected = expected[:, ::-1] if three.flipped[k] else expected
            assert np.array_equal(three.images[k].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize(("start", "workers"), [(0, 2), (4, 0), (5, 1)])
def test_crops_resume_and_do_not_depend_on_workers(source: Source, start: int, workers: int) -> None:
    uninterrupted = take(train_batches(source, TRAIN, batch_size=10, seed=1, crops=2), 9)
    resumed = train_batches(source, TRAIN, batch_size=10, seed=1, crops=2, start=start, workers=workers)
    assert_same(uninterrupted[start:], take(resumed, 9 - start))


def test_every_image_has_the_same_number_of_crops(source: Source) -> None:
    batches = take(train_batches(source, TRAIN, batch_size=8, seed=0, crops=4), 11)  # 88 crops of 22 images
    counts = torch.bincount(torch.cat([batch.indices for batch in batches]) % CROP_OFFSET)
    assert counts.tolist() == [4] * 22


def test_image_is_decoded_once_for_all_crops(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []

    def image(i: int, reading: Reading) -> np.ndarray:
        decoded.append(i)
        return original(i, reading)

    original = source.image
    monkeypatch.setattr(source, "image", image)
    take(train_batches(source, TRAIN, batch_size=22, seed=0, crops=2), 2)
    assert sorted(decoded) == list(range(22))


@pytest.mark.parametrize(("batch_size", "crops", "world_size"), [(10, 3, 1), (8, 0, 1), (12, 4, 2)])
def test_crops_must_divide_the_batch(source: Source, batch_size: int, crops: int, world_size: int) -> None:
    with pytest.raises(UserError, match=rf"data\.crops: expected a divisor of .*, got {crops}"):
        train_batches(source, TRAIN, batch_size=batch_size, seed=0, crops=crops, world_size=world_size)


# images that cannot be decoded


def test_undecodable_image_is_replaced_by_the_next(tmp_path: Path) -> None:
    source = make_folder(tmp_path, 8, broken=(2, 3, 7), labeled=False)
    (batch,) = take(
        train_batches(source, TrainTransform((20, 24), scale=(1, 1), ratio=(1.2, 1.2), flip=0), batch_size=8, seed=0), 1
    )
    shown = (0, 1, 4, 4, 4, 5, 6, 0)
    assert sorted(batch.indices.tolist()) == list(range(8))
    for k, index in enumerate(batch.indices.tolist()):
        expected = torch.from_numpy(source.image(shown[index])).permute(2, 0, 1)
        assert torch.equal(batch.images[k], expected), f"image {index} should show {shown[index]}"
    assert sorted(batch.bad) == [f"{source.name(i)}: {NOT_AN_IMAGE}" for i in (2, 3, 7)]


def test_label_belongs_to_the_image_that_is_shown(tmp_path: Path) -> None:
    source = make_folder(tmp_path, 6, broken=(3,))  # sorted by name: 000 003 001 004 002 005
    (batch,) = take(train_batches(source, TRAIN, batch_size=6, seed=0), 1)
    assert source.name(1).endswith("003.png")
    assert batch.labels[batch.indices == 1].item() == source.label(2) == 1


def test_replacements_do_not_depend_on_workers_or_ranks(tmp_path: Path) -> None:
    source = make_folder(tmp_path, 9, broken=(0, 1, 5))
    expected = take(train_batches(source, TRAIN, batch_size=4, seed=0), 6)
    assert_same(expected, take(train_batches(source, TRAIN, batch_size=4, seed=0, workers=2), 6))
    halves = [take(train_batches(source, TRAIN, batch_size=4, seed=0, rank=r, world_size=2), 6) for r in (0, 1)]
    for whole, a, b in zip(expected, *halves, strict=True):
        assert torch.equal(whole.images, torch.cat([a.images, b.images]))
        assert set(whole.bad) == {*a.bad, *b.bad}


def test_evaluation_leaves_out_undecodable_images_and_has_no_empty_batch(tmp_path: Path) -> None:
    broken = (0, 1, 2, 4, 6, 7, 8, 12, 13)
    source = make_folder(tmp_path, 14, broken=broken, labeled=False)
    batches = list(eval_batches(source, EVAL, batch_size=2))
    assert [batch.indices.tolist() for batch in batches] == [[3], [5], [9], [10, 11]]
    assert all(len(batch.images) == len(batch.indices) == len(batch.labels) > 0 for batch in batches)
    for batch, missing in zip(batches, [(0, 1, 2), (4, 6, 7), (8,), (12, 13)], strict=True):
        assert sorted(batch.bad) == [f"{source.name(i)}: {NOT_AN_IMAGE}" for i in missing]
    assert torch.equal(batches[3].images[1], EVAL(source.image(11)))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "open_stream",
    [
        lambda source, workers: train_batches(source, TRAIN, batch_size=2, seed=0, workers=workers),
        lambda source, workers: eval_batches(source, EVAL, batch_size=2, workers=workers),
    ],
    ids=["train", "eval"],
)
def test_error_of_a_source_without_decodable_images_is_one_line(
    tmp_path: Path, workers: int, open_stream: Callable[[Source, int], Iterator[Batch]]
) -> None:
    source = make_folder(tmp_path, 3, broken=(0, 1, 2), labeled=False)
    with pytest.raises(UserError, match=r"none of the 3 images can be decoded.*\d\.png: not a JPEG") as caught:
        next(open_stream(source, workers))
    assert "\n" not in str(caught.value)
