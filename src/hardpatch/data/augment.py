"""Transforms from decoded images to crops of the same type. The model normalizes them on the device.

All randomness comes from the generator that is passed in, so a crop does not depend on the process that makes it.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from hardpatch.data.color import MULTI_CROP_COLORS, ColorTransform
from hardpatch.data.crop import Image, crop_box, crop_pixels, resize, resize_as_pillow, torch_type
from hardpatch.data.decode import Jpeg
from hardpatch.data.reading import RGB, Reading

GLOBAL_CROPS = 2
"""Global views of an image in multi-crop."""


class Crop(NamedTuple):
    """A crop, and which part of the image it shows."""

    pixels: torch.Tensor  # [C, h, w]
    box: tuple[float, float, float, float]  # top, left, height, width: shares of the image's height and width
    flipped: bool


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop, then a horizontal flip with probability `flip`; image_size is (height, width).

    `color_jitter` is the strength by which brightness, contrast and saturation of the crop vary. BEiT has 0.4, and
    applies it to the whole image, which has another mean gray for the contrast.

    A JPEG is decoded at half, a quarter or an eighth of its size if the crop is then still at least `shrink_on_decode`
    times as high and wide as image_size. The edges of the crop are then moved to whole pixels of the shrunken image, by
    less than 1 / shrink_on_decode pixels of the output. None decodes every image in full.
    """

    image_size: tuple[int, int]
    reading: Reading = RGB
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    color_jitter: float = 0.0
    shrink_on_decode: float | None = None

    def __call__(self, image: Image | Jpeg, rng: np.random.Generator) -> torch.Tensor:
        """Turn [H, W, C], or a JPEG, into a crop [C, h, w] of the same type."""
        return self.crop(image, rng).pixels

    def crop(self, image: Image | Jpeg, rng: np.random.Generator) -> Crop:
        """Return the crop of :meth:`__call__` and its box. Raises UndecodableImage for a broken JPEG."""
        strength = self.color_jitter
        color = ColorTransform(jitter=1.0, strength=(strength, strength, strength, 0.0)) if strength else None
        return _random_crop(
            image, self.image_size, self.scale, self.ratio, self.flip, color, rng, self.reading, self.shrink_on_decode
        )


@dataclass(frozen=True)
class MultiCropTransform:
    """Two global and many local views of an image, as in iBOT (Zhou et al., ICLR 2022) and DINO.

    Each is a random resized crop, flipped with probability `flip`. With `color` each is jittered (0.8) and turned gray
    (0.2); the first global view is always blurred, the second with 0.1 and solarized with 0.2, a local one blurred with
    0.5. The scales are shares of the image's area, iBOT's for ViT-B. Sizes are (height, width).
    """

    image_size: tuple[int, int]
    local_size: tuple[int, int] = (96, 96)
    local_crops: int = 10
    reading: Reading = RGB
    global_scale: tuple[float, float] = (0.32, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.32)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    color: bool = True

    def __call__(self, image: Image, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Turn [H, W, C] into global views [2, C, H, W] and local views [local_crops, C, h, w]."""
        first, second, local = MULTI_CROP_COLORS if self.color else (None, None, None)

        def view(size: tuple[int, int], scale: tuple[float, float], color: ColorTransform | None) -> torch.Tensor:
            return _random_crop(image, size, scale, self.ratio, self.flip, color, rng, self.reading).pixels

        global_views = [view(self.image_size, self.global_scale, color) for color in (first, second)]
        local_views = [view(self.local_size, self.local_scale, local) for _ in range(self.local_crops)]
        no_views = torch.empty((0, self.reading.number, *self.local_size), dtype=torch_type(self.reading))
        return torch.stack(global_views), torch.stack(local_views) if local_views else no_views


@dataclass(frozen=True)
class EvalTransform:
    """Resize so that the image covers image_size / crop_fraction, then crop the center to image_size.

    The pixels are those of timm's evaluation transform of the same image with Pillow, in mode `center` with crop_pct
    equal to crop_fraction.
    """

    image_size: tuple[int, int]
    reading: Reading = RGB
    crop_fraction: float = 1.0

    def __call__(self, image: Image) -> torch.Tensor:
        """Turn [H, W, C] into [C, h, w] of the same type."""
        h, w = self.image_size
        covering = self._covering(*image.shape[:2])
        top, left = round((covering[0] - h) / 2), round((covering[1] - w) / 2)
        cropped = resize_as_pillow(image, covering)[top : top + h, left : left + w]
        return torch.from_numpy(cropped).permute(2, 0, 1)

    def _covering(self, height: int, width: int) -> tuple[int, int]:
        """Return the size of the resized image. timm rounds down for square models, and to the nearest for others."""
        h, w = (math.floor(side / self.crop_fraction) for side in self.image_size)
        if h == w:
            shorter = min(height, width)
            return int(h * height / shorter), int(h * width / shorter)
        ratio = min(height / h, width / w)
        return round(height / ratio), round(width / ratio)


def _random_crop(
    image: Image | Jpeg,
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    flip: float,
    color: ColorTransform | None,
    rng: np.random.Generator,
    reading: Reading,
    shrink_on_decode: float | None = None,
) -> Crop:
    """Crop, flip and recolor an image, [H, W, C] or a JPEG."""
    box = crop_box(image.shape[0], image.shape[1], scale, ratio, rng)
    cropped, shares = crop_pixels(image, box, size, shrink_on_decode)
    pixels = resize(cropped, size)
    flipped = rng.random() < flip
    if color is not None:
        pixels = color(pixels, rng, reading)
    # one pass in NumPy flips and moves the channels first; torch's flip and copy take twice as long
    planes = np.ascontiguousarray((pixels[:, ::-1] if flipped else pixels).transpose(2, 0, 1))
    return Crop(torch.from_numpy(planes), shares, flipped)
