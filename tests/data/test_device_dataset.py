"""A data set on the device, here the CPU: its order, its crops, and its limits."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hardpatch.data import device_dataset
from hardpatch.data.augment import TrainTransform
from hardpatch.data.device_dataset import DeviceDataset
from hardpatch.data.loader import train_batches
from hardpatch.data.sources import Source, open_source
from hardpatch.errors import UserError
from tests.data.small import make_folder, take

CPU = torch.device("cpu")


def test_order_is_that_of_the_loader(source: Source) -> None:
    transform = TrainTransform((16, 16))
    dataset = DeviceDataset(source, transform, CPU)
    for ours, loaders in zip(
        take(dataset.batches(batch_size=5, seed=3, start=2), 9),
        take(train_batches(source, transform, batch_size=5, seed=3, start=2), 9),
        strict=True,
    ):
        assert torch.equal(ours.indices, loaders.indices)
        assert torch.equal(ours.labels, loaders.labels)
        assert ours.images.shape == loaders.images.shape
        assert ours.images.dtype == loaders.images.dtype
        assert ours.bad == loaders.bad == []
        assert ours.boxes is not None
        assert ours.flipped is not None
        assert loaders.boxes is not None
        assert ours.boxes.shape == loaders.boxes.shape


def test_crop_shows_its_box(source: Source) -> None:
    (batch,) = take(DeviceDataset(source, TrainTransform((12, 14)), CPU).batches(batch_size=22, seed=0), 1)
    assert batch.boxes is not None
    assert batch.flipped is not None
    assert 0 < batch.flipped.sum() < 22
    for k, box in enumerate((batch.boxes.double() * torch.tensor([20, 24, 20, 24])).tolist()):
        top, left, h, w = map(round, box)
        assert [top, left, h, w] == pytest.approx(box, abs=1e-4)
        image = torch.from_numpy(source.image(int(batch.indices[k]))[top : top + h, left : left + w].copy())
        part = image.permute(2, 0, 1)[None]
        expected = F.interpolate(part.float(), (12, 14), mode="bicubic", antialias=True, align_corners=False)[0]
        expected = expected.round().clamp(0, 255)
        expected = expected.flip(2) if batch.flipped[k] else expected
        assert (batch.images[k].int() - expected).abs().max() <= 1


def test_resume_is_exact_and_ranks_share_each_batch(source: Source) -> None:
    dataset = DeviceDataset(source, TrainTransform((16, 16)), CPU)
    whole = take(dataset.batches(batch_size=6, seed=1), 9)
    for a, b in zip(whole[4:], take(dataset.batches(batch_size=6, seed=1, start=4), 5), strict=True):
        assert torch.equal(a.images, b.images)
    halves = [take(dataset.batches(batch_size=6, seed=1, rank=rank, world_size=2), 9) for rank in (0, 1)]
    for a, *parts in zip(whole, *halves, strict=True):
        assert torch.equal(a.images, torch.cat([part.images for part in parts]))
    other = take(dataset.batches(batch_size=6, seed=2), 1)[0]
    assert not torch.equal(other.images, whole[0].images)


def test_crops_differ_between_epochs(source: Source) -> None:
    dataset = DeviceDataset(source, TrainTransform((16, 16)), CPU)
    first, second = take(dataset.batches(batch_size=22, seed=0), 2)
    for i in range(22):
        assert not torch.equal(first.images[first.indices == i], second.images[second.indices == i])


def test_several_crops_of_an_image(source: Source) -> None:
    transform = TrainTransform((16, 16))
    dataset = DeviceDataset(source, transform, CPU)
    single = take(dataset.batches(batch_size=4, seed=3), 6)
    triple = take(dataset.batches(batch_size=12, seed=3, crops=3), 6)
    loaders = take(train_batches(source, transform, batch_size=12, seed=3, crops=3), 6)
    for one, three, other in zip(single, triple, loaders, strict=True):
        assert torch.equal(three.indices, other.indices)
        assert torch.equal(three.labels, other.labels)
        assert torch.equal(three.images[:4], one.images)
        assert three.boxes is not None
        assert len(three.boxes.unique(dim=0)) > 8
    with pytest.raises(UserError, match=r"data\.crops"):
        next(dataset.batches(batch_size=10, seed=0, crops=3))


def test_crops_do_not_depend_on_chunks(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = DeviceDataset(source, TrainTransform((16, 16)), CPU)
    (whole,) = take(dataset.batches(batch_size=22, seed=0), 1)
    monkeypatch.setattr(device_dataset, "CHUNK_VALUES", 5 * 20 * 24 * 3)
    (chunked,) = take(dataset.batches(batch_size=22, seed=0), 1)
    assert torch.equal(whole.images, chunked.images)


def test_undecodable_images_are_replaced_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_dataset, "STAGING_IMAGES", 4)
    source = make_folder(tmp_path, 9, broken=(0, 1, 5, 8))
    transform = TrainTransform((20, 24), scale=(1, 1), ratio=(1.2, 1.2), flip=0)  # the whole image
    dataset = DeviceDataset(source, transform, CPU)
    for ours, loaders in zip(
        take(dataset.batches(batch_size=4, seed=0), 6),
        take(train_batches(source, transform, batch_size=4, seed=0), 6),
        strict=True,
    ):
        assert torch.equal(ours.images, loaders.images)
        assert torch.equal(ours.labels, loaders.labels)
        assert ours.bad == loaders.bad


def test_set_without_decodable_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none of the 3 images can be decoded.*not a JPEG"):
        DeviceDataset(make_folder(tmp_path, 3, broken=(0, 1, 2)), TrainTransform((8, 8)), CPU)


def test_images_of_several_sizes_are_stored_as_squares(tmp_path: Path, photograph: np.ndarray) -> None:
    from PIL import Image

    for k, shape in enumerate([(300, 400), (512, 256), (200, 200)]):
        Image.fromarray(photograph[: shape[0], : shape[1]]).save(tmp_path / f"{k}.png")
    source = open_source(tmp_path)
    transform = TrainTransform((64, 64), scale=(0.3, 1.0))
    default = DeviceDataset(source, transform, CPU)
    assert default.images.shape == (3, 80, 3, 80)  # 64 / sqrt(0.65)
    large = DeviceDataset(source, transform, CPU, side=200)
    assert large.images.shape == (3, 200, 3, 200)
    for dataset, tolerance in ((default, 9), (large, 4)):
        for batch in take(dataset.batches(batch_size=3, seed=0), 5):
            assert batch.boxes is not None
            assert batch.flipped is not None
            for k, index in enumerate(batch.indices.tolist()):
                image = source.image(index)
                size = np.array(image.shape[:2] * 2)
                box = batch.boxes[k].double().numpy() * size
                top, left, h, w = map(round, box)
                assert np.allclose([top, left, h, w], box, atol=1e-3), "boxes are whole pixels of the image"
                assert 0.29 < h * w / size[:2].prod() <= 1
                part = torch.from_numpy(image[top : top + h, left : left + w].copy()).permute(2, 0, 1)[None]
                expected = F.interpolate(part, (64, 64), mode="bicubic", antialias=True, align_corners=False)[0]
                expected = expected.flip(2) if batch.flipped[k] else expected
                assert (batch.images[k].float() - expected.float()).abs().mean() < tolerance


def test_set_that_does_not_fit_is_refused_in_one_line(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_dataset, "available_memory", lambda: 30_000)
    with pytest.raises(
        UserError, match=r"data\.in_memory: 22 images of 20 x 24 take 0\.0 GB.*data\.device_side"
    ) as caught:
        DeviceDataset(source, TrainTransform((8, 8)), CPU)
    assert "\n" not in str(caught.value)


def test_stream_is_endless(source: Source) -> None:
    dataset = DeviceDataset(source, TrainTransform((8, 8)), CPU)
    batches = take(dataset.batches(batch_size=50, seed=0), 11)
    counts = torch.bincount(torch.cat([batch.indices for batch in batches]))
    assert counts.tolist() == [25] * 22


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_computes_the_crops_of_the_cpu_without_synchronization(source: Source) -> None:
    transform = TrainTransform((16, 16))
    on_host = take(DeviceDataset(source, transform, CPU).batches(batch_size=10, seed=0, crops=2), 5)
    stream = DeviceDataset(source, transform, torch.device("cuda")).batches(batch_size=10, seed=0, crops=2)
    on_gpu = [next(stream)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_gpu += [next(stream) for _ in range(4)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for cpu, gpu in zip(on_host, on_gpu, strict=True):
        assert torch.equal(cpu.indices, gpu.indices.cpu())
        assert torch.equal(cpu.labels, gpu.labels.cpu())
        assert cpu.boxes is not None
        assert gpu.boxes is not None
        same = (cpu.boxes == gpu.boxes.cpu()).all(dim=1)  # a side may be rounded the other way
        assert same.float().mean() > 0.8
        assert (cpu.images[same].int() - gpu.images.cpu()[same].int()).abs().max() <= 1
