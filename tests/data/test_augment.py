import io

import numpy as np
import pytest
import simplejpeg
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hardpatch.data.augment import EvalTransform, TrainTransform
from hardpatch.data.crop import crop_box, resize
from hardpatch.data.decode import Jpeg, open_image
from hardpatch.data.reading import Reading

RATIO = (3 / 4, 4 / 3)


def jpeg(image: np.ndarray, quality: int = 92) -> Jpeg:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    opened = open_image(buffer.getvalue())
    assert isinstance(opened, Jpeg)
    return opened


def test_crop_equals_the_box_resized_by_pillow(photograph: np.ndarray) -> None:
    out = TrainTransform((48, 64), scale=(0.3, 0.3), ratio=(1.0, 1.0), flip=0)(photograph, np.random.default_rng(3))
    top, left, h, w = crop_box(512, 512, (0.3, 0.3), (1.0, 1.0), np.random.default_rng(3))
    assert h == w == round(512 * 0.3**0.5)
    box = Image.fromarray(photograph[top : top + h, left : left + w])
    expected = np.asarray(box.resize((64, 48), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(out.permute(1, 2, 0).numpy() - expected).max() <= 2


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(1, 1), (7, 90), (64, 48), (300, 200)])
def test_train_transform_returns_uint8_channels_first(channels: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*shape, channels), dtype=np.uint8)
    out = TrainTransform((32, 48), Reading(channels))(image, rng)
    assert out.dtype == torch.uint8
    assert out.shape == (channels, 32, 48)


def test_train_transform_depends_only_on_the_generator(photograph: np.ndarray) -> None:
    transform = TrainTransform((32, 32))
    first, second = (transform(photograph, np.random.default_rng(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, transform(photograph, np.random.default_rng(6)))


def test_flip(photograph: np.ndarray) -> None:
    def out(flip: float, seed: int = 0) -> torch.Tensor:
        return TrainTransform((32, 32), flip=flip)(photograph, np.random.default_rng(seed))

    assert torch.equal(out(1.0), out(0.0).flip(2))
    flipped = [torch.equal(out(0.3, seed), out(1.0, seed)) for seed in range(300)]
    assert 0.2 < np.mean(flipped) < 0.4


def test_whole_image_at_its_own_size_is_unchanged(photograph: np.ndarray) -> None:
    whole = TrainTransform((512, 512), scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
    expected = torch.from_numpy(photograph).permute(2, 0, 1)
    assert torch.equal(whole(photograph, np.random.default_rng(0)), expected)
    assert torch.equal(EvalTransform((512, 512))(photograph), expected)


@pytest.mark.parametrize("flip", [0.0, 0.5, 1.0])
def test_train_transform_draws_a_box_and_a_flip_and_nothing_else(photograph: np.ndarray, flip: float) -> None:
    for seed in range(10):
        rng, other = np.random.default_rng(seed), np.random.default_rng(seed)
        out = TrainTransform((40, 24), flip=flip)(photograph, rng)
        top, left, h, w = crop_box(512, 512, (0.2, 1.0), RATIO, other)
        expected = resize(photograph[top : top + h, left : left + w], (40, 24))
        expected = expected[:, ::-1] if other.random() < flip else expected
        assert np.array_equal(out.permute(1, 2, 0).numpy(), expected)
        assert rng.bit_generator.state == other.bit_generator.state


def test_crop_of_a_jpeg_equals_the_crop_of_its_pixels(photograph: np.ndarray) -> None:
    image, transform = jpeg(photograph), TrainTransform((100, 60), shrink_on_decode=None)
    small = TrainTransform((300, 280), shrink_on_decode=2.0)  # no crop is so large that it would be shrunken
    for seed in range(10):
        for unshrunken in (transform, small):
            from_jpeg = unshrunken.crop(image, np.random.default_rng(seed))
            from_pixels = unshrunken.crop(image.pixels(), np.random.default_rng(seed))
            assert torch.equal(from_jpeg.pixels, from_pixels.pixels)
            assert from_jpeg[1:] == from_pixels[1:]


@pytest.mark.parametrize(("margin", "size"), [(2.0, (48, 64)), (2.0, (30, 20)), (1.5, (50, 50)), (3.0, (7, 9))])
def test_shrunken_crop_shows_its_box(photograph: np.ndarray, margin: float, size: tuple[int, int]) -> None:
    image_size = np.array([509, 507, 509, 507])  # no multiples of 2, 4 or 8
    image = jpeg(photograph[:509, :507])
    plain, transform = TrainTransform(size), TrainTransform(size, shrink_on_decode=margin)
    shrunken = 0
    for seed in range(20):
        crop, exact = (t.crop(image, np.random.default_rng(seed)) for t in (transform, plain))
        assert crop.flipped == exact.flipped
        shrunken += crop.box != exact.box
        box, exact_box = np.array(crop.box) * image_size, np.array(exact.box) * image_size
        for k in (0, 1):  # rows, columns
            tolerance = exact_box[2 + k] / size[k] / margin
            assert abs(box[k] - exact_box[k]) < tolerance
            assert abs(box[k] + box[2 + k] - exact_box[k] - exact_box[2 + k]) < tolerance
        # the crop shows the box that it reports
        top, left, h, w = (round(edge) for edge in box)
        full = resize(image.pixels()[top : top + h, left : left + w], size).astype(int)
        full = full[:, ::-1] if crop.flipped else full
        difference = crop.pixels.permute(1, 2, 0).numpy() - full
        assert 10 * np.log10(255**2 / (difference**2).mean().clip(1e-9)) > 40
    assert shrunken > 5


def test_jpeg_that_only_pillow_reads_is_not_shrunken(photograph: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*arguments: object, **settings: object) -> None:
        raise ValueError("Unsupported color conversion request")

    odd = jpeg(photograph)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", unsupported)
    transform = TrainTransform((32, 32), shrink_on_decode=2.0)
    crop = transform.crop(odd, np.random.default_rng(0))
    whole = transform.crop(odd.pixels(), np.random.default_rng(0))
    assert torch.equal(crop.pixels, whole.pixels)
    assert crop.box == whole.box


@pytest.mark.parametrize("channels", [1, 3])
def test_train_transform_jitters_the_crop(photograph: np.ndarray, channels: int) -> None:
    image = photograph[:, :, :channels]
    plain, jittered = (
        TrainTransform((32, 32), Reading(channels)),
        TrainTransform((32, 32), Reading(channels), color_jitter=0.4),
    )
    bright = []
    for seed in range(200):
        before = plain(image, np.random.default_rng(seed)).permute(1, 2, 0).numpy()
        rng = np.random.default_rng(seed)
        after = jittered(image, rng)
        assert torch.equal(after, jittered(image, np.random.default_rng(seed)))
        bright.append(after.float().mean().item() / before.mean())
        same_crop = np.corrcoef(before.mean(2).ravel(), after.float().mean(0).numpy().ravel())[0, 1]
        assert same_crop > 0.9
    assert 0.55 < min(bright) < 0.7
    assert 1.2 < max(bright) < 1.45
    assert 0.9 < np.mean(bright) < 1.05


@settings(max_examples=100, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    size=st.sampled_from([(32, 32), (56, 56), (64, 64), (192, 192), (224, 224), (32, 48), (160, 112)]),
    crop_fraction=st.sampled_from([1.0, 0.875]),
    channels=st.sampled_from([1, 3]),
)
def test_eval_transform_equals_timms_of_a_pillow_image(
    shape: tuple[int, int], size: tuple[int, int], crop_fraction: float, channels: int
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, channels), dtype=np.uint8)
    transform = timm.data.create_transform((3, *size), crop_pct=crop_fraction, interpolation="bicubic", normalize=False)
    expected = transform(Image.fromarray(image if channels == 3 else image[:, :, 0]))
    assert torch.equal(EvalTransform(size, crop_fraction=crop_fraction)(image), expected)


def test_eval_transform_of_many_bands_and_of_other_types(photograph: np.ndarray) -> None:
    transform = EvalTransform((56, 56), crop_fraction=0.875)
    bands = np.concatenate([photograph, photograph[:, :, :2]], axis=2)
    assert torch.equal(transform(bands), transform(photograph)[[0, 1, 2, 0, 1]])
    deep = transform(photograph.astype(np.uint16) * 257).float() / 257
    assert deep.shape == (3, 56, 56)
    assert (deep - transform(photograph)).abs().mean() < 1  # rounded once, not after each direction


def test_eval_transform_keeps_the_aspect_ratio() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    image[25:75] = 255  # an output twice as wide as high shows the middle half of the height
    out = EvalTransform((32, 64))(image)
    assert out.shape == (3, 32, 64)
    assert (out[:, 2:-2] == 255).all()


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    crop_fraction=st.floats(0.3, 1.0),
)
def test_eval_transform_always_fills_the_output(
    shape: tuple[int, int], size: tuple[int, int], crop_fraction: float
) -> None:
    out = EvalTransform(size, crop_fraction=crop_fraction)(np.full((*shape, 3), 77, np.uint8))
    assert out.shape == (3, *size)
    assert (out == 77).all()
