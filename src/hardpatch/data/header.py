"""Parts that the decoders of all formats share: headers, the limit on pixels, pages, transparency and types."""

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from hardpatch.data.limits import BYTES_PER_PIXEL
from hardpatch.data.reading import DTYPES, Pixels, Reading, UndecodableImage, in_strips, type_range


class Header(NamedTuple):
    """Content of the header of a file, before its pixels are decoded."""

    height: int
    """of the upright picture"""
    width: int
    channels: int
    """of the picture, without alpha"""
    dtype: str
    format: str
    pages: int = 1
    orientation: int = 1
    """EXIF orientation; the picture is stored turned if it is not 1"""
    transparent: bool = False
    lost_bits: int = 0
    """bits of a sample that the decoder drops"""


def check_pixels(height: int, width: int, max_pixels: int) -> None:
    """Refuse an image of more pixels, or of none."""
    if height <= 0 or width <= 0:
        raise UndecodableImage(f"{height} x {width} pixels; an image has some")
    if height * width > max_pixels:
        raise UndecodableImage(
            f"{height} x {width} pixels; expected at most {max_pixels:,}, raise data.max_pixels to read it"
        )


def check_memory(height: int, width: int, bytes_per_pixel: int, max_pixels: int) -> None:
    """Refuse an image of many channels or pages that takes more memory than one of color of the most pixels."""
    needed, limit = height * width * bytes_per_pixel, BYTES_PER_PIXEL * max_pixels
    if needed > limit:
        raise UndecodableImage(
            f"{height} x {width} pixels of {bytes_per_pixel} bytes each take {needed:,} bytes decoded; expected at "
            f"most {limit:,}, {BYTES_PER_PIXEL} for each pixel of data.max_pixels, raise that to read it"
        )


def stacked(pages: Iterable[Pixels]) -> Pixels:
    """Put pages ``[H, W, 1]`` together as channels: ``[H, W, P]``. Raises UndecodableImage for others."""
    planes = list(pages)
    shapes = {plane.shape for plane in planes}
    if len(shapes) > 1 or planes[0].shape[2] > 1:
        found = ", ".join(f"{height} x {width} with {channels} channels" for height, width, channels in shapes)
        raise UndecodableImage(
            f"{len(planes)} pages of {found}; pages can be channels of one image (data.pages) if they have one size "
            "and one channel each"
        )
    return np.concatenate(planes, axis=2)


def chosen_page(pages: int, page: int | None, reading: Reading) -> int:
    """Return the page to decode. Raises UndecodableImage where the reading does not say which."""
    if page is not None:
        return page
    if pages > 1 and reading.pages == "error":
        raise UndecodableImage(
            f"{pages} pages or frames; set data.pages to first, to all (each is an image) or to channels"
        )
    return 0


def over_background(colors: Pixels, alpha: Pixels, reading: Reading, *, premultiplied: bool = False) -> Pixels:
    """Composite ``[H, W, C]`` with its alpha ``[H, W, 1]``, both of one type, on the background.

    Args:
        colors: 1 or 3 channels, or several bands, which are gray behind.
        alpha: its greatest value, 1 for floating point, is opaque.
        reading: names the background.
        premultiplied: the colors are multiplied by alpha already.
    """
    return in_strips(partial(_over_background, reading=reading, premultiplied=premultiplied), colors, alpha)


def _over_background(colors: Pixels, alpha: Pixels, *, reading: Reading, premultiplied: bool) -> Pixels:
    red, green, blue = reading.background
    background = np.array([red, green, blue] if colors.shape[2] == 3 else [0.299 * red + 0.587 * green + 0.114 * blue])
    if colors.dtype.kind != "u":
        low, high = type_range(colors.dtype)
        share = (alpha / high).clip(0, 1)
        if colors.dtype == reading.dtype:
            low, high = min(reading.low), max(reading.high)
        behind = low + background / 255 * (high - low)
        return ((colors if premultiplied else colors * share) + behind * (1 - share)).astype(colors.dtype)
    most = int(np.iinfo(colors.dtype).max)
    wide: Any = np.uint64 if colors.dtype.itemsize == 4 else np.uint32
    behind = (background * (most / 255)).round().astype(wide)
    opacity = alpha.astype(wide)
    covered = np.minimum(colors, alpha).astype(wide) * most if premultiplied else colors.astype(wide) * opacity
    return ((covered + behind * (most - opacity) + most // 2) // most).astype(colors.dtype)


def finite(pixels: Pixels, reading: Reading) -> Pixels:
    """Replace what is not a number by the lower end of the reading's range, and infinity by its ends."""
    if pixels.dtype.kind != "f" or np.isfinite(pixels).all():
        return pixels
    low, high = (min(reading.low), max(reading.high)) if pixels.dtype == reading.dtype else type_range(pixels.dtype)
    return in_strips(lambda strip: np.nan_to_num(strip, nan=low, posinf=high, neginf=low), pixels)


def kept_type(dtype: np.dtype[np.generic]) -> str:
    """Return the type of :data:`~hardpatch.data.reading.DTYPES` that holds the values of a type.

    Raises UndecodableImage if there is none.
    """
    names = {"bool": "uint8", "int8": "int16"}
    names |= dict.fromkeys(("float16", "float64", "int32", "int64", "uint64"), "float32")
    name = names.get(dtype.name, dtype.name)
    if name not in DTYPES:
        raise UndecodableImage(f"pixels of type {dtype.name}; expected one of {', '.join(DTYPES)}")
    return name
