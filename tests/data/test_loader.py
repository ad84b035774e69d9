from pathlib import Path

import numpy as np
import pytest
import torch

from hardpatch.data.augment import EvalTransform, TrainTransform
from hardpatch.data.crop import resize
from hardpatch.data.loader import eval_batches, prefetch_factor, train_batches
from hardpatch.data.reading import Reading
from hardpatch.data.sources import Source, open_source
from hardpatch.errors import UserError
from tests.data.small import EVAL, MANY_WORKERS, TRAIN, assert_same, make_folder, take

pytestmark = pytest.mark.filterwarnings(MANY_WORKERS)


# training


def test_shapes_and_types(source: Source) -> None:
    (batch,) = take(train_batches(source, TRAIN, batch_size=5, seed=0), 1)
    assert batch.images.shape == (5, 3, 16, 16)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous()
    assert batch.indices.dtype == batch.labels.dtype == torch.int64
    assert batch.labels.tolist() == [source.label(i) for i in batch.indices.tolist()]
    assert batch.bad == []
    assert batch.local is None


def test_crop_shows_its_box_and_flip(source: Source) -> None:
    (batch,) = take(train_batches(source, TrainTransform((12, 14)), batch_size=22, seed=0), 1)
    assert batch.boxes is not None
    assert batch.flipped is not None
    assert batch.boxes.dtype == torch.float32
    assert 0 < batch.flipped.sum() < 22
    in_pixels = (batch.boxes.double() * torch.tensor([20, 24, 20, 24])).round().int().tolist()
    for k, (top, left, h, w) in enumerate(in_pixels):
        image = source.image(int(batch.indices[k]))[top : top + h, left : left + w]
        expected = resize(image, (12, 14))
        expected = expected[:, ::-1] if batch.flipped[k] else expected
        assert np.array_equal(batch.images[k].permute(1, 2, 0).numpy(), expected)


def test_gray_and_unlabeled(tmp_path: Path) -> None:
    source = make_folder(tmp_path, 4, labeled=False)
    (batch,) = take(train_batches(source, TrainTransform((8, 12), reading=Reading(1)), batch_size=4, seed=0), 1)
    assert batch.images.shape == (4, 1, 8, 12)
    assert batch.labels.tolist() == [-1] * 4


def test_each_epoch_is_a_new_permutation(source: Source) -> None:
    batches = take(train_batches(source, TRAIN, batch_size=5, seed=0), 22)
    indices = torch.cat([batch.indices for batch in batches]).reshape(5, 22)
    for epoch in indices:
        assert sorted(epoch.tolist()) == list(range(22))
    assert len({tuple(epoch.tolist()) for epoch in indices}) == 5


def test_seed_changes_the_order(source: Source) -> None:
    first, second = (take(train_batches(source, TRAIN, batch_size=22, seed=seed), 1)[0] for seed in (0, 1))
    assert not torch.equal(first.indices, second.indices)


def test_crops_differ_between_epochs(source: Source) -> None:
    first, second = take(train_batches(source, TRAIN, batch_size=22, seed=0), 2)
    for i in range(22):
        assert not torch.equal(first.images[first.indices == i], second.images[second.indices == i])


def test_batch_larger_than_the_set(source: Source) -> None:
    batches = take(train_batches(source, TRAIN, batch_size=50, seed=0), 11)
    counts = torch.bincount(torch.cat([batch.indices for batch in batches]), minlength=22)
    assert counts.tolist() == [25] * 22
    assert_same(batches[7:], take(train_batches(source, TRAIN, batch_size=50, seed=0, start=7), 4))


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_workers(source: Source, workers: int) -> None:
    expected = take(train_batches(source, TRAIN, batch_size=5, seed=3), 9)
    assert_same(expected, take(train_batches(source, TRAIN, batch_size=5, seed=3, workers=workers), 9))


@pytest.mark.parametrize(("start", "workers"), [(1, 0), (4, 2), (9, 0)])
def test_resume_is_exact(source: Source, start: int, workers: int) -> None:
    uninterrupted = take(train_batches(source, TRAIN, batch_size=5, seed=3), 12)
    resumed = take(train_batches(source, TRAIN, batch_size=5, seed=3, start=start, workers=workers), 12 - start)
    assert_same(uninterrupted[start:], resumed)


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_ranks_share_each_batch(source: Source, world_size: int) -> None:
    whole = take(train_batches(source, TRAIN, batch_size=6, seed=1, start=2), 8)
    shares = [
        take(train_batches(source, TRAIN, batch_size=6, seed=1, start=2, rank=rank, world_size=world_size), 8)
        for rank in range(world_size)
    ]
    for expected, *parts in zip(whole, *shares, strict=True):
        assert torch.equal(expected.images, torch.cat([part.images for part in parts]))
        assert torch.equal(expected.indices, torch.cat([part.indices for part in parts]))
        assert torch.equal(expected.labels, torch.cat([part.labels for part in parts]))


def test_prefetching_is_limited_by_memory() -> None:
    assert prefetch_factor(256 * 3 * 224 * 224, workers=8) == 4
    assert prefetch_factor(4096 * 3 * 224 * 224, workers=1) == 3
    assert prefetch_factor(4096 * 3 * 224 * 224, workers=8) == 1
    assert prefetch_factor(1, workers=0) == 4


# evaluation


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_is_every_image_once_in_order(source: Source, workers: int) -> None:
    batches = list(eval_batches(source, EVAL, batch_size=8, workers=workers))
    assert [len(batch.images) for batch in batches] == [8, 8, 6]
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(22))
    assert torch.cat([batch.labels for batch in batches]).tolist() == [source.label(i) for i in range(22)]
    assert torch.equal(batches[1].images[2], EVAL(source.image(10)))
    assert batches[0].boxes is batches[0].flipped is None


# mistakes


@pytest.mark.parametrize(("batch_size", "world_size"), [(0, 1), (-4, 1), (6, 4)])
def test_batch_size_must_be_shared_evenly(source: Source, batch_size: int, world_size: int) -> None:
    with pytest.raises(UserError, match=f"batch_size: .*{world_size} processes, got {batch_size}"):
        train_batches(source, TRAIN, batch_size=batch_size, seed=0, world_size=world_size)


def test_arguments_are_checked_before_anything_runs(source: Source) -> None:
    with pytest.raises(UserError, match="seed: expected 0 or more, got -1"):
        train_batches(source, TRAIN, batch_size=4, seed=-1)
    with pytest.raises(UserError, match=r"data\.channels"):
        train_batches(source, TrainTransform((16, 16), reading=Reading(0)), batch_size=4, seed=0)
    with pytest.raises(UserError, match=r"data\.channels"):
        eval_batches(source, EvalTransform((16, 16), reading=Reading((1, 1))), batch_size=4)
    with pytest.raises(UserError, match="batch_size"):
        eval_batches(source, EVAL, batch_size=0)


# real data


def test_real_images(shared: Path) -> None:
    source = open_source(shared / "data" / "caltech100_128" / "train")
    batches = take(train_batches(source, TrainTransform((48, 48)), batch_size=64, seed=0), 4)
    assert all(batch.bad == [] for batch in batches)
    mean = torch.cat([batch.images for batch in batches]).float().mean()
    assert 80 < mean < 180
