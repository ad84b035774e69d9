"""TIFF files: any number of channels, 1 to 32 bits, integers and floating point, by tifffile.

Pillow decodes what tifffile needs codecs for (LZW, JPEG, CCITT), where it does so faithfully: 8-bit pictures, and
16-bit and floating-point gray.
"""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from hardpatch.data.header import Header, check_pixels, chosen_page, finite, kept_type, over_background, stacked
from hardpatch.data.orientation import TAG, file_orientation, upright, upright_size
from hardpatch.data.pillow import open_with_pillow, pixels_of
from hardpatch.data.reading import Pixels, Reading, UndecodableImage, arranged

RGB_COLORS, CMYK = 2, 5
"""Photometric interpretations."""
COLORED = (2, 3, 5, 6, 8)
"""Those that show colors: RGB, palette, CMYK, YCbCr, CIELAB."""
ALPHA = (1, 2)
"""Extra samples that are transparency; 0 is a channel of any kind, as near infrared."""
MAX_PAGES = 65_536

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what matters is raised


def decode_tiff(data: bytes, reading: Reading, page: int | None = None) -> Pixels:
    """Decode a TIFF as :func:`hardpatch.data.decode.decode` does."""
    with _opened(data) as file:
        planes = _planes(file)
        if planes > 1 and page is None and reading.pages == "channels":
            pixels = stacked(_page(data, file, k, reading) for k in range(planes))
        else:
            pixels = _page(data, file, chosen_page(planes, page, reading), reading)
        return arranged(finite(upright(pixels, _orientation(file.pages[0])), reading), reading)


def tiff_header(data: bytes, max_pixels: int) -> Header:
    """Read what the first page of a TIFF says."""
    with _opened(data) as file:
        first = file.pages[0]
        check_pixels(first.imagelength, first.imagewidth, max_pixels)
        turned = _orientation(first)
        height, width = upright_size((first.imagelength, first.imagewidth), turned)
        alpha = _alpha(first)
        colored = int(first.photometric or 0) in COLORED and _for_pillow(first)
        samples = 3 if colored else first.samplesperpixel - alpha
        dtype = kept_type(np.dtype(first.dtype)) if first.dtype is not None and first.bitspersample > 1 else "uint8"
        return Header(height, width, samples, dtype, "TIFF", _planes(file), turned, bool(alpha))


@contextmanager
def _opened(data: bytes) -> Iterator[Any]:
    from tifffile import TiffFile

    try:
        with TiffFile(io.BytesIO(data)) as file:
            yield file
    except UndecodableImage:
        raise
    except Exception as error:  # tifffile raises nearly anything on broken bytes
        raise UndecodableImage(f"broken TIFF ({' '.join(str(error).split()) or type(error).__name__})") from None


def _planes(file: Any) -> int:
    """Count the pages, those that are smaller copies of another and masks of it left out."""
    count = 0
    for k in range(len(file.pages)):
        page = file.pages[k]
        count += not (page.is_reduced or page.is_mask)
        if k > MAX_PAGES:
            raise UndecodableImage(f"more than {MAX_PAGES:,} pages")
    described = (file.imagej_metadata or {}).get("images", 1) if file.is_imagej else 1
    return max(1, count, int(described))


def _page(data: bytes, file: Any, number: int, reading: Reading) -> Pixels:
    """Decode a page as it is stored: [H, W, C], transparency composited."""
    if number >= len(file.pages):  # ImageJ stores a large stack behind one page
        stack = file.series[0].asarray().reshape(-1, *file.pages[0].shape)
        plane = stack[number]
        return plane[:, :, None] if plane.ndim == 2 else plane
    page = file.pages[number]
    check_pixels(page.imagelength, page.imagewidth, reading.max_pixels)
    if _for_pillow(page):
        return _with_pillow(data, number, reading)
    try:
        values = page.asarray()
    except (ValueError, ImportError) as error:
        if "imagecodecs" not in str(error):
            raise
        if (page.samplesperpixel, page.bitspersample, int(page.sampleformat or 1)) in ((1, 16, 1), (1, 32, 3)):
            return _with_pillow(data, number, reading)
        codec = getattr(page.compression, "name", page.compression)
        raise UndecodableImage(
            f"TIFF of {page.samplesperpixel} channels of {page.bitspersample} bits with {codec} compression, which "
            "needs a further package: pip install 'hardpatch[tiff]'"
        ) from None
    if page.axes.startswith("S"):  # planar
        values = np.moveaxis(values, 0, -1)
    if values.ndim not in (2, 3):
        raise UndecodableImage(f"TIFF with axes {page.axes}; expected height, width and channels")
    pixels = values[:, :, None] if values.ndim == 2 else values
    if int(page.photometric or 0) == 0 and pixels.dtype.kind == "u":  # white is zero
        pixels = np.iinfo(pixels.dtype).max - pixels
    alpha = _alpha(page)
    pixels = pixels.astype(kept_type(pixels.dtype))
    if alpha and pixels.dtype.kind == "u":
        return over_background(pixels[:, :, :-1], pixels[:, :, -1:], reading)
    return pixels[:, :, :-1] if alpha else pixels


def _for_pillow(page: Any) -> bool:
    """Return True for 8-bit pictures with a meaning for each sample, which Pillow converts and decompresses."""
    return not _raw(page) and page.bitspersample <= 8 and int(page.sampleformat or 1) == 1


def _raw(page: Any) -> bool:
    """Return True if the samples of a pixel are channels of any kind, more than its colors and transparency."""
    colors = {RGB_COLORS: 3, CMYK: 4, 6: 3, 8: 3}.get(int(page.photometric or 0), 1)
    return bool(page.samplesperpixel - _alpha(page) != colors)


def _alpha(page: Any) -> int:
    """1 if the last sample of a pixel is its transparency, else 0."""
    extra = [int(kind) for kind in page.extrasamples or ()]
    colors = 3 if int(page.photometric or 0) == RGB_COLORS else 1
    return int(len(extra) == 1 and extra[0] in ALPHA and page.samplesperpixel == colors + 1)


def _orientation(page: Any) -> int:
    tag = page.tags.get(TAG)
    value = 1 if tag is None else tag.value
    return int(value) if value in range(1, 9) else 1


def _with_pillow(data: bytes, number: int, reading: Reading) -> Pixels:
    """Decode a page with Pillow as it is stored."""
    with open_with_pillow(data, reading.max_pixels) as file:
        if number:
            file.seek(number)
        turned = file_orientation(file)
        pixels = pixels_of(data, file, reading)
        # newer versions of Pillow turn a TIFF upright and drop the tag
        done = TAG not in file.tag_v2  # type: ignore[attr-defined]
    return upright(pixels, {6: 8, 8: 6}.get(turned, turned)) if done else pixels
