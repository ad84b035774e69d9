"""Random resized crops computed on the device, for a whole batch at once.

Boxes have the distribution of :func:`hardpatch.data.crop.crop_box`.
"""

import math

import torch
from torch import Tensor

from hardpatch.data.crop import MAX_TRIES

BOX_NUMBERS = 2 * MAX_TRIES + 2
"""Random numbers from which a box is computed."""


def crop_boxes(
    noise: Tensor, heights: Tensor, widths: Tensor, scale: tuple[float, float], ratio: tuple[float, float]
) -> Tensor:
    """Compute a random box in each image.

    Args:
        noise: uniform in [0, 1), ``[B, BOX_NUMBERS]``.
        heights: of the images in pixels, ``[B]``.
        widths: of the images in pixels, ``[B]``.
        scale: least and greatest share of the image's area.
        ratio: least and greatest width over height.

    Returns:
        Top, left, height and width in whole pixels, float32 ``[B, 4]``.
    """
    heights, widths = heights.float().unsqueeze(1), widths.float().unsqueeze(1)
    area = heights * widths * (scale[0] + (scale[1] - scale[0]) * noise[:, :MAX_TRIES])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * noise[:, MAX_TRIES : 2 * MAX_TRIES])
    h, w = (area / aspect).sqrt().round(), (area * aspect).sqrt().round()
    fits = (h > 0) & (h <= heights) & (w > 0) & (w <= widths)
    first = fits & (fits.cumsum(1) == 1)
    any_fits = first.any(1, keepdim=True)
    h, w = ((sides * first).sum(1, keepdim=True) for sides in (h, w))
    # where none fits: the largest central box of an allowed aspect ratio
    image_ratio = widths / heights
    max_height = torch.where(image_ratio < ratio[0], (widths / ratio[0]).round().clamp(min=1), heights)
    max_width = torch.where(image_ratio > ratio[1], (heights * ratio[1]).round().clamp(min=1), widths)
    h, w = torch.where(any_fits, h, max_height.minimum(heights)), torch.where(any_fits, w, max_width.minimum(widths))
    margins = torch.cat([heights - h, widths - w], dim=1)
    random_corner = (noise[:, 2 * MAX_TRIES :] * (margins + 1)).floor().minimum(margins)
    corner = torch.where(any_fits, random_corner, (margins / 2).floor())
    return torch.cat([corner, h, w], dim=1)


def crop(images: Tensor, boxes: Tensor, flipped: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop images, resize by bicubic interpolation with antialiasing, and flip some of them.

    The result is that of ``F.interpolate`` for each crop in float32, rounded. Its kernel for uint8 also rounds between
    the two directions, and differs from that by one gray level at some pixels.

    Args:
        images: ``[B, H, C, W]`` of any type: rows before channels, so that both matrix products read memory in order.
        boxes: top, left, height and width in pixels, not necessarily whole ones, ``[B, 4]``.
        flipped: bool ``[B]``.
        size: (height, width) of the crops.

    Returns:
        ``[B, C, h, w]`` of the same type.
    """
    batch, height, channels, width = images.shape
    rows = resize_weights(boxes[:, 0], boxes[:, 2], height, size[0])
    columns = resize_weights(boxes[:, 1], boxes[:, 3], width, size[1])
    columns = torch.where(flipped[:, None, None], columns.flip(1), columns)
    pixels = images.view(batch, height * channels, width).float()
    pixels = torch.bmm(pixels, columns.transpose(1, 2))
    pixels = torch.bmm(rows, pixels.view(batch, height, channels * size[1]))
    if not images.dtype.is_floating_point:
        limits = torch.iinfo(images.dtype)
        pixels = pixels.round_().clamp_(limits.min, limits.max)
    return pixels.to(images.dtype).view(batch, size[0], channels, size[1]).transpose(1, 2).contiguous()


def resize_weights(start: Tensor, length: Tensor, inputs: int, outputs: int) -> Tensor:
    """Weights with which each input pixel enters each output pixel, float32 ``[B, outputs, inputs]``.

    They are Keys' cubic with a = -0.5, widened where the crop is shrunken, as in Pillow and in torch with
    ``antialias=True``. Pixels outside the crop have weight 0, and each row sums to 1.

    Args:
        start: of the crops in input pixels, ``[B]``.
        length: of the crops in input pixels, ``[B]``.
        inputs: pixels of the images in this direction.
        outputs: pixels of the result in this direction.
    """
    scale = (length / outputs)[:, None, None]
    start, length = start[:, None, None], length[:, None, None]
    centers = start + scale * (torch.arange(outputs, device=start.device) + 0.5)[:, None]
    pixels = torch.arange(inputs, device=start.device)
    x = ((pixels + 0.5 - centers) / scale.clamp(min=1)).abs()
    weights = torch.where(x < 1, (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2)
    weights = weights * ((x < 2) & (pixels > start - 1) & (pixels < start + length))
    return weights / weights.sum(2, keepdim=True)
