"""Random boxes in images, decoding of their pixels, and resizing."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from hardpatch.data.decode import Jpeg
from hardpatch.data.reading import Pixels, Reading, as_type

Image = Pixels
"""Pixels [H, W, C]."""
Box = tuple[int, int, int, int]
"""Top, left, height and width in pixels."""

MAX_TRIES = 10
"""Boxes that are drawn before the central one is used, as in torchvision."""
SHRINK_FACTORS = (8, 4, 2)
"""Scales at which a JPEG decodes fast; those in between are slower than the full size."""


def crop_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Box:
    """Draw a box from the distribution of torchvision's RandomResizedCrop.

    The area is uniform and the aspect ratio log-uniform. If ten boxes do not fit, the box is the largest central one of
    an allowed aspect ratio.

    Args:
        height: of the image in pixels.
        width: of the image in pixels.
        scale: least and greatest share of the image's area.
        ratio: least and greatest width over height.
        rng: the source of randomness.

    Returns:
        (top, left, height, width) in pixels.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(MAX_TRIES):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        w = round(math.sqrt(area * aspect))
        h = round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    h, w = height, width
    if width / height < ratio[0]:
        h = max(1, min(height, round(width / ratio[0])))
    elif width / height > ratio[1]:
        w = max(1, min(width, round(height * ratio[1])))
    return (height - h) // 2, (width - w) // 2, h, w


def crop_pixels(
    image: Image | Jpeg, box: Box, size: tuple[int, int], shrink_on_decode: float | None
) -> tuple[Image, tuple[float, float, float, float]]:
    """Decode the pixels of a box.

    Args:
        image: [H, W, C], or a JPEG that is decoded here.
        box: in pixels of the whole image.
        size: (height, width) to which the crop will be resized.
        shrink_on_decode: least size of the decoded crop, as a multiple of `size`; None decodes in full. See
            :class:`~hardpatch.data.augment.TrainTransform`.

    Returns:
        [h, w, C], and the box that is shown as shares of the image: top, left, height, width.
    """
    full_height, full_width = image.shape[:2]
    top, left, height, width = box
    shrink = 1
    if isinstance(image, Jpeg):
        if shrink_on_decode is not None:
            shrink = shrink_factor(height, width, size, shrink_on_decode)
        image = image.pixels(shrink)
        if image.shape[:2] == (full_height, full_width):  # Pillow does not shrink
            shrink = 1
    # rounded to whole decoded pixels; a last row or column that covers fewer than `shrink` pixels is left out
    top, bottom = (min(round(edge / shrink), full_height // shrink) for edge in (top, top + height))
    left, right = (min(round(edge / shrink), full_width // shrink) for edge in (left, left + width))
    shares = (
        top * shrink / full_height,
        left * shrink / full_width,
        (bottom - top) * shrink / full_height,
        (right - left) * shrink / full_width,
    )
    return image[top:bottom, left:right], shares


def shrink_factor(height: int, width: int, size: tuple[int, int], margin: float) -> int:
    """Return the largest factor by which a crop of this height and width can shrink and be at least margin * size."""
    zoom = min(height / size[0], width / size[1]) / margin
    return next((factor for factor in SHRINK_FACTORS if factor <= zoom), 1)


def resize(image: Image, size: tuple[int, int]) -> Image:
    """Resize [H, W, C] to [h, w, C] of the same type, bicubic with antialiasing; equal to Pillow within rounding."""
    if image.shape[:2] == size:
        return image
    if image.dtype != np.uint8:
        # in float32, with sums of at most 24 bits; uint32 beyond those is rounded
        planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32))[None]
        values = F.interpolate(planes, size, mode="bicubic", antialias=True, align_corners=False)[0]
        return as_type(values.permute(1, 2, 0).numpy(), str(image.dtype))
    # torch's uint8 kernel is fastest on channels-last pixels, which decoded images are
    pixels = torch.from_numpy(np.ascontiguousarray(image))[None].permute(0, 3, 1, 2)
    resized = F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False)
    return resized[0].permute(1, 2, 0).numpy()


def resize_as_pillow(image: Image, size: tuple[int, int]) -> Image:
    """Resize [H, W, C] to [h, w, C] of the same type, bicubic with antialiasing; 8 bits to the same bits as Pillow.

    So do torchvision and timm with image files. :func:`resize` is faster, and differs by 1 in one of 500 values.
    """
    if image.dtype != np.uint8 or image.shape[:2] == size:
        return resize(image, size)
    from PIL import Image as Pillow

    height, width = size
    bands = [image] if image.shape[2] == 3 else list(np.moveaxis(image, 2, 0))
    resized = [Pillow.fromarray(band).resize((width, height), Pillow.Resampling.BICUBIC) for band in bands]
    return np.array(resized[0]) if image.shape[2] == 3 else np.stack([np.asarray(band) for band in resized], axis=2)


def torch_type(reading: Reading) -> torch.dtype:
    """Return the type of a batch of these pixels."""
    dtype: torch.dtype = getattr(torch, reading.dtype)
    return dtype
