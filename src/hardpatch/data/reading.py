"""Reading of image files as pixels: channels, type, range, pages; one for every verb that uses a model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from hardpatch.choices import PagesName
from hardpatch.data.limits import MAX_PIXELS

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in gray (ITU-R 601)."""
DTYPES = ("uint8", "uint16", "int16", "uint32", "float32")
"""Types in which pixels are kept until they are on the device."""

STRIP = 1 << 22
"""Values that are converted at a time."""

Pixels = npt.NDArray[Any]
"""Pixels ``[H, W, C]`` of one of :data:`DTYPES`."""


class UndecodableImage(Exception):  # noqa: N818 (a state, as in FileNotFound)
    """An image that cannot be decoded. The message is the reason; a source puts the name of the image in front."""


@dataclass(frozen=True)
class Reading:
    """Settings by which image files become pixels.

    Pixels of `dtype` are kept as they are stored, and the model takes ``(pixels - low) / (high - low)``, cut off at 0
    and 1. Pixels of another type are brought to this scale by the range of their own type.
    """

    channels: int | tuple[int, ...] = 3
    """Number of channels, or which channels of the files, counted from 0."""
    dtype: str = "uint8"
    """One of :data:`DTYPES`."""
    low: tuple[float, ...] = (0.0,)
    """Value that the model sees as 0: one for all channels, or one for each."""
    high: tuple[float, ...] = (255.0,)
    """Value that the model sees as 1, likewise."""
    mixed: tuple[str, ...] = ()
    """Types of the images of the model, if they have several of more than 8 bits."""
    pages: PagesName = "error"
    """Treatment of files of several pages."""
    bands: tuple[str, ...] = ()
    """Patterns of the files of each band, where these are apart; see :mod:`hardpatch.data.bands`."""
    background: tuple[int, int, int] = (255, 255, 255)
    """RGB color, 0 to 255, behind transparent pixels."""
    max_pixels: int = MAX_PIXELS
    """Height times width above which an image is refused."""

    @property
    def number(self) -> int:
        """Number of channels of the pixels."""
        return self.channels if isinstance(self.channels, int) else len(self.channels)

    def with_channels(self, channels: int | tuple[int, ...]) -> "Reading":
        """Return this reading of other channels."""
        return replace(self, channels=channels)

    @property
    def ranged(self) -> bool:
        """True if bytes are not simply divided by 255."""
        return self.dtype == "uint8" and (self.low, self.high) != ((0.0,), (255.0,))

    @property
    def bounds(self) -> tuple[Pixels, Pixels]:
        """`low` and `high` as float32 arrays of one number or one for each channel."""
        return np.array(self.low, np.float32), np.array(self.high, np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as the metadata of weights hold them."""
        channels = self.channels if isinstance(self.channels, int) else list(self.channels)
        lists = {
            "mixed": list(self.mixed),
            "bands": list(self.bands),
            "low": list(self.low),
            "high": list(self.high),
            "background": list(self.background),
        }
        return {**self.__dict__, "channels": channels, **lists}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Reading":
        """Return the reading of :meth:`to_dict`."""
        tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **tuples})


def read_reading(metadata: Mapping[str, Any]) -> Reading:
    """Return the reading in the metadata of weights; 8 bits where they have none, as earlier versions wrote them."""
    values = metadata.get("reading")
    return Reading(len(metadata["mean"])) if values is None else Reading.from_dict(values)


RGB, GRAY = Reading(3), Reading(1)
"""8-bit photographs, in color and gray."""


def type_range(dtype: str | np.dtype[Any]) -> tuple[float, float]:
    """Least and greatest value of an integer type; 0 and 1 for floating point."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return 0.0, 1.0
    limits = np.iinfo(kind)
    return float(limits.min), float(limits.max)


def to_unit(pixels: Pixels, reading: Reading) -> npt.NDArray[np.float32]:
    """Scale ``[H, W, C]`` of the reading's type to float32 in [0, 1]."""
    low, high = reading.bounds
    return ((pixels.astype(np.float32) - low) / (high - low)).clip(0, 1)


def to_bytes(pixels: Pixels, reading: Reading) -> npt.NDArray[np.uint8]:
    """Return pixels ``[H, W, C]`` in 8 bits, to be shown."""
    if pixels.dtype == np.uint8 and not reading.ranged:
        return pixels
    return (to_unit(pixels, reading) * 255).round().astype(np.uint8)


def from_unit(values: npt.NDArray[np.float32], reading: Reading) -> Pixels:
    """Return pixels of the reading's type for float32 ``[H, W, C]`` in [0, 1]."""
    low, high = reading.bounds
    return as_type(values * (high - low) + low, reading.dtype)


def as_type(values: npt.NDArray[np.floating[Any]], dtype: str) -> Pixels:
    """Round and clip to an integer type; floating point stays."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return values.astype(kind)
    limits = np.iinfo(kind)
    return values.astype(np.float64).round().clip(limits.min, limits.max).astype(kind)


def arranged(pixels: Pixels, reading: Reading) -> Pixels:
    """Bring decoded ``[H, W, C]`` to the channels and the type of the reading, writable and contiguous.

    Gray is repeated for RGB, and RGB becomes gray by the luma weights of ITU-R 601.

    Raises UndecodableImage if the channels are others.
    """
    if pixels.dtype == reading.dtype and pixels.shape[2] == reading.channels:
        return np.ascontiguousarray(pixels)
    return np.ascontiguousarray(
        in_strips(lambda rows: _with_dtype(_with_channels(rows, reading.channels), reading), pixels)
    )


def _with_channels(pixels: Pixels, channels: int | tuple[int, ...]) -> Pixels:
    found = pixels.shape[2]
    if not isinstance(channels, int):
        if max(channels) >= found:
            raise UndecodableImage(f"{found} channels; data.channels asks for index {max(channels)}, counted from 0")
        return pixels[:, :, list(channels)]
    if found == channels:
        return pixels
    if (found, channels) == (1, 3):
        return np.repeat(pixels, 3, axis=2)
    if (found, channels) == (3, 1):
        return as_type(pixels.astype(np.float32) @ np.array(LUMA, np.float32), str(pixels.dtype))[:, :, None]
    raise UndecodableImage(
        f"{found} channels; expected {channels}: set data.channels to {found}, or to the indices of those to use, as "
        "in [2, 1, 0]"
    )


def _with_dtype(pixels: Pixels, reading: Reading) -> Pixels:
    if pixels.dtype == reading.dtype:
        return pixels
    low, high = type_range(pixels.dtype)
    return from_unit(((pixels.astype(np.float64) - low) / (high - low)).astype(np.float32), reading)


def in_strips(convert: Callable[..., Pixels], *images: Pixels) -> Pixels:
    """Convert images ``[H, W, C]`` of one size a few rows at a time, so that what is made on the way stays small.

    Args:
        convert: makes the rows of one image from the same rows of all, each pixel from itself alone.
        images: are converted.
    """
    height = len(images[0])
    rows = max(1, STRIP // max(1, images[0][:1].size))
    if height <= rows:
        return convert(*images)
    first = convert(*(image[:rows] for image in images))
    result = np.empty((height, *first.shape[1:]), first.dtype)
    result[:rows] = first
    for start in range(rows, height, rows):
        result[start : start + rows] = convert(*(image[start : start + rows] for image in images))
    return result
