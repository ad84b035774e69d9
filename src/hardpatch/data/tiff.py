"""TIFF files: any number of channels, 1 to 32 bits, integers and floating point, by tifffile.

Pillow decodes what tifffile needs codecs for (LZW, JPEG, CCITT), where it does so faithfully: 8-bit pictures, and
16-bit and floating-point gray.
"""

import io
import logging
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from hardpatch.data.header import (
    Header,
    check_memory,
    check_pixels,
    chosen_page,
    finite,
    kept_type,
    over_background,
    stacked,
)
from hardpatch.data.orientation import TAG, file_orientation, upright, upright_size
from hardpatch.data.pillow import open_with_pillow, pixels_of
from hardpatch.data.reading import Pixels, Reading, UndecodableImage, arranged, in_strips

WHITE_IS_ZERO, RGB_COLORS, PALETTE, CMYK, YCBCR, CIELAB = 0, 2, 3, 5, 6, 8
"""Photometric interpretations."""
COLORED = (RGB_COLORS, PALETTE, CMYK, YCBCR, CIELAB)
"""Those that show colors."""
UNCONVERTED = {YCBCR: "YCbCr", CIELAB: "CIELAB", 9: "ICC L*a*b*", 10: "ITU L*a*b*", 32844: "LogL", 32845: "LogLuv"}
"""Those that are converted in 8 bits only, or not at all."""
PILLOW_CODECS = (1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946)
"""Compressions that every Pillow reads."""
PREMULTIPLIED, ALPHA = 1, (1, 2)
"""Extra samples that are transparency; 0 is a channel of any kind, as near infrared."""
COLORMAP, NODATA = 320, 42113
"""Numbers of the tags of a palette and of GDAL's value for missing pixels."""
SUBFILE_TYPE, SMALLER, MASK, SHORT = 254, 1, 4, 3
"""Tag of the kind of a page, its bits, and a type of tags."""
MAX_PAGES = 65_536
DEFLATE, LARGEST_FACTOR = (8, 32946), 1032
"""Numbers of a compression, and how many times smaller than its content it can be."""
HARMLESS = 2**26
"""Bytes that a strip or tile may take beyond what its page has room for."""

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what matters is raised


def decode_tiff(data: bytes, reading: Reading, page: int | None = None) -> Pixels:
    """Decode a TIFF as :func:`hardpatch.data.decode.decode` does."""
    with _opened(data) as file:
        pages = _pages(data, file)
        planes = _planes(file, pages)
        if planes > 1 and page is None and reading.pages == "channels":
            _check_size(file.pages[pages[0]], reading.max_pixels, planes)
            pixels = stacked(_page(data, file, pages, k, reading) for k in range(planes))
        else:
            pixels = _page(data, file, pages, chosen_page(planes, page, reading), reading)
        return arranged(finite(pixels, reading), reading)


def tiff_header(data: bytes, max_pixels: int) -> Header:
    """Read what the first page of a TIFF says."""
    with _opened(data) as file:
        pages = _pages(data, file)
        first = file.pages[pages[0]]
        _check_size(first, max_pixels)
        turned = _orientation(first)
        height, width = upright_size((first.imagelength, first.imagewidth), turned)
        alpha = _alpha(first)
        colored = int(first.photometric or 0) in COLORED and (_for_pillow(first) or _has_palette(first))
        samples = 3 if colored else first.samplesperpixel - alpha
        dtype = kept_type(np.dtype(first.dtype)) if first.dtype is not None and first.bitspersample > 1 else "uint8"
        return Header(height, width, samples, dtype, "TIFF", _planes(file, pages), turned, bool(alpha))


def _check_size(page: Any, max_pixels: int, planes: int = 1) -> None:
    """Refuse a page, or so many like it, of too many pixels or bytes."""
    check_pixels(page.imagelength, page.imagewidth, max_pixels)
    value = max(1, page.bitspersample // 8)
    check_memory(page.imagelength, page.imagewidth, planes * page.samplesperpixel * value, max_pixels)


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


def _pages(data: bytes, file: Any) -> list[int]:
    """Return which pages are no smaller copies of another and no masks of it; the first if there is no other.

    tifffile parses all tags of a page to say so, which takes longer than the pixels in a stack of a thousand pages.
    """
    layout = file.tiff
    kinds: list[int] = []
    offset = struct.unpack_from(layout.offsetformat, data, 8 if layout.is_bigtiff else 4)[0]
    try:
        while offset:
            if len(kinds) == MAX_PAGES:
                raise UndecodableImage(f"more than {MAX_PAGES:,} pages")
            tags = struct.unpack_from(layout.tagnoformat, data, offset)[0]
            start, end = offset + layout.tagnosize, offset + layout.tagnosize + tags * layout.tagsize
            kinds.append(_kind(data, range(start, end, layout.tagsize), layout))
            offset = struct.unpack_from(layout.offsetformat, data, end)[0]
    except struct.error:
        raise UndecodableImage(f"truncated TIFF (page {len(kinds) + 1} lies beyond its end)") from None
    return [k for k, kind in enumerate(kinds) if not kind & (SMALLER | MASK)] or [0]


def _kind(data: bytes, tags: range, layout: Any) -> int:
    """Return the bits of the tag NewSubfileType; tags are in ascending order."""
    for at in tags:
        tag, dtype = struct.unpack_from(layout.byteorder + "HH", data, at)
        if tag >= SUBFILE_TYPE:
            break
    else:
        return 0
    value = layout.byteorder + ("H" if dtype == SHORT else "I")
    return int(struct.unpack_from(value, data, at + 4 + layout.offsetsize)[0]) if tag == SUBFILE_TYPE else 0


def _planes(file: Any, pages: list[int]) -> int:
    """Count the pages; ImageJ, MetaMorph and tifffile store many planes behind one."""
    first = file.pages[pages[0]]
    if len(pages) > 1 or not (first.is_imagej or first.is_shaped or first.is_stk):
        return len(pages)
    described = int((file.imagej_metadata or {}).get("images", 1)) if file.is_imagej else 1
    return max(1, described, math.prod(file.series[0].shape) // math.prod(first.shape))


def _page(data: bytes, file: Any, pages: list[int], number: int, reading: Reading) -> Pixels:
    """Decode a page upright: [H, W, C], transparency composited."""
    index = pages[number] if number < len(pages) else pages[0]
    page = file.pages[index]
    _check_size(page, reading.max_pixels)
    if number < len(pages) and _for_pillow(page):
        return upright(_with_pillow(data, index, reading), _orientation(page))
    _check_unpacked(data, page)
    values = _decoded(page) if number < len(pages) else _plane(data, file, page, number)
    if values is None:
        return upright(_with_pillow(data, index, reading), _orientation(page))
    if page.axes.startswith("S"):  # planar
        values = np.moveaxis(values, 0, -1)
    if values.ndim not in (2, 3):
        raise UndecodableImage(f"TIFF with axes {page.axes}; expected height, width and channels")
    return upright(_interpreted(values[:, :, None] if values.ndim == 2 else values, page, reading), _orientation(page))


def _check_unpacked(data: bytes, page: Any) -> None:
    """Refuse a strip or tile that unpacks to far more than its page has room for; zlib would unpack all of it."""
    if int(page.compression) not in DEFLATE:
        return
    room = math.prod(page.chunks) * max(1, page.bitspersample // 8)
    most = room + HARMLESS
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
        if count * LARGEST_FACTOR > most and count > 0:
            unpacking = zlib.decompressobj()
            if len(unpacking.decompress(data[offset : offset + count], most)) == most:
                raise UndecodableImage(f"broken TIFF (a strip or tile for {room:,} bytes unpacks to {most:,} or more)")


def _decoded(page: Any) -> Pixels | None:
    """Return the samples of a page; None if Pillow is to decode them."""
    try:
        return page.asarray()
    except Exception as error:
        if "imagecodecs" not in str(error):
            raise
    if (page.samplesperpixel, page.bitspersample, int(page.sampleformat or 1)) in ((1, 16, 1), (1, 32, 3)):
        return None
    codec = getattr(page.compression, "name", page.compression)
    stored = f"with {codec} compression" if page.compression > 1 else "that fill no whole bytes"
    raise UndecodableImage(
        f"TIFF of {page.samplesperpixel} channels of {page.bitspersample} bits {stored}, which needs a further "
        "package: pip install 'hardpatch[tiff]'"
    ) from None


def _plane(data: bytes, file: Any, page: Any, number: int) -> Pixels:
    """Return a plane of a stack behind one page, whose planes follow each other."""
    start, count = file.series[0].dataoffset, math.prod(page.shape)
    dtype = np.dtype(file.byteorder + page.dtype.char)
    if start is None or start + (number + 1) * count * dtype.itemsize > len(data):
        raise UndecodableImage(f"plane {number + 1} of the stack is missing; the file is truncated")
    return np.frombuffer(data, dtype, count, start + number * count * dtype.itemsize).reshape(page.shape)


def _interpreted(pixels: Pixels, page: Any, reading: Reading) -> Pixels:
    """Return the colors of the samples [H, W, S] of a page."""
    photometric = int(page.photometric or 0)
    if photometric in UNCONVERTED and page.samplesperpixel == 3:
        raise UndecodableImage(
            f"TIFF in {UNCONVERTED[photometric]} of {page.bitspersample} bits; convert it to RGB or to 8 bits"
        )
    if _has_palette(page):
        return _of_palette(pixels[:, :, 0], page.tags[COLORMAP].value)
    most = (1 << page.bitspersample) - 1
    if photometric == WHITE_IS_ZERO and pixels.dtype.kind == "u":
        pixels = most - pixels
    if page.bitspersample < 8:
        pixels = in_strips(lambda strip: (strip.astype(np.uint16) * 255 // most).astype(np.uint8), pixels)
    pixels = pixels.astype(kept_type(pixels.dtype), copy=not pixels.flags.writeable)
    if NODATA in page.tags and page.bitspersample > 8:
        pixels = _without_nodata(pixels, str(page.tags[NODATA].value))
    if _alpha(page):
        premultiplied = int(page.extrasamples[-1]) == PREMULTIPLIED
        return over_background(pixels[:, :, :-1], pixels[:, :, -1:], reading, premultiplied=premultiplied)
    return pixels


def _without_nodata(pixels: Pixels, text: str) -> Pixels:
    """Replace GDAL's value for missing pixels by NaN, or in integers by the least other value."""
    try:
        missing = pixels == (np.float32(text.strip(" \0")) if pixels.dtype.kind == "f" else float(text.strip(" \0")))
    except ValueError:
        return pixels
    if missing.all() or not missing.any():
        return pixels
    return np.where(missing, np.float32(np.nan) if pixels.dtype.kind == "f" else pixels[~missing].min(), pixels)


def _has_palette(page: Any) -> bool:
    return int(page.photometric or 0) == PALETTE and page.samplesperpixel == 1 and COLORMAP in page.tags


def _of_palette(indices: Pixels, colormap: Any) -> Pixels:
    """Return the colors of a palette: of 16 bits, or of 8 where the indices have 8. Some programs write 8-bit ones."""
    colors = np.asarray(colormap, np.uint16).reshape(3, -1).T
    if indices.dtype == np.uint8:
        colors = (colors >> 8 if colors.max() > 255 else colors).astype(np.uint8)
    return colors[indices]


def _for_pillow(page: Any) -> bool:
    """Return True for 8-bit pictures with a meaning for each sample, which Pillow converts and decompresses."""
    if page.bitspersample not in (1, 2, 4, 8) or int(page.sampleformat or 1) != 1 or _raw(page):
        return False
    if _alpha(page) and (int(page.planarconfig) == 2 or page.samplesperpixel == 2):
        return False
    return int(page.compression) in PILLOW_CODECS and int(page.photometric or 0) in (0, 1, *COLORED)


def _raw(page: Any) -> bool:
    """Return True if the samples of a pixel are channels of any kind, more than its colors and transparency."""
    colors = {RGB_COLORS: 3, CMYK: 4, YCBCR: 3, CIELAB: 3}.get(int(page.photometric or 0), 1)
    return bool(page.samplesperpixel - _alpha(page) != colors)


def _alpha(page: Any) -> int:
    """1 if the last sample of a pixel is its transparency, else 0."""
    extra = [int(kind) for kind in page.extrasamples or ()]
    colors = 3 if int(page.photometric or 0) == RGB_COLORS else 1
    alpha = [kind in ALPHA for kind in extra]
    return int(sum(alpha) == 1 and alpha[-1] and page.samplesperpixel == colors + len(extra))


def _orientation(page: Any) -> int:
    tag = page.tags.get(TAG)
    value = 1 if tag is None else tag.value
    return int(value) if value in range(1, 9) else 1


def _with_pillow(data: bytes, index: int, reading: Reading) -> Pixels:
    """Decode a page with Pillow as it is stored."""
    with open_with_pillow(data, reading.max_pixels) as file:
        if index:
            file.seek(index)
        turned = file_orientation(file)
        if file.mode == "P":
            pixels = _of_palette(np.array(file), file.tag_v2[COLORMAP])  # type: ignore[attr-defined]
        else:
            pixels = pixels_of(data, file, reading)
        # newer versions of Pillow turn a TIFF upright and drop the tag
        done = TAG not in file.tag_v2  # type: ignore[attr-defined]
    return upright(pixels, {6: 8, 8: 6}.get(turned, turned)) if done else pixels
