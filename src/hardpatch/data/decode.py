"""Decoding of image files: the whole picture, upright and in full depth, or an exception; never half a picture."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

from hardpatch.data.current_file import in_loader, reading_file
from hardpatch.data.header import Header, check_pixels
from hardpatch.data.jpeg2000 import decode_jpeg2000, is_jpeg2000, jpeg2000_header
from hardpatch.data.orientation import jpeg_orientation, upright, upright_size
from hardpatch.data.pillow import decode_with_pillow, pillow_header
from hardpatch.data.reading import RGB, Pixels, Reading, UndecodableImage, arranged

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of a TIFF and of a BigTIFF, in both byte orders."""
DAMAGED = ("Corrupt JPEG", "remature end", "Invalid", "Bogus", "Unexpected")
"""Words of libjpeg's complaints about damaged data, as opposed to files that it does not support."""
NO_MEMORY = "there is not enough memory to decode it"

P = ParamSpec("P")
T = TypeVar("T")


@contextmanager
def named_errors(name: Callable[[int], str], i: int) -> Iterator[None]:
    """Put the name of image `i` in front of the reason of an UndecodableImage that the block raises."""
    if in_loader():
        reading_file(name(i))
    try:
        yield
    except UndecodableImage as error:
        raise UndecodableImage(f"{name(i)}: {error}") from None
    except MemoryError:
        raise UndecodableImage(f"{name(i)}: {NO_MEMORY}") from None


def _within_memory(work: Callable[P, T]) -> Callable[P, T]:
    """Take an image for which the memory does not suffice as one that cannot be decoded."""

    @wraps(work)
    def within_memory(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return work(*args, **kwargs)
        except MemoryError:
            raise UndecodableImage(NO_MEMORY) from None

    return within_memory


class Jpeg:
    """A JPEG of which only the header has been read. `shape` is (height, width, channels) of the upright picture."""

    def __init__(self, data: bytes, size: tuple[int, int], reading: Reading) -> None:
        self.data, self.reading, self.orientation = data, reading, jpeg_orientation(data)
        self.shape = (*upright_size(size, self.orientation), reading.number)

    @_within_memory
    def pixels(self, shrink: int = 1) -> Pixels:
        """Decode to [ceil(H / shrink), ceil(W / shrink), channels], writable.

        `shrink` is 1, 2, 4 or 8. Above 1 it leaves out the high frequencies of each 8 x 8 block, which is faster. Files
        that only Pillow can read, of which there are few, are decoded in full size.

        Raises UndecodableImage.
        """
        import simplejpeg

        height, width = upright_size(self.shape[:2], self.orientation)
        # simplejpeg shrinks only if it is given a minimum height and width
        minimum = {} if shrink == 1 else {"min_height": -(-height // shrink), "min_width": -(-width // shrink)}
        try:
            pixels = simplejpeg.decode_jpeg(self.data, "GRAY" if self.reading.channels == 1 else "RGB", **minimum)
        except ValueError as error:
            # Pillow would fill the missing part with gray. After other errors (an unusual color space or subsampling)
            # the image is complete: let Pillow try.
            _refuse_damage(str(error))
            self._check_cmyk()
            return decode_with_pillow(self.data, self.reading)
        if self.orientation == 1 and self.reading.dtype == "uint8" and self.reading.channels in (1, 3):
            return pixels  # as nearly all are
        return arranged(upright(pixels, self.orientation), self.reading)

    def _check_cmyk(self) -> None:
        """Let libjpeg complain about an image for print, whose colors Pillow converts without checking the data."""
        import simplejpeg

        try:
            if simplejpeg.decode_jpeg_header(self.data)[2] in ("CMYK", "YCCK"):
                simplejpeg.decode_jpeg(self.data, "CMYK")
        except ValueError as error:
            _refuse_damage(str(error))


@_within_memory
def decode(data: bytes, reading: Reading = RGB, page: int | None = None) -> Pixels:
    """Decode an image file to [H, W, channels] of the reading's type, writable.

    The picture is turned upright by its EXIF orientation. What is transparent shows the reading's background. Pixels
    keep their depth: of 8 bits, 16 bits and floating point alike.

    Args:
        data: the file.
        reading: channels and type of the pixels.
        page: of a file with several pages; None does with such files what the reading says.

    Raises:
        UndecodableImage: with the reason, for any broken, truncated or unknown file, and for other channels.
    """
    image = open_image(data, reading, page)
    return image.pixels() if isinstance(image, Jpeg) else image


@_within_memory
def open_image(data: bytes, reading: Reading = RGB, page: int | None = None) -> Jpeg | Pixels:
    """Decode as :func:`decode` does, except that of a JPEG only the header is read."""
    size = _jpeg_size(data, reading.max_pixels)
    if size is not None:
        return Jpeg(data, size, reading)
    if data[:4] in TIFF:
        from hardpatch.data.tiff import decode_tiff

        return decode_tiff(data, reading, page)
    if data[:6] == b"\x93NUMPY":
        from hardpatch.data.arrays import decode_array

        return decode_array(data, reading)
    if data[128:132] == b"DICM":
        from hardpatch.data.dicom import decode_dicom

        return decode_dicom(data, reading, page)
    if is_jpeg2000(data):
        return decode_jpeg2000(data, reading)
    return decode_with_pillow(data, reading, page)


@_within_memory
def image_size(data: bytes, reading: Reading = RGB) -> tuple[int, int]:
    """Read (height, width) of the upright picture from the header. Raises UndecodableImage as :func:`decode` does."""
    size = _jpeg_size(data, reading.max_pixels)
    if size is not None:
        return upright_size(size, jpeg_orientation(data))
    header = read_header(data, reading.max_pixels)
    return header.height, header.width


@_within_memory
def read_header(data: bytes, max_pixels: int = RGB.max_pixels) -> Header:
    """Read what a file says of itself. Raises UndecodableImage as :func:`decode` does."""
    _jpeg_size(data, max_pixels)
    if data[:4] in TIFF:
        from hardpatch.data.tiff import tiff_header

        return tiff_header(data, max_pixels)
    if data[:6] == b"\x93NUMPY":
        from hardpatch.data.arrays import array_header

        return array_header(data, max_pixels)
    if data[128:132] == b"DICM":
        from hardpatch.data.dicom import dicom_header

        return dicom_header(data, max_pixels)
    if is_jpeg2000(data):
        return jpeg2000_header(data, max_pixels)
    return pillow_header(data, max_pixels)


def _jpeg_size(data: bytes, max_pixels: int) -> tuple[int, int] | None:
    """Read (height, width) of a JPEG as it is stored; None if simplejpeg cannot read the file and Pillow is to try."""
    if not data:
        raise UndecodableImage("empty file")
    if data[:3] != b"\xff\xd8\xff":
        return None
    import simplejpeg

    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        _refuse_damage(str(error))
        return None
    check_pixels(height, width, max_pixels)
    return height, width


def _refuse_damage(complaint: str) -> None:
    """Raise UndecodableImage for complaints of libjpeg that mean damaged data."""
    if "remature end" in complaint:
        raise UndecodableImage(f"truncated JPEG ({complaint})")
    if any(word in complaint for word in DAMAGED):
        raise UndecodableImage(f"damaged JPEG ({complaint})")
