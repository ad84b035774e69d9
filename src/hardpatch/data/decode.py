"""Decoding of image files: the whole picture, upright and without loss of depth, or an exception; never half a picture."""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hardpatch.data.formats import EXTRAS, FORMATS, has_extra, pillow_formats
from hardpatch.data.orientation import file_orientation, jpeg_orientation, upright, upright_size
from hardpatch.data.reading import RGB, Pixels, Reading, UndecodableImage, arranged

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage
    from PIL.ImageFile import ImageFile

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of a TIFF and of a BigTIFF, in both byte orders."""
DAMAGED = ("Corrupt JPEG", "remature end", "Invalid", "Bogus", "Unexpected")
"""Words of libjpeg's complaints about damaged data, as opposed to files that it does not support."""


class Header(NamedTuple):
    """What the header of a file says, before its pixels are decoded."""

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


@contextmanager
def named_errors(name: Callable[[int], str], i: int) -> Iterator[None]:
    """Put the name of image `i` in front of the reason of an UndecodableImage that the block raises."""
    try:
        yield
    except UndecodableImage as error:
        raise UndecodableImage(f"{name(i)}: {error}") from None


class Jpeg:
    """A JPEG of which only the header has been read. `shape` is (height, width, channels) of the upright picture."""

    def __init__(self, data: bytes, size: tuple[int, int], reading: Reading) -> None:
        self.data, self.reading, self.orientation = data, reading, jpeg_orientation(data)
        self.shape = (*upright_size(size, self.orientation), reading.number)

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
            return _decode_with_pillow(self.data, self.reading)
        return arranged(upright(pixels, self.orientation), self.reading)


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
    return _decode_with_pillow(data, reading, page)


def image_size(data: bytes, reading: Reading = RGB) -> tuple[int, int]:
    """Read (height, width) of the upright picture from the header. Raises UndecodableImage as :func:`decode` does."""
    size = _jpeg_size(data, reading.max_pixels)
    if size is not None:
        return upright_size(size, jpeg_orientation(data))
    header = read_header(data, reading.max_pixels)
    return header.height, header.width


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
    with open_with_pillow(data, max_pixels) as file:
        deep = _deep_png(data) or _deep_pnm(data)
        gray = deep in (1, 2) if deep else file.mode in ("1", "L", "LA", "F") or file.mode.startswith("I")
        orientation = 1 if file.format == "HEIF" else file_orientation(file)
        height, width = upright_size((file.height, file.width), orientation)
        dtype = "uint16" if deep or file.mode.startswith("I;16") else _dtype_of(file.mode)
        transparent = bool(file.has_transparency_data)
        pages = getattr(file, "n_frames", 1)
        return Header(
            height, width, 1 if gray else 3, dtype, file.format or "", pages, orientation, transparent
        )


def _dtype_of(mode: str) -> str:
    return {"F": "float32", "I": "uint32"}.get(mode, "uint8")


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


def check_pixels(height: int, width: int, max_pixels: int) -> None:
    """Refuse an image of more pixels."""
    if height * width > max_pixels:
        raise UndecodableImage(
            f"{height} x {width} pixels; expected at most {max_pixels:,}, raise data.max_pixels to read it"
        )


def _decode_with_pillow(data: bytes, reading: Reading, page: int | None = None) -> Pixels:
    with open_with_pillow(data, reading.max_pixels) as file:
        frames = getattr(file, "n_frames", 1)
        if frames > 1 and file.format != "MPO":
            if page is None and reading.pages == "channels":
                stacked = []
                for frame in range(frames):
                    file.seek(frame)
                    stacked.append(pixels_of(data, file, reading)[:, :, :1])
                return arranged(np.concatenate(stacked, axis=2), reading)
            file.seek(chosen_page(frames, page, reading))
        turned = 1 if file.format == "HEIF" else file_orientation(file)
        return arranged(upright(pixels_of(data, file, reading), turned), reading)


def chosen_page(pages: int, page: int | None, reading: Reading) -> int:
    """Return the page to decode. Raises UndecodableImage where the reading does not say which."""
    if page is not None:
        return page
    if pages > 1 and reading.pages == "error":
        raise UndecodableImage(
            f"{pages} pages or frames; set data.pages to first, to all (each is an image) or to channels"
        )
    return 0


def pixels_of(data: bytes, file: "PillowImage", reading: Reading) -> Pixels:
    """Return the pixels of an open image as they are stored, [H, W, C]; transparency is composited."""
    if _deep_png(data):
        return _decode_deep_png(data, reading)
    if _deep_pnm(data):
        return _decode_deep_pnm(data)
    mode = file.mode
    if mode.startswith("I;16"):
        return np.array(file).astype(np.uint16)[:, :, None]
    if mode == "I":
        return np.array(file).astype(np.uint32)[:, :, None]
    if mode == "F":
        return np.array(file)[:, :, None]
    gray = mode in ("1", "L", "LA")
    if file.has_transparency_data:
        colors = np.array(file.convert("LA" if gray else "RGBA"))
        return over_background(colors[:, :, :-1], colors[:, :, -1:], reading)
    # np.array, not np.asarray: torch warns about Pillow's read-only memory
    pixels = np.array(file.convert("L" if gray else "RGB"))
    return pixels[:, :, None] if gray else pixels


def over_background(colors: Pixels, alpha: Pixels, reading: Reading) -> Pixels:
    """Composite ``[H, W, 1 or 3]`` with its alpha ``[H, W, 1]``, both of an unsigned type, on the background."""
    most = int(np.iinfo(colors.dtype).max)
    red, green, blue = reading.background
    background = np.array([red, green, blue] if colors.shape[2] == 3 else [0.299 * red + 0.587 * green + 0.114 * blue])
    behind = (background * (most / 255)).round().astype(np.uint32)
    opacity = alpha.astype(np.uint32)
    blended = (colors.astype(np.uint32) * opacity + behind * (most - opacity) + most // 2) // most
    return blended.astype(colors.dtype)


@contextmanager
def open_with_pillow(data: bytes, max_pixels: int = RGB.max_pixels) -> "Iterator[ImageFile]":
    """Open a file of one of our formats with Pillow. Raises UndecodableImage for whatever is wrong with it."""
    from PIL import Image, UnidentifiedImageError

    try:
        # Pillow warns about size, odd metadata and alpha in palettes; here an image is either decoded or an error.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=pillow_formats()) as file:
                check_pixels(file.height, file.width, max_pixels)
                yield file
    except UndecodableImage:
        raise
    except UnidentifiedImageError:
        raise UndecodableImage(_unknown(data)) from None
    except Image.DecompressionBombError:
        raise UndecodableImage(f"more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels") from None
    except Exception as error:  # Pillow's plugins raise nearly anything on broken bytes
        reason = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise UndecodableImage(" ".join(reason.split())) from None


def _unknown(data: bytes) -> str:
    """Why Pillow does not know a file."""
    for name, (_, _, extra) in EXTRAS.items():
        signature = {"HEIF": data[4:8] == b"ftyp" and data[8:11] in (b"hei", b"hev", b"mif"), "JXL": _is_jxl(data)}
        if signature.get(name) and not has_extra(name):
            return f"a {name} file, which needs a further package: pip install 'hardpatch[{extra}]'"
    return f"not a file of a known format ({', '.join(FORMATS)})"


def _is_jxl(data: bytes) -> bool:
    return data[:2] == b"\xff\x0a" or data[4:8] == b"JXL "


def _deep_png(data: bytes) -> int:
    """Samples per pixel of a PNG of 16 bits, 0 for any other file. Pillow has 8 bits for all of these but gray."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[24:25] != b"\x10":
        return 0
    return {0: 1, 2: 3, 4: 2, 6: 4}.get(data[25], 0)


def _decode_deep_png(data: bytes, reading: Reading) -> Pixels:
    import torch
    from torchvision.io import ImageReadMode, decode_png  # type: ignore[import-untyped]

    planes = decode_png(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.UNCHANGED).numpy()
    pixels = planes.transpose(1, 2, 0)
    if pixels.shape[2] in (2, 4):
        return over_background(pixels[:, :, :-1], pixels[:, :, -1:], reading)
    return pixels


def _deep_pnm(data: bytes) -> int:
    """Samples per pixel of a binary PGM or PPM of more than 8 bits, 0 for any other file; Pillow rescales these."""
    if data[:2] not in (b"P5", b"P6"):
        return 0
    fields = _pnm_fields(data)
    return (1 if data[:2] == b"P5" else 3) if fields and fields[2] > 255 else 0


def _pnm_fields(data: bytes) -> tuple[int, int, int, int] | None:
    """Width, height, largest value and start of the pixels."""
    import re

    separator = rb"(?:\s|#[^\n]*\n)+"
    match = re.match(rb"P[56]" + separator + rb"(\d+)" + separator + rb"(\d+)" + separator + rb"(\d+)\s", data[:4096])
    if match is None:
        return None
    width, height, most = (int(number) for number in match.groups())
    return width, height, most, match.end()


def _decode_deep_pnm(data: bytes) -> Pixels:
    fields = _pnm_fields(data)
    assert fields is not None
    width, height, _, start = fields
    samples = _deep_pnm(data)
    if len(data) - start < 2 * width * height * samples:
        raise UndecodableImage("truncated PNM")
    values = np.frombuffer(data, ">u2", width * height * samples, start)
    return values.astype(np.uint16).reshape(height, width, samples)
