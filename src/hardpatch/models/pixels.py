"""Conversion of pixels of any type to the float images that networks take."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpatch.data.reading import Reading


class Normalized(Protocol):
    """A module that knows how its pixels are read and normalized, see :func:`register_normalization`."""

    reading: Reading
    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor


def register_normalization(
    module: Any, mean: Sequence[float], std: Sequence[float], reading: Reading | None = None
) -> None:
    """Give a module `reading` and the buffers `mean`, `std`, `low` and `high`, which its weights do not hold.

    Args:
        module: that normalizes pixels.
        mean: of each channel for pixels in [0, 1].
        std: standard deviation likewise.
        reading: of its images; None is 8 bits of as many channels as there are means.
    """
    assert isinstance(module, nn.Module)
    reading = reading or Reading(len(mean))
    module.reading = reading  # type: ignore[assignment]
    for name, values in (("mean", mean), ("std", std), ("low", reading.low), ("high", reading.high)):
        module.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)


def normalize(pixels: Tensor, model: Normalized) -> Tensor:
    """Scale pixels to [0, 1], subtract the mean of each channel and divide by its standard deviation.

    Args:
        pixels: ``[..., C, H, W]`` in the type of the model's reading.
        model: with range and statistics of each channel.

    Returns:
        float32 ``[..., C, H, W]``.
    """
    return (to_unit(pixels, model) - model.mean.view(-1, 1, 1)) / model.std.view(-1, 1, 1)


def to_unit(pixels: Tensor, model: Normalized) -> Tensor:
    """Scale pixels ``[..., C, H, W]`` to float32 in [0, 1]; wider types than 8 bits are cut off there."""
    if pixels.dtype == torch.uint8 and not model.reading.ranged:
        return pixels.float() / 255.0
    low, high = model.low.view(-1, 1, 1), model.high.view(-1, 1, 1)
    return ((pixels.float() - low) / (high - low)).clamp_(0, 1)


def mean_color(model: Normalized) -> tuple[float, ...]:
    """Return the mean of each channel as a value of the pixels, whole for integers: the color that pads images."""
    mean, low, high = (values.flatten() for values in (model.mean, model.low, model.high))
    values: list[float] = (low + mean * (high - low)).tolist()
    return tuple(values if model.reading.dtype == "float32" else map(round, values))


def to_bytes(pixels: Tensor, model: Normalized) -> Tensor:
    """Return pixels ``[..., C, H, W]`` in 8 bits: for pictures, and for networks that were trained on those."""
    if pixels.dtype == torch.uint8 and not model.reading.ranged:
        return pixels
    return (to_unit(pixels.to(model.low.device), model) * 255).round_().byte()


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
