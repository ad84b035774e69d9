"""Decoding of image files to uint8 arrays: the whole picture or an exception, never half a picture."""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hardpatch.errors import UserError

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

FORMATS = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
}
"""Pillow's name of each format that is decoded, and its file extensions. Pillow knows many more, some of which start
other programs; those are never tried."""
EXTENSIONS = tuple(extension for extensions in FORMATS.values() for extension in extensions)
MAX_PIXELS = 178_956_970
"""Pillow's own limit: above it a broken header is likelier than an image, and decoding takes minutes and all memory."""
MODES = {1: "L", 3: "RGB"}
"""Pillow's mode for each number of channels."""


class UndecodableImage(Exception):  # noqa: N818 (a state, as in FileNotFound)
    """An image that cannot be decoded. The message is the reason; a source puts the name of the image in front."""


@contextmanager
def named_errors(name: Callable[[int], str], i: int) -> Iterator[None]:
    """Put the name of image `i` in front of the reason of an UndecodableImage that the block raises."""
    try:
        yield
    except UndecodableImage as error:
        raise UndecodableImage(f"{name(i)}: {error}") from None


def check_channels(channels: int) -> None:
    """Raise UserError unless images can be decoded to this many channels."""
    if channels not in MODES:
        raise UserError(f"data.channels: expected 1 (gray) or 3 (RGB), got {channels!r}")


class Jpeg:
    """A JPEG of which only the header has been read. `shape` is (height, width, channels)."""

    def __init__(self, data: bytes, shape: tuple[int, int, int]) -> None:
        self.data, self.shape = data, shape

    def pixels(self, shrink: int = 1) -> npt.NDArray[np.uint8]:
        """Decode to uint8 [ceil(H / shrink), ceil(W / shrink), channels], writable.

        `shrink` is 1, 2, 4 or 8. Above 1 it leaves out the high frequencies of each 8 x 8 block, which is faster. Files
        that only Pillow can read, of which there are few, are decoded in full size.

        Raises UndecodableImage.
        """
        import simplejpeg

        height, width, channels = self.shape
        # simplejpeg shrinks only if it is given a minimum height and width
        minimum = {} if shrink == 1 else {"min_height": -(-height // shrink), "min_width": -(-width // shrink)}
        try:
            return simplejpeg.decode_jpeg(self.data, "GRAY" if channels == 1 else "RGB", **minimum)
        except ValueError as error:
            # Pillow would fill the missing part with gray. After other errors (stray bytes between segments, an unusual
            # color space or subsampling) the image is complete: let Pillow try.
            if "remature end" in str(error):
                raise UndecodableImage(f"truncated JPEG ({error})") from None
        return _decode_with_pillow(self.data, channels)


def decode(data: bytes, channels: int = 3) -> npt.NDArray[np.uint8]:
    """Decode a JPEG, PNG, WebP, TIFF or BMP file to uint8 [H, W, channels], writable.

    Gray is repeated for RGB. RGB becomes gray by the luma weights of ITU-R 601. An alpha channel is dropped, not
    composited. 16-bit gray is scaled to 8 bits by 255 / 65535. The EXIF orientation is not applied, as in torchvision.

    Raises UndecodableImage with the reason for any broken, truncated or unknown file, and UserError for channels other
    than 1 and 3.
    """
    image = open_image(data, channels)
    return image.pixels() if isinstance(image, Jpeg) else image


def open_image(data: bytes, channels: int = 3) -> Jpeg | npt.NDArray[np.uint8]:
    """Decode as :func:`decode` does, except that of a JPEG only the header is read."""
    check_channels(channels)
    size = _jpeg_size(data)
    return _decode_with_pillow(data, channels) if size is None else Jpeg(data, (*size, channels))


def image_size(data: bytes) -> tuple[int, int]:
    """Read (height, width) from the header alone. Raises UndecodableImage as :func:`decode` does."""
    size = _jpeg_size(data)
    if size is None:
        with _open_with_pillow(data) as file:
            size = file.height, file.width
    return size


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Read (height, width) of a JPEG; None if simplejpeg cannot read the file and Pillow is to try."""
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
    if height * width > MAX_PIXELS:
        raise UndecodableImage(f"{height} x {width} pixels; expected at most {MAX_PIXELS:,}")
    return height, width


def _decode_with_pillow(data: bytes, channels: int) -> npt.NDArray[np.uint8]:
    with _open_with_pillow(data) as file:
        if file.mode == "F":
            raise UndecodableImage("floating-point pixels; expected 8-bit, or 16-bit gray")
        if file.mode.startswith("I"):
            return np.repeat(_eight_bits(np.asarray(file))[:, :, None], channels, axis=2)
        # np.array, not np.asarray: torch warns about Pillow's read-only memory
        return np.array(file.convert(MODES[channels])).reshape(file.height, file.width, channels)


@contextmanager
def _open_with_pillow(data: bytes) -> "Iterator[ImageFile]":
    from PIL import Image, UnidentifiedImageError

    try:
        # Pillow warns about size, odd metadata and alpha in palettes; here an image is either decoded or an error.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=tuple(FORMATS)) as file:
                yield file
    except UndecodableImage:
        raise
    except UnidentifiedImageError:
        raise UndecodableImage("not a JPEG, PNG, WebP, TIFF or BMP file") from None
    except Exception as error:  # Pillow's plugins raise nearly anything on broken bytes
        reason = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise UndecodableImage(" ".join(reason.split())) from None


def _eight_bits(pixels: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """Scale 16-bit gray (Pillow's I;16 and, in some versions, I) to 8 bits, rounded."""
    wide = pixels.astype(np.int64)
    if wide.size and (wide.min() < 0 or wide.max() > 65535):
        raise UndecodableImage("32-bit integer pixels; expected 8-bit, or 16-bit gray")
    return ((wide * 255 + 32767) // 65535).astype(np.uint8)
