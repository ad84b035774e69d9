import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import ColorJitter, RandomResizedCrop, functional  # type: ignore[import-untyped]

from hardpatch.data.augment import Color, EvalTransform, TrainTransform, crop_box, resize
from hardpatch.data.decode import Jpeg, UndecodableImage, open_image
from hardpatch.data.statistics import channel_statistics
from hardpatch.errors import UserError

RATIO = (3 / 4, 4 / 3)


class Arrays:
    """A source of arrays in memory; None is a broken file."""

    classes: tuple[str, ...] | None = None
    skipped: tuple[str, ...] = ()

    def __init__(self, arrays: Sequence[np.ndarray | None]) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays)

    def name(self, i: int) -> str:
        return f"array {i}"

    def image(self, i: int, channels: int) -> np.ndarray:
        array = self.arrays[i]
        if array is None:
            raise UndecodableImage(f"array {i}: broken")
        return array

    def encoded(self, i: int) -> None:
        return None

    def label(self, i: int) -> int | None:
        return None


def same_law(a: np.ndarray, b: np.ndarray) -> bool:
    """The two-sample Kolmogorov-Smirnov statistic is below its 0.1 % threshold; ties only make it smaller."""
    n = len(a)
    assert len(b) == n
    grid = np.union1d(a, b)
    cdf_a = np.searchsorted(np.sort(a), grid, side="right") / n
    cdf_b = np.searchsorted(np.sort(b), grid, side="right") / n
    return bool(np.abs(cdf_a - cdf_b).max() < 1.95 * np.sqrt(2 / n))


# the box


@settings(max_examples=200, deadline=None)
@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    scale=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(lambda pair: (min(pair), max(pair))),
    seed=st.integers(0, 2**32),
)
def test_box_lies_in_the_image(height: int, width: int, scale: tuple[float, float], seed: int) -> None:
    top, left, h, w = crop_box(height, width, scale, RATIO, np.random.default_rng(seed))
    assert 0 <= top < top + h <= height
    assert 0 <= left < left + w <= width


@pytest.mark.parametrize(("height", "width"), [(200, 200), (120, 300), (300, 170)])
def test_box_has_the_law_of_torchvision(height: int, width: int) -> None:
    n, scale = 6000, (0.2, 1.0)
    rng = np.random.default_rng(0)
    ours = np.array([crop_box(height, width, scale, RATIO, rng) for _ in range(n)])
    blank = torch.empty(3, height, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = np.array([RandomResizedCrop.get_params(blank, list(scale), list(RATIO)) for _ in range(n)])

    def described(boxes: np.ndarray) -> dict[str, np.ndarray]:
        top, left, h, w = boxes.T
        return {"top": top, "left": left, "height": h, "width": w, "area": h * w, "aspect": np.log(w / h)}

    for (what, a), b in zip(described(ours).items(), described(theirs).values(), strict=True):
        assert same_law(a, b), what


@pytest.mark.parametrize(("height", "width"), [(10, 300), (300, 10), (1, 50), (1, 1)])
def test_box_that_cannot_fit_falls_back_to_the_center_as_in_torchvision(height: int, width: int) -> None:
    expected = RandomResizedCrop.get_params(torch.empty(3, height, width), [0.95, 1.0], list(RATIO))
    assert crop_box(height, width, (0.95, 1.0), RATIO, np.random.default_rng(0)) == tuple(expected)


# resizing


@pytest.mark.parametrize("size", [(224, 224), (96, 160), (32, 32), (700, 600)])
@pytest.mark.parametrize("channels", [1, 3])
def test_resize_is_pillows_bicubic(photograph: np.ndarray, size: tuple[int, int], channels: int) -> None:
    image = photograph if channels == 3 else np.array(Image.fromarray(photograph).convert("L"))[:, :, None]
    out = resize(image, size)
    expected = np.asarray(Image.fromarray(image.squeeze()).resize(size[::-1], Image.Resampling.BICUBIC))
    assert out.dtype == np.uint8
    assert out.shape == (*size, channels)
    difference = np.abs(out.reshape(expected.shape).astype(int) - expected)
    assert difference.max() <= 2
    assert difference.mean() < 0.1


def test_overshoot_is_clamped_not_wrapped() -> None:
    step = np.zeros((8, 8, 3), np.uint8)
    step[:, 4:] = 255
    out = resize(step, (32, 32))[16, :, 0].astype(int)
    assert np.all(np.diff(out) >= 0)
    assert out[0] == 0
    assert out[-1] == 255


def test_crop_is_pillows_resize_of_the_box(photograph: np.ndarray) -> None:
    out = TrainTransform((48, 64), scale=(0.3, 0.3), ratio=(1.0, 1.0), flip=0)(photograph, np.random.default_rng(3))
    top, left, h, w = crop_box(512, 512, (0.3, 0.3), (1.0, 1.0), np.random.default_rng(3))
    assert h == w == round(512 * 0.3**0.5)
    box = Image.fromarray(photograph[top : top + h, left : left + w])
    expected = np.asarray(box.resize((64, 48), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(out.permute(1, 2, 0).numpy() - expected).max() <= 2


# the transforms


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(1, 1), (7, 90), (64, 48), (300, 200)])
def test_train_transform_gives_uint8_channels_first(channels: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*shape, channels), dtype=np.uint8)
    out = TrainTransform((32, 48), channels)(image, rng)
    assert out.dtype == torch.uint8
    assert out.shape == (channels, 32, 48)


def test_train_transform_is_a_function_of_the_generator(photograph: np.ndarray) -> None:
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


def test_the_whole_image_at_its_own_size_is_untouched(photograph: np.ndarray) -> None:
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


# JPEGs that are decoded for the crop


def jpeg(image: np.ndarray, quality: int = 92) -> Jpeg:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    opened = open_image(buffer.getvalue())
    assert isinstance(opened, Jpeg)
    return opened


def test_a_jpeg_gives_what_its_pixels_give(photograph: np.ndarray) -> None:
    image, transform = jpeg(photograph), TrainTransform((100, 60), shrink_on_decode=None)
    small = TrainTransform((300, 280), shrink_on_decode=2.0)  # no crop is so large that it would be shrunken
    for seed in range(10):
        for each in (transform, small):
            ours = each.crop(image, np.random.default_rng(seed))
            whole = each.crop(image.pixels(), np.random.default_rng(seed))
            assert torch.equal(ours.pixels, whole.pixels)
            assert ours[1:] == whole[1:]


@pytest.mark.parametrize(("margin", "size"), [(2.0, (48, 64)), (2.0, (30, 20)), (1.5, (50, 50)), (3.0, (7, 9))])
def test_a_shrunken_crop_is_that_of_its_box(photograph: np.ndarray, margin: float, size: tuple[int, int]) -> None:
    whole = np.array([509, 507, 509, 507])  # no multiples of 2, 4 or 8
    image = jpeg(photograph[:509, :507])
    plain, transform = TrainTransform(size), TrainTransform(size, shrink_on_decode=margin)
    shrunken = 0
    for seed in range(20):
        crop, asked = (each.crop(image, np.random.default_rng(seed)) for each in (transform, plain))
        assert crop.flipped == asked.flipped
        shrunken += crop.box != asked.box
        (top, left, h, w), wanted = (np.array(each.box) * whole for each in (crop, asked))
        for edge, other, length, out in (
            (top, wanted[0], wanted[2], size[0]),
            (top + h, wanted[0] + wanted[2], wanted[2], size[0]),
            (left, wanted[1], wanted[3], size[1]),
            (left + w, wanted[1] + wanted[3], wanted[3], size[1]),
        ):
            assert abs(edge - other) < length / out / margin
        # the box that is told is the box that is shown
        top, left, h, w = (round(edge) for edge in (top, left, h, w))
        full = resize(image.pixels()[top : top + h, left : left + w], size).astype(int)
        full = full[:, ::-1] if crop.flipped else full
        difference = crop.pixels.permute(1, 2, 0).numpy() - full
        assert 10 * np.log10(255**2 / (difference**2).mean().clip(1e-9)) > 40
    assert shrunken > 5


def test_a_jpeg_that_only_pillow_reads_is_not_shrunken(photograph: np.ndarray) -> None:
    image = jpeg(photograph)
    at = image.data.index(b"\xff\xda")
    odd = Jpeg(image.data[:at] + b"\x00\x00" + image.data[at:], image.shape)
    transform = TrainTransform((32, 32), shrink_on_decode=2.0)
    crop = transform.crop(odd, np.random.default_rng(0))
    whole = transform.crop(odd.pixels(), np.random.default_rng(0))
    assert torch.equal(crop.pixels, whole.pixels)
    assert crop.box == whole.box


# color


@pytest.mark.parametrize("strength", [(0.4, 0.4, 0.2, 0.1), (0.4, 0.4, 0.4, 0.0), (1.0, 0.0, 0.0, 0.5)])
def test_jitter_has_the_law_of_torchvision(strength: tuple[float, float, float, float]) -> None:
    n = 2000
    image = np.array([[[200, 90, 40], [30, 60, 90]]], np.uint8)
    rng, color = np.random.default_rng(0), Color(jitter=1.0, strength=strength)
    ours = np.stack([color(image, rng).ravel() for _ in range(n)])
    theirs_of, pillow = ColorJitter(*strength), Image.fromarray(image)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = np.stack([np.asarray(theirs_of(pillow)).ravel() for _ in range(n)])
    assert len(np.unique(ours, axis=0)) > n / 10
    for a, b in zip(ours.T, theirs.T, strict=True):
        assert same_law(a, b)


def test_gray_blur_and_solarization_are_pillows(photograph: np.ndarray) -> None:
    image = photograph[100:180, 200:260]
    gray = Color(gray=1.0)(image, np.random.default_rng(0))
    assert np.array_equal(gray, np.asarray(Image.fromarray(image).convert("L"))[:, :, None].repeat(3, axis=2))
    solarized = Color(solarize=1.0)(image, np.random.default_rng(0))
    assert np.array_equal(solarized, np.where(image >= 128, 255 - image, image))
    assert np.array_equal(solarized, np.asarray(ImageOps.solarize(Image.fromarray(image), 128)))
    blurred = Color(blur=1.0)(image, np.random.default_rng(0)).astype(int)
    roughness = [np.abs(np.diff(pixels.astype(int), axis=1)).mean() for pixels in (image, blurred)]
    assert roughness[1] < roughness[0]
    weakest, strongest = (
        np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma))).astype(int) for sigma in (0.1, 2.0)
    )
    furthest = np.abs(strongest - image).mean()
    away = [np.abs(Color(blur=1.0)(image, np.random.default_rng(k)).astype(int) - image).mean() for k in range(100)]
    assert np.abs(weakest - image).mean() <= min(away) < 0.2 * furthest
    assert 0.9 * furthest < max(away) <= furthest


def test_color_that_is_off_changes_nothing(photograph: np.ndarray) -> None:
    for strength in ((0.4, 0.4, 0.2, 0.1), (0.0, 0.0, 0.0, 0.0)):
        jitter = 0.0 if any(strength) else 1.0
        out = Color(jitter=jitter, strength=strength)(photograph, np.random.default_rng(0))
        assert np.array_equal(out, photograph)


def test_gray_images_keep_to_what_has_a_meaning(photograph: np.ndarray) -> None:
    image = photograph[:64, :64, :1]
    unchanged = Color(jitter=1.0, strength=(0.0, 0.0, 0.2, 0.1), gray=1.0)
    for seed in range(5):
        assert np.array_equal(unchanged(image, np.random.default_rng(seed)), image)
    changed = Color(jitter=1.0, blur=1.0, solarize=1.0)(image, np.random.default_rng(0))
    assert changed.shape == image.shape
    assert changed.dtype == np.uint8
    assert not np.array_equal(changed, image)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"jitter": 1.5}, r"jitter: expected a probability in \[0, 1\], got 1\.5"),
        ({"blur": -0.1}, r"blur: expected a probability"),
        ({"strength": (0.4, 1.4, 0.2, 0.1)}, r"strength: expected .*1\.4"),
        ({"strength": (0.4, 0.4, 0.2, 0.6)}, r"hue in \[0, 0\.5\].*0\.6"),
    ],
)
def test_color_says_what_it_expected(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Color(**wrong)


@pytest.mark.parametrize("channels", [1, 3])
def test_train_transform_jitters_the_crop(photograph: np.ndarray, channels: int) -> None:
    image = photograph[:, :, :channels]
    plain, jittered = TrainTransform((32, 32), channels), TrainTransform((32, 32), channels, color_jitter=0.4)
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


@pytest.mark.parametrize("crop_fraction", [1.0, 0.875])
@pytest.mark.parametrize("cut", [(512, 512), (300, 512), (512, 200)])
def test_eval_transform_is_resize_and_center_crop(
    photograph: np.ndarray, crop_fraction: float, cut: tuple[int, int]
) -> None:
    image = photograph[: cut[0], : cut[1]]
    out = EvalTransform((56, 56), crop_fraction=crop_fraction)(image)
    shorter = int(56 / crop_fraction)
    resized = functional.resize(
        Image.fromarray(image), shorter, interpolation=functional.InterpolationMode.BICUBIC, antialias=True
    )
    expected = np.asarray(functional.center_crop(resized, [56, 56])).astype(int)
    difference = np.abs(out.permute(1, 2, 0).numpy() - expected)
    assert difference.max() <= 3
    assert difference.mean() < 0.3


def test_eval_transform_keeps_the_aspect_for_oblong_outputs() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    image[25:75] = 255  # the middle half of the height is what an output twice as wide as high shows
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
    out = EvalTransform(size, 3, crop_fraction)(np.full((*shape, 3), 77, np.uint8))
    assert out.shape == (3, *size)
    assert (out == 77).all()


# statistics


def test_channel_statistics_are_numpys() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    mean, std = channel_statistics(Arrays([*pixels[:10], None, *pixels[10:]]), 3, seed=0)
    assert mean == pytest.approx(pixels.mean((0, 1, 2)) / 255)
    assert std == pytest.approx(pixels.std((0, 1, 2)) / 255)


def test_channel_statistics_weigh_large_and_small_images_alike() -> None:
    mean, std = channel_statistics(Arrays([np.zeros((2, 2, 1), np.uint8), np.full((90, 90, 1), 255, np.uint8)]), 1, 0)
    assert mean == pytest.approx((0.5,))
    assert std == pytest.approx((0.5,))


def test_channel_statistics_draw_a_seeded_choice() -> None:
    source = Arrays([np.full((2, 2, 1), k, np.uint8) for k in range(200)])
    first = channel_statistics(source, 1, seed=0, at_most=10)
    assert first == channel_statistics(source, 1, seed=0, at_most=10)
    assert first != channel_statistics(source, 1, seed=1, at_most=10)


def test_channel_statistics_of_one_color_divide_nothing_by_zero() -> None:
    mean, std = channel_statistics(Arrays([np.full((4, 4, 3), 255, np.uint8)]), 3, 0)
    assert mean == (1.0, 1.0, 1.0)
    assert min(std) > 0


def test_channel_statistics_of_nothing_decodable() -> None:
    with pytest.raises(UserError, match=r"data\.mean: none of 2 images"):
        channel_statistics(Arrays([None, None]), 3, 0)
