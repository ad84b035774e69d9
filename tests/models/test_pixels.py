from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hardpatch.data.reading import Reading
from hardpatch.models.pixels import (
    mean_color,
    normalize,
    register_normalization,
    resize_to_grid,
    to_bytes,
    to_unit,
)

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


def model(reading: Reading | None = None) -> Any:
    module = nn.Module()
    register_normalization(module, MEAN, STD, reading)
    return module


def test_normalize_equals_one_channel_at_a_time() -> None:
    pixels = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    images = normalize(pixels, model())
    assert images.dtype == torch.float32
    for k in range(3):
        assert torch.equal(images[:, k], (pixels[:, k] / 255 - torch.tensor(MEAN[k])) / torch.tensor(STD[k]))
    assert torch.equal(normalize(pixels[0], model()), images[0])


def test_range_of_each_channel() -> None:
    reading = Reading(3, "uint16", low=(0.0, 100.0, 50.0), high=(4095.0, 300.0, 60000.0))
    pixels = torch.tensor([0, 200, 4095, 65535]).to(torch.uint16).expand(3, 1, 4)
    unit = to_unit(pixels, model(reading))[:, 0]
    expected = [[0, 200 / 4095, 1, 1], [0, 0.5, 1, 1], [0, 150 / 59950, 4045 / 59950, 1]]
    assert torch.allclose(unit, torch.tensor(expected), atol=1e-6)
    assert to_bytes(pixels, model(reading))[1, 0].tolist() == [0, 128, 255, 255]


def test_bytes_of_a_model_of_deep_images_are_bytes() -> None:
    """Pictures and demo images are 8 bits whatever the model was trained on."""
    reading = Reading(3, "uint16", high=(4095.0,))
    pixels = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8)
    assert torch.equal(normalize(pixels, model(reading)), normalize(pixels, model()))


def test_a_range_of_8_bits() -> None:
    reading = Reading(3, low=(10.0,), high=(110.0,))
    pixels = torch.tensor([0, 60, 200], dtype=torch.uint8).expand(3, 1, 3)
    assert to_unit(pixels, model(reading))[0, 0].tolist() == [0, 0.5, 1]


@pytest.mark.parametrize(("dtype", "high", "expected"), [("uint8", 255.0, 128), ("uint16", 4095.0, 2048)])
def test_mean_color(dtype: str, high: float, expected: int) -> None:
    assert mean_color(model(Reading(3, dtype, high=(high,))))[0] == expected


def test_pixels_of_the_right_size_are_only_scaled() -> None:
    pixels = torch.randint(0, 256, (2, 3, 8, 12), dtype=torch.uint8)
    assert torch.equal(resize_to_grid(pixels, (2, 3), 4), pixels / 255)
    resized = resize_to_grid(pixels, (2, 3), 8)
    assert resized.shape == (2, 3, 16, 24)
    assert 0 <= resized.min() < resized.max() <= 1


@pytest.mark.parametrize(
    "pixels", [torch.zeros(2, 3, 8, 8), torch.zeros(3, 8, 8).byte(), torch.zeros(2, 1, 8, 8).byte()]
)
def test_pixels_of_another_type_or_shape(pixels: Tensor) -> None:
    with pytest.raises(ValueError, match=r"pixels: expected uint8 \[B, 3, H, W\], got torch"):
        resize_to_grid(pixels, (2, 2), 4)
