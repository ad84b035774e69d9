"""Crops, flips and colors of uint8 images; normalization is the model's, on the device.

Whatever is random comes from the generator that is passed in, so that an image looks the same in whichever process it
is made.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from hardpatch.data.decode import Jpeg

if TYPE_CHECKING:
    pass

Image = npt.NDArray[np.uint8]

GLOBAL_CROPS = 2
BLUR_SIGMA = (0.1, 2.0)  # pixels
SHRINKS = (8, 4, 2)  # what a JPEG decodes to quickly; the scales between are slower than the full size


@dataclass(frozen=True)
class Color:
    """Jitter, gray, blur and solarization, each with a probability, in this order (BYOL's, as DINO and iBOT use it).

    `strength` is that of the jitter: brightness, contrast and saturation are multiplied by a factor in 1 +- strength,
    the hue is turned by up to +- strength of a circle; the four come in random order. The blur is Gaussian with a
    standard deviation between 0.1 and 2 pixels. Images of one channel have no saturation or hue and are gray already.

    Raises ValueError for a probability or a strength outside [0, 1], and a hue beyond 0.5.
    """

    jitter: float = 0.0
    strength: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    gray: float = 0.0
    blur: float = 0.0
    solarize: float = 0.0

    def __post_init__(self) -> None:
        for name in ("jitter", "gray", "blur", "solarize"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a probability in [0, 1], got {getattr(self, name)}")
        if not all(0 <= strength <= most for strength, most in zip(self.strength, (1, 1, 1, 0.5), strict=True)):
            raise ValueError(
                "strength: expected brightness, contrast and saturation in [0, 1] and hue in [0, 0.5], "
                f"got {self.strength}"
            )

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:
        """uint8 [H, W, C] to the same shape, C being 1 or 3."""
        from PIL import Image as Pillow
        from PIL import ImageFilter
        from torchvision.transforms.v2 import functional  # type: ignore[import-untyped]

        colored = image.shape[2] > 1
        # On Pillow's images these are as the references compute them, and no slower than on tensors.
        out = Pillow.fromarray(image if colored else image[:, :, 0])
        if rng.random() < self.jitter:
            brightness, contrast, saturation, hue = rng.uniform(-1, 1, 4) * self.strength
            steps = (
                (functional.adjust_brightness, 1 + brightness),
                (functional.adjust_contrast, 1 + contrast),
                (functional.adjust_saturation, 1 + saturation),
                (functional.adjust_hue, hue),
            )
            for k in rng.permutation(4):
                if self.strength[k] and (colored or k < 2):
                    adjust, by = steps[k]
                    out = adjust(out, by)
        if rng.random() < self.gray and colored:
            out = functional.rgb_to_grayscale(out, num_output_channels=3)
        if rng.random() < self.blur:
            out = out.filter(ImageFilter.GaussianBlur(rng.uniform(*BLUR_SIGMA)))
        if rng.random() < self.solarize:
            out = functional.solarize(out, threshold=128)
        return np.array(out).reshape(image.shape)


# of the first global view, the second, and the local ones
COLORS = (
    Color(jitter=0.8, gray=0.2, blur=1.0),
    Color(jitter=0.8, gray=0.2, blur=0.1, solarize=0.2),
    Color(jitter=0.8, gray=0.2, blur=0.5),
)


Box = tuple[int, int, int, int]
"""Top, left, height and width in pixels."""


class Crop(NamedTuple):
    """A view of an image, and where it comes from."""

    pixels: torch.Tensor  # uint8 [C, h, w]
    box: tuple[float, float, float, float]  # top, left, height, width: shares of the image's height and width
    flipped: bool


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop, then a horizontal flip with probability `flip`; image_size is (height, width).

    `color_jitter` is the strength by which brightness, contrast and saturation of the crop vary; BEiT has 0.4 (and
    applies it to the whole image, which differs by the gray that contrast is about).

    A JPEG is decoded at half, a quarter or an eighth of its size where what then is left of the crop is still at least
    `shrink_on_decode` times as high and wide as image_size. The crop's edges are then moved to whole pixels of the
    shrunken image, by less than 1 / shrink_on_decode pixels of the output. None decodes everything in full.
    """

    image_size: tuple[int, int]
    channels: int = 3
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    color_jitter: float = 0.0
    shrink_on_decode: float | None = None

    def __call__(self, image: Image | Jpeg, rng: np.random.Generator) -> torch.Tensor:
        """uint8 [H, W, C], or a JPEG that would be that, to uint8 [C, h, w]."""
        return self.crop(image, rng).pixels

    def crop(self, image: Image | Jpeg, rng: np.random.Generator) -> Crop:
        """The same, with its place in the image; raises UndecodableImage for a JPEG that is broken."""
        by = self.color_jitter
        color = Color(jitter=1.0, strength=(by, by, by, 0.0)) if by else None
        return _view(image, self.image_size, self.scale, self.ratio, self.flip, color, rng, self.shrink_on_decode)


@dataclass(frozen=True)
class MultiCropTransform:
    """Two global and many local views of an image, as iBOT has them (Zhou et al., ICLR 2022) from DINO.

    Each is a random resized crop, flipped with probability `flip`. With `color` each is jittered (0.8) and turned gray
    (0.2); the first global view is always blurred, the second with 0.1 and solarized with 0.2, a local one blurred with
    0.5. The scales are shares of the image's area, iBOT's for ViT-B; sizes are (height, width).
    """

    image_size: tuple[int, int]
    local_size: tuple[int, int] = (96, 96)
    local_crops: int = 10
    channels: int = 3
    global_scale: tuple[float, float] = (0.32, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.32)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    color: bool = True

    def __call__(self, image: Image, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 [H, W, C] to the global views, uint8 [2, C, H, W], and the local ones, uint8 [local_crops, C, h, w]."""
        first, second, local = COLORS if self.color else (None, None, None)

        def view(size: tuple[int, int], scale: tuple[float, float], color: Color | None) -> torch.Tensor:
            return _view(image, size, scale, self.ratio, self.flip, color, rng).pixels

        large = [view(self.image_size, self.global_scale, color) for color in (first, second)]
        small = [view(self.local_size, self.local_scale, local) for _ in range(self.local_crops)]
        none = torch.empty((0, self.channels, *self.local_size), dtype=torch.uint8)
        return torch.stack(large), torch.stack(small) if small else none


def _view(
    image: Image | Jpeg,
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    flip: float,
    color: Color | None,
    rng: np.random.Generator,
    shrink_on_decode: float | None = None,
) -> Crop:
    """Crop, flip, color of an image, uint8 [H, W, C], or of a JPEG that would be that."""
    box = crop_box(image.shape[0], image.shape[1], scale, ratio, rng)
    cut, share = cut_box(image, box, size, shrink_on_decode)
    pixels = resize(cut, size)
    flipped = rng.random() < flip
    if color is not None:
        pixels = color(pixels, rng)
    # one pass of numpy's turns the pixels and puts them channels first; torch's flip and copy take twice as long
    planes = np.ascontiguousarray((pixels[:, ::-1] if flipped else pixels).transpose(2, 0, 1))
    return Crop(torch.from_numpy(planes), share, flipped)


def cut_box(
    image: Image | Jpeg, box: Box, size: tuple[int, int], margin: float | None
) -> tuple[Image, tuple[float, float, float, float]]:
    """The pixels of a box, those of a JPEG perhaps shrunken, and its place as shares of the image."""
    all_height, all_width = image.shape[:2]
    top, left, height, width = box
    shrink = 1
    if isinstance(image, Jpeg):
        if margin is not None:
            shrink = shrink_factor(height, width, size, margin)
        image = image.pixels(shrink)
        if image.shape[:2] == (all_height, all_width):  # Pillow does not shrink
            shrink = 1
    # to whole pixels of what was decoded, but not to those at its end that stand for fewer than `shrink`
    top, bottom = (min(round(edge / shrink), all_height // shrink) for edge in (top, top + height))
    left, right = (min(round(edge / shrink), all_width // shrink) for edge in (left, left + width))
    share = (
        top * shrink / all_height,
        left * shrink / all_width,
        (bottom - top) * shrink / all_height,
        (right - left) * shrink / all_width,
    )
    return image[top:bottom, left:right], share


def shrink_factor(height: int, width: int, size: tuple[int, int], margin: float) -> int:
    """By how much a part of a JPEG of this height and width may shrink and still have `margin` times the size."""
    zoom = min(height / size[0], width / size[1]) / margin
    return next((factor for factor in SHRINKS if factor <= zoom), 1)


@dataclass(frozen=True)
class EvalTransform:
    """The image resized to cover image_size / crop_fraction, its shorter side just so, then cropped at the center."""

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


def crop_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Box:
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


def _to_tensor(image: Image) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)
