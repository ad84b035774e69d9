from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import ColorJitter  # type: ignore[import-untyped]

from hardpatch.data.color import ColorTransform
from tests.data.small import same_distribution


@pytest.mark.parametrize("strength", [(0.4, 0.4, 0.2, 0.1), (0.4, 0.4, 0.4, 0.0), (1.0, 0.0, 0.0, 0.5)])
def test_jitter_has_the_distribution_of_torchvision(strength: tuple[float, float, float, float]) -> None:
    n = 2000
    image = np.array([[[200, 90, 40], [30, 60, 90]]], np.uint8)
    rng, color = np.random.default_rng(0), ColorTransform(jitter=1.0, strength=strength)
    ours = np.stack([color(image, rng).ravel() for _ in range(n)])
    theirs_of, pillow = ColorJitter(*strength), Image.fromarray(image)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = np.stack([np.asarray(theirs_of(pillow)).ravel() for _ in range(n)])
    assert len(np.unique(ours, axis=0)) > n / 10
    for a, b in zip(ours.T, theirs.T, strict=True):
        assert same_distribution(a, b)


def test_gray_blur_and_solarization_equal_pillow(photograph: np.ndarray) -> None:
    image = photograph[100:180, 200:260]
    gray = ColorTransform(gray=1.0)(image, np.random.default_rng(0))
    assert np.array_equal(gray, np.asarray(Image.fromarray(image).convert("L"))[:, :, None].repeat(3, axis=2))
    solarized = ColorTransform(solarize=1.0)(image, np.random.default_rng(0))
    assert np.array_equal(solarized, np.where(image >= 128, 255 - image, image))
    assert np.array_equal(solarized, np.asarray(ImageOps.solarize(Image.fromarray(image), 128)))
    blurred = ColorTransform(blur=1.0)(image, np.random.default_rng(0)).astype(int)
    roughness = [np.abs(np.diff(pixels.astype(int), axis=1)).mean() for pixels in (image, blurred)]
    assert roughness[1] < roughness[0]
    weakest, strongest = (
        np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma))).astype(int) for sigma in (0.1, 2.0)
    )
    furthest = np.abs(strongest - image).mean()
    away = [
        np.abs(ColorTransform(blur=1.0)(image, np.random.default_rng(k)).astype(int) - image).mean() for k in range(100)
    ]
    assert np.abs(weakest - image).mean() <= min(away) < 0.2 * furthest
    assert 0.9 * furthest < max(away) <= furthest


def test_probability_or_strength_of_zero_changes_nothing(photograph: np.ndarray) -> None:
    for strength in ((0.4, 0.4, 0.2, 0.1), (0.0, 0.0, 0.0, 0.0)):
        jitter = 0.0 if any(strength) else 1.0
        out = ColorTransform(jitter=jitter, strength=strength)(photograph, np.random.default_rng(0))
        assert np.array_equal(out, photograph)


def test_saturation_hue_and_gray_do_not_change_gray_images(photograph: np.ndarray) -> None:
    image = photograph[:64, :64, :1]
    unchanged = ColorTransform(jitter=1.0, strength=(0.0, 0.0, 0.2, 0.1), gray=1.0)
    for seed in range(5):
        assert np.array_equal(unchanged(image, np.random.default_rng(seed)), image)
    changed = ColorTransform(jitter=1.0, blur=1.0, solarize=1.0)(image, np.random.default_rng(0))
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
def test_values_out_of_range(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ColorTransform(**wrong)
