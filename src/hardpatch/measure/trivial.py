"""Trivial predictors of masked pixels: the losses that a model has to beat before it can be said to have learned."""

from collections.abc import Callable

import torch
from torch import Tensor

from hardpatch.methods.targets import normalize_patches
from hardpatch.patches import gather, patchify, unpatchify

NAMES = ("mean_color", "blurred_neighbors", "nearest_patch")
BLUR = 0.35
"""Standard deviation of the Gaussian of :func:`blurred_neighbors`, in sides of a patch: the best of those tried."""
FLOOR = 1e-6
"""Weight of the mean color beside the Gaussian's weights, for pixels that are far from all that is visible."""


def mean_color(patches: Tensor, mask: Tensor, channels: int) -> Tensor:
    """Predict the mean color of an image's visible pixels: ``[B, N, p * p * C]`` of the same shape.

    Args:
        patches: pixels of every patch.
        mask: bool ``[B, N]``, True = masked. Every patch is predicted, also the visible ones.
        channels: C.
    """
    visible = (~mask).to(patches.dtype).unsqueeze(2)
    means = patches.unflatten(2, (-1, channels)).mean(2)  # [B, N, C]
    color = (means * visible).sum(1, keepdim=True) / visible.sum(1, keepdim=True)
    return color.repeat(1, 1, patches.shape[2] // channels).expand_as(patches)


def blurred_neighbors(patches: Tensor, mask: Tensor, channels: int, grid: tuple[int, int]) -> Tensor:
    """Predict each pixel by the mean of the visible pixels, weighted by a Gaussian of their distance.

    Arguments as in :func:`mean_color`; ``grid`` is (rows, columns) of patches. The standard deviation is :data:`BLUR`
    sides of a patch.
    """
    size = round((patches.shape[2] // channels) ** 0.5)
    visible = (~mask).to(patches.dtype).unsqueeze(2)
    down, right = (_gaussian(count * size, BLUR * size, patches) for count in grid)
    weights = unpatchify(visible.expand(-1, -1, size**2), size, grid)  # [B, 1, H, W]
    colors = unpatchify(mean_color(patches, mask, channels), size, grid)
    blurred = down @ unpatchify(patches * visible, size, grid) @ right + FLOOR * colors
    return patchify(blurred / (down @ weights @ right + FLOOR), size)


def nearest_patch(patches: Tensor, mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Predict a copy of the nearest visible patch, the first one of several. Arguments as above."""
    rows, columns = grid
    places = torch.cartesian_prod(*(torch.arange(count, device=patches.device) for count in grid))
    distances = (places.unsqueeze(1) - places.unsqueeze(0)).square().sum(-1)  # int64 [N, N]: exact, also in ties
    distances = distances.expand(len(mask), -1, -1).masked_fill(mask.unsqueeze(1), rows**2 + columns**2)
    return gather(patches, distances.argmin(2))


def trivial_losses(
    pixels: Tensor,
    mask: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    channels: int,
    grid: tuple[int, int],
    normalized: bool,
) -> dict[str, Tensor]:
    """Return the loss ``[B, N]`` of each trivial predictor, in the units of the run's own reconstruction loss.

    Args:
        pixels: of every patch, ``[B, N, p * p * C]``.
        mask: bool ``[B, N]``, True = masked; the values of visible patches mean nothing.
        loss: from prediction and target, ``[B, N, ...]`` -> ``[B, N]``.
        channels: C.
        grid: (rows, columns) of patches.
        normalized: the targets are pixels normalized patch by patch. Neighbors are blurred before the normalization,
            the mean is that of the normalized pixels.
    """
    target = normalize_patches(pixels) if normalized else pixels
    blurred = blurred_neighbors(pixels, mask, channels, grid)
    predictions = {
        "mean_color": mean_color(target, mask, channels),
        "blurred_neighbors": normalize_patches(blurred) if normalized else blurred,
        "nearest_patch": nearest_patch(target, mask, grid),
    }
    return {name: loss(prediction, target) for name, prediction in predictions.items()}


def _gaussian(size: int, deviation: float, like: Tensor) -> Tensor:
    """Weights of a Gaussian between the pixels of a row: ``[size, size]``."""
    places = torch.arange(size, device=like.device, dtype=like.dtype)
    return torch.exp(-0.5 * ((places.unsqueeze(1) - places) / deviation).square())
