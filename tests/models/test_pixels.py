import pytest
import torch
from torch import Tensor

from hardpatch.models.pixels import normalize, resize_to_grid


@pytest.mark.parametrize("shape", [(3,), (3, 1, 1), (1, 3, 1, 1)])
def test_normalize_equals_one_channel_at_a_time(shape: tuple[int, ...]) -> None:
    pixels = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])
    images = normalize(pixels, mean.reshape(shape), std.reshape(shape))
    assert images.dtype == torch.float32
    for k in range(3):
        assert torch.equal(images[:, k], (pixels[:, k] / 255 - mean[k]) / std[k])
    assert torch.equal(normalize(pixels[0], mean, std), images[0])


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
