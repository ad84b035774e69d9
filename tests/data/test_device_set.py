"""Crops made on the device, here the CPU: what they show, how they are drawn, what order they come in."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hardpatch.data import device_set
from hardpatch.data.augment import TrainTransform, crop_box
from hardpatch.data.device_set import TRIES, DeviceSet, crop, crop_boxes, resize_weights
from hardpatch.data.loader import train_batches
from hardpatch.data.sources import Source, open_source
from hardpatch.errors import UserError
from hardpatch.randomness import patch_noise
from tests.data.test_augment import same_law
from tests.data.test_loader import make_folder, take

CPU = torch.device("cpu")
RATIO = (3 / 4, 4 / 3)


def rows_first(images: torch.Tensor) -> torch.Tensor:
    """[B, C, H, W] as a device set holds it."""
    return images.transpose(1, 2).contiguous()


# a crop


@settings(max_examples=40)
@given(
    # torch 2.15 gives wrong numbers for parts and outputs one pixel wide, whose memory format it mistakes
    box=st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(2, 60), st.integers(2, 60)),
    size=st.tuples(st.integers(2, 50), st.integers(2, 50)),
    channels=st.sampled_from([1, 3]),
    saturated=st.booleans(),
)
def test_crop_is_interpolate_within_a_gray_level(
    box: tuple[int, int, int, int], size: tuple[int, int], channels: int, saturated: bool
) -> None:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, channels, 100, 101), dtype=torch.uint8, generator=rng)
    if saturated:  # where bicubic interpolation shoots over
        images = (images > 127).byte() * 255
    top, left, h, w = box
    boxes = torch.tensor([box, box], dtype=torch.float32)
    out = crop(rows_first(images), boxes, torch.tensor([False, True]), size)
    part = images[:, :, top : top + h, left : left + w].float()
    expected = F.interpolate(part, size, mode="bicubic", antialias=True, align_corners=False)
    expected = expected.round().clamp(0, 255).int()
    assert out.dtype == torch.uint8
    assert out.is_contiguous()
    assert (out[0].int() - expected[0]).abs().max() <= 1
    assert (out[1].int() - expected[1].flip(2)).abs().max() <= 1


def test_crop_of_a_photograph_beside_the_kernel_for_bytes(photograph: np.ndarray) -> None:
    image = torch.from_numpy(photograph).permute(2, 0, 1)[None]
    boxes = torch.tensor([[20.0, 30.0, 400.0, 300.0]])
    out = crop(rows_first(image), boxes, torch.tensor([False]), (224, 224))
    part = image[:, :, 20:420, 30:330].contiguous(memory_format=torch.channels_last)
    expected = F.interpolate(part, (224, 224), mode="bicubic", antialias=True, align_corners=False)
    difference = (out.int() - expected.int()).abs()
    assert difference.max() <= 2
    assert (difference > 1).float().mean() < 1e-3
    assert difference.float().mean() < 0.2


def test_the_whole_image_at_its_own_size_is_untouched() -> None:
    images = torch.randint(0, 256, (3, 3, 17, 23), dtype=torch.uint8)
    boxes = torch.tensor([[0.0, 0.0, 17.0, 23.0]]).repeat(3, 1)
    assert torch.equal(crop(rows_first(images), boxes, torch.zeros(3, dtype=torch.bool), (17, 23)), images)


@given(start=st.floats(0, 50), length=st.floats(0.01, 50), outputs=st.integers(1, 40))
def test_weights_of_any_part_sum_to_one_and_stay_inside(start: float, length: float, outputs: int) -> None:
    weights = resize_weights(torch.tensor([start]), torch.tensor([length]), 100, outputs)[0]
    assert torch.allclose(weights.sum(1), torch.ones(outputs), atol=1e-5)
    outside = torch.arange(100)
    outside = (outside + 1 < start - 1e-3) | (outside > start + length + 1e-3)
    assert (weights[:, outside] == 0).all()


# the boxes


@settings(max_examples=200)
@given(
    height=st.integers(1, 4000),
    width=st.integers(1, 4000),
    scale=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(lambda pair: (min(pair), max(pair))),
    noise=st.lists(st.floats(0, 1 - 2**-24, width=32), min_size=2 * TRIES + 2, max_size=2 * TRIES + 2),
)
def test_box_is_whole_and_lies_in_the_image(
    height: int, width: int, scale: tuple[float, float], noise: list[float]
) -> None:
    boxes = crop_boxes(torch.tensor([noise]), torch.tensor([height]), torch.tensor([width]), scale, RATIO)
    top, left, h, w = boxes[0].tolist()
    assert all(side == int(side) for side in (top, left, h, w))
    assert 0 <= top < top + h <= height
    assert 0 <= left < left + w <= width


@pytest.mark.parametrize(("height", "width"), [(200, 200), (120, 300), (300, 170), (40, 300)])
def test_boxes_have_the_law_of_those_made_one_by_one(height: int, width: int) -> None:
    n, scale = 6000, (0.2, 1.0)
    noise = patch_noise(0, 0, torch.arange(n), 2 * TRIES + 2)
    ours = crop_boxes(noise, torch.full((n,), height), torch.full((n,), width), scale, RATIO).double().numpy()
    rng = np.random.default_rng(0)
    theirs = np.array([crop_box(height, width, scale, RATIO, rng) for _ in range(n)])

    def described(boxes: np.ndarray) -> dict[str, np.ndarray]:
        top, left, h, w = boxes.T
        return {"top": top, "left": left, "height": h, "width": w, "area": h * w, "aspect": np.log(w / h)}

    for (what, a), b in zip(described(ours).items(), described(theirs).values(), strict=True):
        assert same_law(a, b), what


@pytest.mark.parametrize(("height", "width"), [(10, 300), (300, 10), (1, 50), (1, 1), (7, 1000)])
def test_box_that_cannot_fit_falls_back_to_the_center(height: int, width: int) -> None:
    noise = torch.rand(1, 2 * TRIES + 2, generator=torch.Generator().manual_seed(0))
    boxes = crop_boxes(noise, torch.tensor([height]), torch.tensor([width]), (0.95, 1.0), RATIO)
    expected = crop_box(height, width, (0.95, 1.0), RATIO, np.random.default_rng(0))
    assert tuple(int(side) for side in boxes[0]) == expected


# the set


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """22 images of one size, 20 x 24."""
    return make_folder(tmp_path_factory.mktemp("images"), 22)


def test_the_order_is_that_of_the_loader(source: Source) -> None:
    transform = TrainTransform((16, 16))
    held = DeviceSet(source, transform, CPU)
    for ours, loaders in zip(
        take(held.batches(batch_size=5, seed=3, start=2), 9),
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


def test_a_crop_shows_its_box(source: Source) -> None:
    (batch,) = take(DeviceSet(source, TrainTransform((12, 14)), CPU).batches(batch_size=22, seed=0), 1)
    assert batch.boxes is not None
    assert batch.flipped is not None
    assert 0 < batch.flipped.sum() < 22
    for k, box in enumerate((batch.boxes.double() * torch.tensor([20, 24, 20, 24])).tolist()):
        top, left, h, w = map(round, box)
        assert [top, left, h, w] == pytest.approx(box, abs=1e-4)
        image = torch.from_numpy(source.image(int(batch.indices[k]), 3)[top : top + h, left : left + w].copy())
        part = image.permute(2, 0, 1)[None]
        expected = F.interpolate(part.float(), (12, 14), mode="bicubic", antialias=True, align_corners=False)[0]
        expected = expected.round().clamp(0, 255)
        expected = expected.flip(2) if batch.flipped[k] else expected
        assert (batch.images[k].int() - expected).abs().max() <= 1


def test_resume_goes_on_as_if_never_stopped_and_ranks_share(source: Source) -> None:
    held = DeviceSet(source, TrainTransform((16, 16)), CPU)
    whole = take(held.batches(batch_size=6, seed=1), 9)
    for a, b in zip(whole[4:], take(held.batches(batch_size=6, seed=1, start=4), 5), strict=True):
        assert torch.equal(a.images, b.images)
    halves = [take(held.batches(batch_size=6, seed=1, rank=rank, world_size=2), 9) for rank in (0, 1)]
    for a, *parts in zip(whole, *halves, strict=True):
        assert torch.equal(a.images, torch.cat([part.images for part in parts]))
    other = take(held.batches(batch_size=6, seed=2), 1)[0]
    assert not torch.equal(other.images, whole[0].images)


def test_an_image_looks_different_in_each_epoch(source: Source) -> None:
    held = DeviceSet(source, TrainTransform((16, 16)), CPU)
    first, second = take(held.batches(batch_size=22, seed=0), 2)
    for i in range(22):
        assert not torch.equal(first.images[first.indices == i], second.images[second.indices == i])


def test_several_crops_of_an_image(source: Source) -> None:
    transform = TrainTransform((16, 16))
    held = DeviceSet(source, transform, CPU)
    single = take(held.batches(batch_size=4, seed=3), 6)
    several = take(held.batches(batch_size=12, seed=3, crops=3), 6)
    loaders = take(train_batches(source, transform, batch_size=12, seed=3, crops=3), 6)
    for one, three, other in zip(single, several, loaders, strict=True):
        assert torch.equal(three.indices, other.indices)
        assert torch.equal(three.labels, other.labels)
        assert torch.equal(three.images[:4], one.images)
        assert three.boxes is not None
        assert len(three.boxes.unique(dim=0)) > 8
    with pytest.raises(UserError, match=r"data\.crops"):
        next(held.batches(batch_size=10, seed=0, crops=3))


def test_chunks_change_nothing(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    held = DeviceSet(source, TrainTransform((16, 16)), CPU)
    (whole,) = take(held.batches(batch_size=22, seed=0), 1)
    monkeypatch.setattr(device_set, "FLOATS", 5 * 20 * 24 * 3)
    (chunked,) = take(held.batches(batch_size=22, seed=0), 1)
    assert torch.equal(whole.images, chunked.images)


def test_broken_files_give_their_places_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_set, "STAGED", 4)
    source = make_folder(tmp_path, 9, broken=(0, 1, 5, 8))
    transform = TrainTransform((20, 24), scale=(1, 1), ratio=(1.2, 1.2), flip=0)  # the whole image
    held = DeviceSet(source, transform, CPU)
    for ours, loaders in zip(
        take(held.batches(batch_size=4, seed=0), 6),
        take(train_batches(source, transform, batch_size=4, seed=0), 6),
        strict=True,
    ):
        assert torch.equal(ours.images, loaders.images)
        assert torch.equal(ours.labels, loaders.labels)
        assert ours.bad == loaders.bad


def test_nothing_decodable(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none of the 3 images can be decoded.*not a JPEG"):
        DeviceSet(make_folder(tmp_path, 3, broken=(0, 1, 2)), TrainTransform((8, 8)), CPU)


def test_images_of_several_sizes_are_held_as_squares(tmp_path: Path, photograph: np.ndarray) -> None:
    from PIL import Image

    for k, shape in enumerate([(300, 400), (512, 256), (200, 200)]):
        Image.fromarray(photograph[: shape[0], : shape[1]]).save(tmp_path / f"{k}.png")
    source = open_source(tmp_path)
    transform = TrainTransform((64, 64), scale=(0.3, 1.0))
    default = DeviceSet(source, transform, CPU)
    assert default.images.shape == (3, 80, 3, 80)  # 64 / sqrt(0.65)
    large = DeviceSet(source, transform, CPU, side=200)
    assert large.images.shape == (3, 200, 3, 200)
    for held, close in ((default, 9), (large, 4)):
        for batch in take(held.batches(batch_size=3, seed=0), 5):
            assert batch.boxes is not None
            assert batch.flipped is not None
            for k, index in enumerate(batch.indices.tolist()):
                image = source.image(index, 3)
                size = np.array(image.shape[:2] * 2)
                box = batch.boxes[k].double().numpy() * size
                top, left, h, w = map(round, box)
                assert np.allclose([top, left, h, w], box, atol=1e-3), "boxes are whole pixels of the image"
                assert 0.29 < h * w / size[:2].prod() <= 1
                part = torch.from_numpy(image[top : top + h, left : left + w].copy()).permute(2, 0, 1)[None]
                expected = F.interpolate(part, (64, 64), mode="bicubic", antialias=True, align_corners=False)[0]
                expected = expected.flip(2) if batch.flipped[k] else expected
                assert (batch.images[k].float() - expected.float()).abs().mean() < close


def test_a_set_that_does_not_fit_is_refused_in_one_line(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_set, "available_memory", lambda: 30_000)
    with pytest.raises(
        UserError, match=r"data\.in_memory: 22 images of 20 x 24 take 0\.0 GB.*data\.device_side"
    ) as caught:
        DeviceSet(source, TrainTransform((8, 8)), CPU)
    assert "\n" not in str(caught.value)


def test_the_stream_does_not_end(source: Source) -> None:
    held = DeviceSet(source, TrainTransform((8, 8)), CPU)
    counts = torch.bincount(
        torch.cat([batch.indices for batch in itertools.islice(held.batches(batch_size=50, seed=0), 11)]), minlength=22
    )
    assert counts.tolist() == [25] * 22


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_crops_are_those_of_the_cpu_and_nothing_waits(source: Source) -> None:
    transform = TrainTransform((16, 16))
    alone = take(DeviceSet(source, transform, CPU).batches(batch_size=10, seed=0, crops=2), 5)
    stream = DeviceSet(source, transform, torch.device("cuda")).batches(batch_size=10, seed=0, crops=2)
    there = [next(stream)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        there += [next(stream) for _ in range(4)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for cpu, gpu in zip(alone, there, strict=True):
        assert torch.equal(cpu.indices, gpu.indices.cpu())
        assert torch.equal(cpu.labels, gpu.labels.cpu())
        assert cpu.boxes is not None
        assert gpu.boxes is not None
        same = (cpu.boxes == gpu.boxes.cpu()).all(dim=1)  # a side that is rounded the other way may differ
        assert same.float().mean() > 0.8
        assert (cpu.images[same].int() - gpu.images.cpu()[same].int()).abs().max() <= 1
