"""Multi-crop: the views of an image, and their layout in a batch."""

from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hardpatch.data.augment import MultiCropTransform
from hardpatch.data.batch import Batch
from hardpatch.data.crop import crop_box, resize
from hardpatch.data.loader import train_batches
from hardpatch.data.reading import Reading
from hardpatch.data.sources import Source, open_source
from tests.data.small import MANY_WORKERS, assert_same, make_folder, take

pytestmark = pytest.mark.filterwarnings(MANY_WORKERS)

SMALL = MultiCropTransform((16, 24), (8, 6), local_crops=3)
RATIO = (3 / 4, 4 / 3)


def draws(image: np.ndarray, transform: MultiCropTransform, n: int) -> Generator[list[Tensor], None, None]:
    """Draw all views of an image n times: first global, second global, local ones."""
    rng = np.random.default_rng(0)
    for _ in range(n):
        large, small = transform(image, rng)
        yield [*large, *small]


# the views


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("color", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (7, 90), (64, 48)])
def test_sizes(channels: int, color: bool, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*shape, channels), dtype=np.uint8)
    large, small = MultiCropTransform((32, 48), (12, 8), local_crops=5, reading=Reading(channels), color=color)(
        image, rng
    )
    assert large.shape == (2, channels, 32, 48)
    assert small.shape == (5, channels, 12, 8)
    assert large.dtype == small.dtype == torch.uint8


def test_defaults_are_those_of_ibot(photograph: np.ndarray) -> None:
    large, small = MultiCropTransform((224, 224))(photograph, np.random.default_rng(0))
    assert large.shape == (2, 3, 224, 224)
    assert small.shape == (10, 3, 96, 96)


def test_no_local_crops(photograph: np.ndarray) -> None:
    large, small = MultiCropTransform((16, 16), (8, 8), local_crops=0)(photograph, np.random.default_rng(0))
    assert large.shape == (2, 3, 16, 16)
    assert small.shape == (0, 3, 8, 8)


def test_views_depend_only_on_the_generator(photograph: np.ndarray) -> None:
    first, second, third = (SMALL(photograph, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, third, strict=True))


def test_view_without_color_is_a_crop(photograph: np.ndarray) -> None:
    transform = MultiCropTransform((16, 24), (8, 6), local_crops=3, color=False)
    for seed in range(10):
        rng, other = np.random.default_rng(seed), np.random.default_rng(seed)
        large, small = transform(photograph, rng)
        for view, size, scale in [
            *((view, (16, 24), (0.32, 1.0)) for view in large),
            *((view, (8, 6), (0.05, 0.32)) for view in small),
        ]:
            top, left, h, w = crop_box(512, 512, scale, RATIO, other)
            expected = resize(photograph[top : top + h, left : left + w], size)
            expected = expected[:, ::-1] if other.random() < 0.5 else expected
            assert np.array_equal(view.permute(1, 2, 0).numpy(), expected)
        assert rng.bit_generator.state == other.bit_generator.state


def test_scales() -> None:
    """The value of a pixel is its position, so the values of a view show how much of the image it covers."""
    rows, columns = np.mgrid[:256, :256].astype(np.uint8)
    image = np.stack([rows, columns, rows], axis=2)
    transform = MultiCropTransform((32, 32), (32, 32), local_crops=4, color=False)
    shares = []
    for views in draws(image, transform, 300):
        spans = [(v.flatten(1).amax(1).float() - v.flatten(1).amin(1).float())[:2] * 32 / 31 / 256 for v in views]
        shares.append([span.prod().item() for span in spans])
    large, small = np.array(shares)[:, :2], np.array(shares)[:, 2:]
    slack = 0.02  # boxes and pixel values are whole numbers
    assert 0.32 - slack < large.min() < 0.34
    assert 0.9 < large.max() < 1 + slack  # boxes close to the whole image seldom fit with their aspect ratio
    assert 0.05 - slack < small.min() < 0.06
    assert 0.31 < small.max() < 0.32 + slack
    assert small.mean() == pytest.approx((0.05 + 0.32) / 2, abs=0.01)


def test_flip(photograph: np.ndarray) -> None:
    def out(flip: float, seed: int) -> tuple[Tensor, Tensor]:
        return MultiCropTransform((8, 8), (4, 4), local_crops=2, flip=flip)(photograph, np.random.default_rng(seed))

    flips = []
    for seed in range(200):
        random, unflipped, flipped = out(0.5, seed), out(0.0, seed), out(1.0, seed)
        for a, b, c in zip(random, unflipped, flipped, strict=True):
            assert torch.equal(b, c.flip(3))
            flips += [torch.equal(x, y) for x, y in zip(a, c, strict=True)]
    assert 0.44 < np.mean(flips) < 0.56


# colors: each view is the whole image at its own size, so that only colors can change a pixel


def whole(side: int, local_crops: int = 2) -> MultiCropTransform:
    return MultiCropTransform(
        (side, side), (side, side), local_crops, global_scale=(1, 1), local_scale=(1, 1), ratio=(1, 1)
    )


def test_probabilities_of_gray_jitter_and_solarization() -> None:
    n, pixel = 1500, (200, 60, 30)
    image = np.full((2, 2, 3), pixel, np.uint8)
    colors = np.array([[view[:, 0, 0].tolist() for view in views] for views in draws(image, whole(2), n)])
    assert colors.shape == (n, 4, 3)  # first global, second global, two local views
    gray = (colors == colors[:, :, :1]).all(2)
    assert gray.mean(0) == pytest.approx(0.2, abs=0.04)
    untouched, solarized = (colors == pixel).all(2), (colors == (55, 60, 30)).all(2)
    unjittered = (untouched | solarized).sum(0) / (~gray).sum(0)
    assert unjittered == pytest.approx(0.2, abs=0.04)
    assert solarized.sum(0)[[0, 2, 3]].tolist() == [0, 0, 0]
    assert solarized[:, 1].sum() / (untouched | solarized)[:, 1].sum() == pytest.approx(0.2, abs=0.08)
    # the views of an image are independent
    assert abs(np.corrcoef(gray[:, 0], gray[:, 1])[0, 1]) < 0.1


def test_probability_of_blur() -> None:
    """Only blur gives an image of two gray levels more than two values."""
    image = np.where(np.random.default_rng(0).random((16, 16, 1)) < 0.5, np.uint8(20), np.uint8(235)).repeat(3, axis=2)
    blurred = np.array([[len(view.unique()) > 2 for view in views] for views in draws(image, whole(16), 800)])
    first, second, *local = blurred.mean(0)
    assert first > 0.95  # the weakest blur changes nothing after rounding
    assert second == pytest.approx(0.1, abs=0.04)
    assert local == pytest.approx([0.5, 0.5], abs=0.06)


def test_gray_images_are_solarized_and_blurred_too() -> None:
    transform = MultiCropTransform(
        (8, 8), (8, 8), 1, reading=Reading(1), global_scale=(1, 1), local_scale=(1, 1), ratio=(1, 1)
    )
    solarized = []
    for _, second, _ in draws(np.full((8, 8, 1), 250, np.uint8), transform, 500):
        assert second.shape == (1, 8, 8)
        solarized.append(second.max().item() < 128)  # the jitter leaves at least 0.6 of 250
    assert np.mean(solarized) == pytest.approx(0.2, abs=0.07)


# the batches


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return make_folder(tmp_path_factory.mktemp("images"), 11)


def local_of(batch: Batch) -> Tensor:
    assert batch.local is not None
    return batch.local


def test_batches_are_ordered_view_by_view(source: Source) -> None:
    batches = take(train_batches(source, SMALL, batch_size=4, seed=7), 3)
    position = 0
    for batch in batches:
        assert batch.images.shape == (2 * 4, 3, 16, 24)
        assert local_of(batch).shape == (3 * 4, 3, 8, 6)
        assert batch.images.is_contiguous()
        assert local_of(batch).is_contiguous()
        assert batch.images.dtype == local_of(batch).dtype == torch.uint8
        assert batch.indices.shape == batch.labels.shape == (4,)
        assert batch.boxes is batch.flipped is None
        large, small = batch.images.unflatten(0, (2, 4)), local_of(batch).unflatten(0, (3, 4))
        for k, index in enumerate(batch.indices.tolist()):
            rng = np.random.default_rng((7, position // 11, index))
            expected = SMALL(source.image(index), rng)
            assert torch.equal(large[:, k], expected[0])
            assert torch.equal(small[:, k], expected[1])
            position += 1


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_workers(source: Source, workers: int) -> None:
    expected = take(train_batches(source, SMALL, batch_size=4, seed=3), 5)
    assert_same(expected, take(train_batches(source, SMALL, batch_size=4, seed=3, workers=workers), 5))


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_is_exact(source: Source, workers: int) -> None:
    uninterrupted = take(train_batches(source, SMALL, batch_size=4, seed=3), 6)
    resumed = take(train_batches(source, SMALL, batch_size=4, seed=3, start=4, workers=workers), 2)
    assert_same(uninterrupted[4:], resumed)


def test_ranks_share_each_batch(source: Source) -> None:
    together = take(train_batches(source, SMALL, batch_size=6, seed=1), 3)
    parts = [take(train_batches(source, SMALL, batch_size=6, seed=1, rank=rank, world_size=2), 3) for rank in (0, 1)]
    for expected, a, b in zip(together, *parts, strict=True):
        for x, y, z in [(expected.images, a.images, b.images), (local_of(expected), local_of(a), local_of(b))]:
            views = [t.unflatten(0, (len(t) // n, n)) for t, n in ((x, 6), (y, 3), (z, 3))]
            assert torch.equal(views[0], torch.cat(views[1:], dim=1))


def test_gray_batches(tmp_path: Path) -> None:
    transform = MultiCropTransform((8, 12), (4, 4), local_crops=2, reading=Reading(1))
    (batch,) = take(train_batches(make_folder(tmp_path, 4), transform, batch_size=4, seed=0), 1)
    assert batch.images.shape == (8, 1, 8, 12)
    assert local_of(batch).shape == (8, 1, 4, 4)


def test_batches_without_local_views(source: Source) -> None:
    transform = MultiCropTransform((8, 8), local_crops=0)
    (batch,) = take(train_batches(source, transform, batch_size=5, seed=0), 1)
    assert batch.images.shape == (10, 3, 8, 8)
    assert batch.local is None


def test_undecodable_image_is_replaced_by_the_next(tmp_path: Path) -> None:
    source = make_folder(tmp_path, 4, broken=(1,), labeled=False)
    (batch,) = take(train_batches(source, SMALL, batch_size=4, seed=0), 1)
    k = batch.indices.tolist().index(1)
    expected, _ = SMALL(source.image(2), np.random.default_rng((0, 0, 1)))
    assert torch.equal(batch.images.unflatten(0, (2, 4))[:, k], expected)
    assert len(batch.bad) == 1


def test_real_images(shared: Path) -> None:
    source = open_source(shared / "data" / "caltech100_128" / "train")
    (batch,) = take(train_batches(source, MultiCropTransform((48, 48), (24, 24), 4), batch_size=16, seed=0), 1)
    assert batch.bad == []
    for pixels in (batch.images, local_of(batch)):
        assert 80 < pixels.float().mean() < 180
        assert (pixels.flatten(1).float().std(1) > 1).all()
