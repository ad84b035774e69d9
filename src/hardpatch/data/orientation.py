"""EXIF orientation: photographs are stored as the sensor saw them, and turned upright when they are shown."""

from typing import Any

from hardpatch.data.reading import Pixels

TAG = 274
"""Number of the orientation in EXIF and in TIFF."""
APP1, START_OF_SCAN = 0xE1, 0xDA
"""Markers of JPEG segments: the one that holds EXIF, and the one after which there are no more."""


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turn ``[H, W, C]`` as the orientation says, 1 to 8; other values are no orientation, as in Pillow."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def upright_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(height, width) after :func:`upright`."""
    return (size[1], size[0]) if orientation in (5, 6, 7, 8) else size


def jpeg_orientation(data: bytes) -> int:
    """Orientation of a JPEG, 1 if it has none. Only files with EXIF are parsed."""
    start = 2
    try:
        # from segment to segment: a search for "Exif" through all of a file would cost 2 % of its decoding
        while data[start] == 0xFF and (marker := data[start + 1]) != START_OF_SCAN:
            end = start + 2 + (data[start + 2] << 8 | data[start + 3])
            if marker == APP1 and data.startswith(b"Exif\0\0", start + 4):
                return _orientation(_exif(data[start + 4 : end]))
            start = start + 1 if marker == 0xFF else end  # 0xFF before a marker is a fill byte
    except IndexError:  # the file ends, which decoding says
        pass
    return 1


def file_orientation(file: Any) -> int:
    """Orientation of an open Pillow image, 1 if it has none, or if its decoder has turned it."""
    if file.format == "HEIF" or (file.format == "JXL" and not file.jpeg):  # a JPEG inside of a JPEG XL is not turned
        return 1
    try:
        return _orientation(file.getexif())
    except Exception:  # broken EXIF raises nearly anything, and says nothing about the pixels
        return 1


def _exif(block: bytes) -> Any:
    from PIL import Image

    exif = Image.Exif()
    try:
        exif.load(block)
    except Exception:  # as above
        return {}
    return exif


def _orientation(exif: Any) -> int:
    value = exif.get(TAG, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
