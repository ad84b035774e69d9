"""Trivial predictors against slow, obvious versions."""

import math

import pytest
import torch

from hardpatch.measure import trivial
from hardpatch.measure.difficulty import fixed_masks
from hardpatch.methods.losses import absolute_pixel_loss, pixel_loss
from hardpatch.methods.targets import pixels
from hardpatch.patches import patchify

GRID, SIDE = (3, 4), 4


@pytest.fixture(params=[1, 3, 5])
def images(request: pytest.FixtureRequest) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, request.param, GRID[0] * SIDE, GRID[1] * SIDE, generator=generator)


@pytest.fixture
def mask() -> torch.Tensor:
    return next(fixed_masks(torch.arange(2), GRID, 9, 1, seed=0))


def visible(mask: torch.Tensor, y: int, x: int) -> bool:
    return not mask[y // SIDE * GRID[1] + x // SIDE]


def test_mean_color_is_the_mean_of_the_visible_pixels(images: torch.Tensor, mask: torch.Tensor) -> None:
    channels, height, width = images.shape[1:]
    predicted = trivial.mean_color(patchify(images, SIDE), mask, channels)
    for b, image in enumerate(images):
        shown = [(y, x) for y in range(height) for x in range(width) if visible(mask[b], y, x)]
        assert len(shown) == 3 * SIDE**2
        color = torch.stack([image[:, y, x] for y, x in shown]).mean(0)
        expected = color.view(-1, 1, 1).expand(channels, height, width)
        torch.testing.assert_close(predicted[b], patchify(expected.unsqueeze(0), SIDE)[0])


def test_neighbors_are_weighted_by_their_distance(images: torch.Tensor, mask: torch.Tensor) -> None:
    channels, height, width = images.shape[1:]
    patches = patchify(images, SIDE)
    color = patchify(torch.zeros_like(images), SIDE) + trivial.mean_color(patches, mask, channels)
    expected = torch.zeros_like(images, dtype=torch.float64)
    for b, image in enumerate(images.double()):
        mean = color[b, 0, :channels].double()
        for y in range(height):
            for x in range(width):
                total, weights = trivial.FLOOR * mean, trivial.FLOOR
                for v in range(height):
                    for u in range(width):
                        if visible(mask[b], v, u):
                            weight = math.exp(-((y - v) ** 2 + (x - u) ** 2) / (2 * (trivial.BLUR * SIDE) ** 2))
                            total, weights = total + weight * image[:, v, u], weights + weight
                expected[b, :, y, x] = total / weights
    predicted = trivial.blurred_neighbors(patches, mask, channels, GRID)
    torch.testing.assert_close(predicted.double(), patchify(expected, SIDE), rtol=1e-4, atol=1e-4)


def test_the_nearest_visible_patch_is_copied(images: torch.Tensor, mask: torch.Tensor) -> None:
    patches = patchify(images, SIDE)
    predicted = trivial.nearest_patch(patches, mask, GRID)
    for b in range(len(images)):
        shown = [n for n in range(12) if not mask[b, n]]
        for n in range(12):
            row, column = divmod(n, GRID[1])
            nearest = min(shown, key=lambda m: ((m // GRID[1] - row) ** 2 + (m % GRID[1] - column) ** 2, m))
            assert torch.equal(predicted[b, n], patches[b, nearest])


def test_losses_have_the_units_of_the_run(images: torch.Tensor, mask: torch.Tensor) -> None:
    channels = images.shape[1]
    raw, normalized = pixels(images, SIDE), pixels(images, SIDE, normalize=True)
    losses = trivial.trivial_losses(raw, mask, absolute_pixel_loss, channels=channels, grid=GRID, normalized=False)
    assert tuple(losses) == trivial.NAMES
    expected = (trivial.nearest_patch(raw, mask, GRID) - raw).abs().mean(-1)
    torch.testing.assert_close(losses["nearest_patch"], expected)
    losses = trivial.trivial_losses(raw, mask, pixel_loss, channels=channels, grid=GRID, normalized=True)
    expected = (trivial.nearest_patch(normalized, mask, GRID) - normalized).square().mean(-1)
    torch.testing.assert_close(losses["nearest_patch"], expected)
    assert losses["mean_color"].mean() < 1.2 < losses["nearest_patch"].mean()  # of noise: 1 and 2


def test_a_constant_image_is_predicted_exactly(mask: torch.Tensor) -> None:
    patches = patchify(torch.full((2, 3, GRID[0] * SIDE, GRID[1] * SIDE), 0.7), SIDE)
    losses = trivial.trivial_losses(patches, mask, pixel_loss, channels=3, grid=GRID, normalized=False)
    assert all(loss.abs().max() < 1e-10 for loss in losses.values())
