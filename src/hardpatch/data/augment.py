"""Crops and flips on uint8 images; normalisation is the model's, on the device."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from hardpatch.data.decode import UndecodableImage
from hardpatch.errors import UserError

if TYPE_CHECKING:
    from hardpatch.data.sources import Source

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop, then a horizontal flip with probability `flip`; image_size is (height, width)."""

    image_size: tuple[int, int]
    channels: int = 3
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def __call__(self, image: Image, rng: np.random.Generator) -> torch.Tensor:
        """uint8 [H, W, C] to uint8 [C, h, w]."""
        out = _to_tensor(random_resized_crop(image, self.image_size, self.scale, self.ratio, rng))
        return out.flip(2) if rng.random() < self.flip else out


@dataclass(frozen=True)
class EvalTransform:
    """The image resized to cover image_size / crop_fraction, its shorter side just so, then cropped at the centre."""

    image_size: tuple[int, int]
    channels: int = 3
    crop_fraction: float = 1.0

    def __call__(self, image: Image) -> torch.Tensor:
        """uint8 [H, W, C] to uint8 [C, h, w]."""
        height, width = image.shape[:2]
        h, w = self.image_size
        zoom = max(h / height, w / width) / self.crop_fraction
        # down to whole pixels, and the margins rounded, as in torchvision; 1e-6 because 49 * (32 / 49) is below 32
        covering = (max(h, int(height * zoom + 1e-6)), max(w, int(width * zoom + 1e-6)))
        top, left = round((covering[0] - h) / 2), round((covering[1] - w) / 2)
        return _to_tensor(resize(image, covering)[top : top + h, left : left + w])


def random_resized_crop(
    image: Image,
    size: tuple[int, int],
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    rng: np.random.Generator | None = None,
) -> Image:
    """A random box of the image, uint8 [H, W, C], resized to uint8 [h, w, C].

    `scale` is the range of the box's share of the area, `ratio` that of its width over its height, as in torchvision.
    """
    rng = np.random.default_rng() if rng is None else rng
    top, left, height, width = crop_box(image.shape[0], image.shape[1], scale, ratio, rng)
    return resize(image[top : top + height, left : left + width], size)


def crop_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a box, by the law of torchvision's RandomResizedCrop.

    Area uniform and aspect log-uniform; after ten boxes that do not fit, the largest central one of allowed aspect.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
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


def resize(image: Image, size: tuple[int, int]) -> Image:
    """Bicubic with antialiasing, uint8 [H, W, C] to uint8 [h, w, C]; within rounding what Pillow gives."""
    if image.shape[:2] == size:
        return image
    # torch's uint8 kernel is fastest on pixels that lie channels last, as a decoded image does
    pixels = torch.from_numpy(np.ascontiguousarray(image))[None].permute(0, 3, 1, 2)
    out = F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False)
    return out[0].permute(1, 2, 0).numpy()


def channel_statistics(
    source: "Source", channels: int, seed: int, at_most: int = 2000
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel in [0, 1] units, over a random choice of `at_most` images.

    Every image counts the same, whatever its size, since training sees them all at one size. Broken files are passed
    over; UserError if none is left.
    """
    chosen = np.random.default_rng(seed).permutation(len(source))[:at_most]
    mean, square, count = np.zeros(channels), np.zeros(channels), 0
    for i in chosen:
        try:
            pixels = source.image(int(i), channels).reshape(-1, channels)
        except UndecodableImage:
            continue
        mean += pixels.mean(0) / 255
        square += np.einsum("pc,pc->c", pixels, pixels, dtype=np.float64) / len(pixels) / 255**2
        count += 1
    if not count:
        raise UserError(
            f"data.mean: none of {len(chosen)} images could be decoded, so there is nothing to compute it on"
        )
    mean, square = mean / count, square / count
    # images of one colour would have the model divide by zero; a grey level is the finest there is
    std = np.sqrt(np.maximum(square - mean**2, 0)).clip(min=1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())


def _to_tensor(image: Image) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)
