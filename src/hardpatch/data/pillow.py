"""Files that Pillow opens, those of more than 8 bits in their full depth."""

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from hardpatch.data.deep_png import decode_deep_png, deep_png_samples
from hardpatch.data.formats import EXTRAS, has_extra, pillow_formats
from hardpatch.data.header import Header, check_memory, check_pixels, chosen_page, over_background, stacked
from hardpatch.data.jpegxl import is_jpegxl, jpegxl_bits
from hardpatch.data.orientation import file_orientation, upright, upright_size
from hardpatch.data.reading import RGB, STRIP, Pixels, Reading, UndecodableImage, arranged

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage
    from PIL.ImageFile import ImageFile

KNOWN = "JPEG, PNG, WebP, TIFF, BMP, GIF, PNM, JPEG 2000 or AVIF"
COPIES = {"WEBP": 20, "JPEG2000": 16}
"""Bytes that decoding takes for each pixel in formats of which the decoder keeps several frames; 4 in others."""


def decode_with_pillow(data: bytes, reading: Reading, page: int | None = None) -> Pixels:
    """Decode as :func:`hardpatch.data.decode.decode` does."""
    with open_with_pillow(data, reading.max_pixels) as file:
        frames = _frame_count(file)
        if frames > 1:
            if page is None and reading.pages == "channels":
                check_memory(file.height, file.width, frames, reading.max_pixels)
                return arranged(stacked(_frames(data, file, reading)), reading)
            file.seek(chosen_page(frames, page, reading))
        return arranged(upright(pixels_of(data, file, reading), file_orientation(file)), reading)


def _frame_count(file: "PillowImage") -> int:
    # further pictures in the JPEG of a telephone (MPO) are previews of the first
    return 1 if file.format == "MPO" else getattr(file, "n_frames", 1)


def _frames(data: bytes, file: "ImageFile", reading: Reading) -> Iterator[Pixels]:
    for frame in range(file.n_frames):  # type: ignore[attr-defined]
        file.seek(frame)
        yield pixels_of(data, file, reading)


def pillow_header(data: bytes, max_pixels: int) -> Header:
    """Read the header of a file that Pillow opens."""
    with open_with_pillow(data, max_pixels) as file:
        deep = deep_png_samples(data) or _deep_pnm(data)
        gray = deep in (1, 2) if deep else file.mode in ("1", "L", "LA", "F") or file.mode.startswith("I")
        orientation = file_orientation(file)
        height, width = upright_size((file.height, file.width), orientation)
        dtype = "uint16" if deep or file.mode.startswith("I;16") else _dtype_of(file.mode)
        transparent = bool(file.has_transparency_data)
        pages, lost = _frame_count(file), max(0, _bits(data, file.format) - 8) if dtype == "uint8" else 0
        return Header(height, width, 1 if gray else 3, dtype, file.format or "", pages, orientation, transparent, lost)


def _bits(data: bytes, format: str | None) -> int:
    """Return the bits of a sample in formats of which plugins may read fewer."""
    if format in ("HEIF", "AVIF"):  # in the property "pixi": version and flags, number of channels, bits of each
        at = data.find(b"pixi")
        return data[at + 9] if 0 <= at < len(data) - 9 else 8
    return jpegxl_bits(data, len(data) << 32) if format == "JXL" else 8


def _dtype_of(mode: str) -> str:
    return {"F": "float32", "I": "uint32"}.get(mode, "uint8")


def pixels_of(data: bytes, file: "PillowImage", reading: Reading) -> Pixels:
    """Return the pixels of an open image as they are stored, [H, W, C]; transparency is composited."""
    if deep_png_samples(data):
        if file.tell():
            raise UndecodableImage("an animated PNG of 16 bits, of which only the first frame can be read")
        return decode_deep_png(data, file.info.get("transparency"), reading)
    if _deep_pnm(data):
        return _decode_deep_pnm(data)
    mode = file.mode
    if mode.startswith("I;16"):
        return _strips(file, lambda strip: np.array(strip).astype(np.uint16)[:, :, None])
    if mode == "I":
        return _strips(file, lambda strip: np.array(strip).astype(np.uint32)[:, :, None])
    if mode == "F":
        return _strips(file, lambda strip: np.array(strip)[:, :, None])
    gray = mode in ("1", "L", "LA")
    if file.has_transparency_data:
        if file.format == "PNG" and mode == "L" and data[24] < 8:  # Pillow scales the pixels, but not this value
            file.info["transparency"] *= 255 // ((1 << data[24]) - 1)

        def composited(strip: "PillowImage") -> Pixels:
            colors = np.array(strip.convert("LA" if gray else "RGBA"))
            return over_background(colors[:, :, :-1], colors[:, :, -1:], reading)

        return _strips(file, composited)

    def opaque(strip: "PillowImage") -> Pixels:
        # np.array, not np.asarray: torch warns about Pillow's read-only memory
        pixels = np.array(strip.convert("L" if gray else "RGB"))
        return pixels[:, :, None] if gray else pixels

    return _strips(file, opaque)


def _strips(file: "PillowImage", convert: "Callable[[PillowImage], Pixels]") -> Pixels:
    """Convert an image a few rows at a time: of the whole Pillow would make several copies on the way."""
    rows = max(1, STRIP // file.width)
    if file.height <= rows:
        return convert(file)
    parts = ((top, min(top + rows, file.height)) for top in range(0, file.height, rows))
    result: Pixels | None = None
    for top, bottom in parts:
        pixels = convert(file.crop((0, top, file.width, bottom)))
        if result is None:
            result = np.empty((file.height, *pixels.shape[1:]), pixels.dtype)
        result[top:bottom] = pixels
    assert result is not None
    return result


@contextmanager
def open_with_pillow(data: bytes, max_pixels: int = RGB.max_pixels) -> "Iterator[ImageFile]":
    """Open a file of one of our formats with Pillow. Raises UndecodableImage for whatever is wrong with it."""
    from PIL import Image, UnidentifiedImageError

    if is_jpegxl(data) and has_extra("JXL"):
        jpegxl_bits(data, max_pixels)  # refuses
    try:
        # Pillow warns about size, odd metadata and alpha in palettes; here an image is either decoded or an error.
        if max_pixels > 2 * (Image.MAX_IMAGE_PIXELS or max_pixels):
            Image.MAX_IMAGE_PIXELS = max_pixels  # else it refuses what the user allows
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=pillow_formats()) as file:
                check_pixels(file.height, file.width, max_pixels)
                check_memory(file.height, file.width, COPIES.get(file.format or "", 4), max_pixels)
                yield file
    except UndecodableImage:
        raise
    except UnidentifiedImageError:
        raise UndecodableImage(_unknown(data)) from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise UndecodableImage(f"more than {most:,} pixels; raise data.max_pixels to read it") from None
    except Exception as error:  # Pillow's plugins raise nearly anything on broken bytes
        if is_jpegxl(data):
            raise UndecodableImage("broken or truncated JPEG XL file") from None  # the plugin advises to build libjxl
        if "MAX_TEXT" in str(error):
            raise UndecodableImage("text in a PNG that unpacks to more than 1 MiB; save the file without it") from None
        reason = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise UndecodableImage(" ".join(reason.split())) from None


def _unknown(data: bytes) -> str:
    """Why Pillow does not know a file."""
    for name, (_, _, extra) in EXTRAS.items():
        heif = data[4:8] == b"ftyp" and data[8:11] in (b"hei", b"hev", b"mif")
        if {"HEIF": heif, "JXL": is_jpegxl(data)}.get(name):
            needed = f"a {name} file, which needs a further package: pip install 'hardpatch[{extra}]'"
            return f"broken or truncated {name} file" if has_extra(name) else needed
    return f"not a {KNOWN} file"


def _deep_pnm(data: bytes) -> int:
    """Return the samples per pixel of a PGM or PPM of more than 8 bits, which Pillow rescales; else 0."""
    samples = {b"P2": 1, b"P5": 1, b"P3": 3, b"P6": 3}.get(data[:2], 0)
    fields = _pnm_fields(data) if samples else None
    return samples if fields and fields[2] > 255 else 0


def _pnm_fields(data: bytes) -> tuple[int, int, int, int] | None:
    """Width, height, largest value and start of the pixels."""
    separator = rb"(?:\s|#[^\n]*\n)+"
    match = re.match(rb"P\d" + separator + rb"(\d+)" + separator + rb"(\d+)" + separator + rb"(\d+)\s", data[:4096])
    if match is None:
        return None
    width, height, most = (int(number) for number in match.groups())
    return width, height, most, match.end()


def _decode_deep_pnm(data: bytes) -> Pixels:
    fields = _pnm_fields(data)
    assert fields is not None
    width, height, _, start = fields
    samples = _deep_pnm(data)
    count = width * height * samples
    if data[:2] in (b"P2", b"P3"):  # in decimal
        values = np.array(re.sub(rb"#[^\n]*", b"", data[start:]).split()[:count], dtype=np.uint16)
    else:
        values = np.frombuffer(data, ">u2", min(count, (len(data) - start) // 2), start).astype(np.uint16)
    if len(values) < count:
        raise UndecodableImage("truncated PNM")
    return values.reshape(height, width, samples)
