"""The bytes of an image file as a uint8 array: the right picture or an exception, never half of one."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hardpatch.errors import UserError

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

# Pillow knows many more formats, some of which start other programs; only these are ever tried on foreign bytes.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
# Pillow's own limit: beyond it a broken header is likelier than a picture, and decoding takes minutes and all memory.
MOST_PIXELS = 178_956_970
MODES = {1: "L", 3: "RGB"}


class UndecodableImage(Exception):  # noqa: N818 (it states what is the case, like FileNotFound)
    """One image could not be read; the message gives the reason and, from a source, the name in front of it."""


def check_channels(channels: int) -> None:
    """Raise UserError unless images can be decoded to this many channels."""
    if channels not in MODES:
        raise UserError(f"data.channels: expected 1 (gray) or 3 (RGB), got {channels!r}")


class Jpeg:
    """A JPEG whose header has been read: `shape` is (height, width, channels); pixels are decoded when asked for."""

    def __init__(self, data: bytes, shape: tuple[int, int, int]) -> None:
        self.data, self.shape = data, shape

    def pixels(self, shrink: int = 1) -> npt.NDArray[np.uint8]:
        """uint8 [H, W, channels], writable, or [ceil(H / shrink), ceil(W / shrink), channels] for `shrink` 2, 4 or 8.

        Shrinking leaves out the fine frequencies of each 8 x 8 block. The few files that only Pillow can read come in
        full size all the same. Raises UndecodableImage.
        """
        import simplejpeg

        height, width, channels = self.shape
        # least height and width: min_factor alone leaves the size as it is
        least = {} if shrink == 1 else {"min_height": -(-height // shrink), "min_width": -(-width // shrink)}
        try:
            return simplejpeg.decode_jpeg(self.data, "GRAY" if channels == 1 else "RGB", **least)
        except ValueError as error:
            # Pillow would fill the missing part with gray. The other complaints (stray bytes between segments, an
            # unusual color space or subsampling) leave the picture whole: let Pillow try.
            if "remature end" in str(error):
                raise UndecodableImage(f"truncated JPEG ({error})") from None
        return _decode_with_pillow(self.data, channels)


def decode(data: bytes, channels: int = 3) -> npt.NDArray[np.uint8]:
    """Decode JPEG, PNG, WebP, TIFF or BMP to uint8 [H, W, channels], writable.

    Gray is repeated over RGB, RGB becomes gray by the luma weights of ITU-R 601, an alpha channel is dropped (not
    composited), 16-bit gray is scaled to 8 bits by 255 / 65535. The EXIF orientation is not applied, as in torchvision.

    Raises UndecodableImage with the reason for any broken, truncated or unknown file, and UserError for channels other
    than 1 and 3.
    """
    image = open_image(data, channels)
    return image.pixels() if isinstance(image, Jpeg) else image


def open_image(data: bytes, channels: int = 3) -> Jpeg | npt.NDArray[np.uint8]:
    """As :func:`decode`, but of a JPEG only the header is read."""
    check_channels(channels)
    size = _jpeg_size(data)
    return _decode_with_pillow(data, channels) if size is None else Jpeg(data, (*size, channels))


def image_size(data: bytes) -> tuple[int, int]:
    """Height and width, from the header alone; UndecodableImage as :func:`decode` raises it where that cannot be."""
    size = _jpeg_size(data)
    if size is None:
        with _opened_with_pillow(data) as file:
            size = file.height, file.width
    return size


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """None for what simplejpeg does not read, which is left to Pillow."""
    if not data:
        raise UndecodableImage("empty file")
    if data[:3] != b"\xff\xd8\xff":
        return None
    import simplejpeg

    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        if "remature end" in str(error):
            raise UndecodableImage(f"truncated JPEG ({error})") from None
        return None
    if height * width > MOST_PIXELS:
        raise UndecodableImage(f"{height} x {width} pixels; expected at most {MOST_PIXELS:,}")
    return height, width


def _decode_with_pillow(data: bytes, channels: int) -> npt.NDArray[np.uint8]:
    with _opened_with_pillow(data) as file:
        if file.mode == "F":
            raise UndecodableImage("floating-point pixels; expected 8-bit, or 16-bit gray")
        if file.mode.startswith("I"):
            return np.repeat(_eight_bits(np.asarray(file))[:, :, None], channels, axis=2)
        # np.array, not np.asarray: torch warns of Pillow's read-only memory
        return np.array(file.convert(MODES[channels])).reshape(file.height, file.width, channels)


@contextmanager
def _opened_with_pillow(data: bytes) -> "Iterator[ImageFile]":
    from PIL import Image, UnidentifiedImageError

    try:
        # Pillow warns of size, odd metadata and alpha in palettes; a picture or an exception says all there is to say.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as file:
                yield file
    except UndecodableImage:
        raise
    except UnidentifiedImageError:
        raise UndecodableImage("not a JPEG, PNG, WebP, TIFF or BMP file") from None
    except Exception as error:  # Pillow's plugins raise nearly anything on broken bytes
        reason = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise UndecodableImage(" ".join(reason.split())) from None


def _eight_bits(pixels: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """16-bit gray (Pillow's I;16 and, from some versions, I) to 8 bits, rounded."""
    wide = pixels.astype(np.int64)
    if wide.size and (wide.min() < 0 or wide.max() > 65535):
        raise UndecodableImage("32-bit integer pixels; expected 8-bit, or 16-bit gray")
    return ((wide * 255 + 32767) // 65535).astype(np.uint8)
