"""Images as sequences of patches, and masks as lists of patch indices.

Patches run row by row over the image. A patch vector is laid out ``(row in patch, column in patch, channel)``.
"""

from typing import NamedTuple

import torch
from torch import Tensor


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut ``images [B, C, H, W]`` into patch vectors ``[B, N, p * p * C]``.

    Raises:
        ValueError: if the patch size does not divide the height and the width.
    """
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    if (rows * patch_size, columns * patch_size) != (height, width) or rows * columns == 0:
        raise ValueError(
            f"images: expected a height and width divisible by patch_size={patch_size}, got {height}x{width}"
        )
    patches = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, patch_size * patch_size * channels)


def unpatchify(patches: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """Assemble patch vectors ``[B, N, p * p * C]`` of a ``grid`` of (rows, columns) into images ``[B, C, H, W]``.

    Raises:
        ValueError: if the shape of the patches does not match patch size and grid.
    """
    rows, columns = grid
    batch, number, size = patches.shape
    channels = size // patch_size**2
    if number != rows * columns or channels * patch_size**2 != size:
        raise ValueError(
            f"patches: expected [B, {rows * columns}, {patch_size}*{patch_size}*C] for a {rows}x{columns} grid, "
            f"got {list(patches.shape)}"
        )
    images = patches.reshape(batch, rows, columns, patch_size, patch_size, channels)
    return images.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, rows * patch_size, columns * patch_size)


def gather(tokens: Tensor, indices: Tensor) -> Tensor:
    """Select ``tokens [B, N, D]`` at ``indices [B, K]``: ``[B, K, D]``. Numbers ``[B, N]`` give ``[B, K]``."""
    if tokens.dim() == 2:
        return tokens.gather(1, indices)
    return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def scatter(tokens: Tensor, indices: Tensor, into: Tensor) -> Tensor:
    """Copy ``into [B, N, D]`` with ``tokens [B, K, D]`` written at ``indices [B, K]``; inverse of :func:`gather`."""
    return into.scatter(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]), tokens)


class PatchIndices(NamedTuple):
    """A mask as two lists of patch indices, each in increasing order. Computed once a step, used by every part."""

    visible: Tensor
    """int64 ``[B, V]``"""
    masked: Tensor
    """int64 ``[B, M]``"""
    hidden: Tensor | None = None
    """bool ``[B, V]``: visible patches that the encoder sees as mask tokens (UM-MAE's secondary masking)"""


def all_masked(images: int, patches: int, device: torch.device) -> PatchIndices:
    """Index every patch of every image as masked and none as visible: for targets of the whole image."""
    indices = torch.arange(patches, device=device).expand(images, -1)
    return PatchIndices(indices[:, :0], indices)


def to_indices(mask: Tensor | PatchIndices, masked: int | None = None) -> PatchIndices:
    """Turn a mask into the indices of its visible and masked patches; :class:`PatchIndices` are returned unchanged.

    Args:
        mask: bool ``[B, N]``, True = masked, with the same number of masked patches in every image.
        masked: that number, M. Pass it inside a training step: reading it from the mask synchronizes with the device.

    Raises:
        ValueError: if ``masked`` is None and the images have different numbers of masked patches.
    """
    if isinstance(mask, PatchIndices):
        return mask
    if masked is None:
        counts = mask.sum(dim=1)
        masked = int(counts[0])
        if not bool((counts == masked).all()):
            raise ValueError(f"mask: expected the same number of masked patches in every image, got {counts.tolist()}")
    order = mask.byte().argsort(dim=1, stable=True)
    visible = mask.shape[1] - masked
    return PatchIndices(order[:, :visible], order[:, visible:])
