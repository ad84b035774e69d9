"""Conversion of uint8 pixels to the float images that networks take."""

import torch
import torch.nn.functional as F
from torch import Tensor


def normalize(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Scale pixels to [0, 1], subtract the mean of each channel and divide by its standard deviation.

    Args:
        pixels: uint8 ``[..., C, H, W]``.
        mean: of each channel for pixels in [0, 1], C numbers.
        std: standard deviation likewise.

    Returns:
        float32 ``[..., C, H, W]``.
    """
    return (pixels.float() / 255.0 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)


def resize_to_grid(pixels: Tensor, grid: tuple[int, int], stride: int) -> Tensor:
    """Scale pixels to [0, 1] and resize them to ``stride`` pixels for each position of a grid.

    Args:
        pixels: uint8 ``[B, 3, H, W]``.
        grid: (rows, columns).
        stride: side of a position in pixels.

    Returns:
        float32 ``[B, 3, rows * stride, columns * stride]``.

    Raises:
        ValueError: if the pixels have another type or shape.
    """
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
        raise ValueError(f"pixels: expected uint8 [B, 3, H, W], got {pixels.dtype} {list(pixels.shape)}")
    size = (grid[0] * stride, grid[1] * stride)
    images = pixels.float() / 255
    if images.shape[2:] == size:
        return images
    return F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
