"""Copies of images: as they are, resized, or encoded anew."""

import io
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hardpatch.choices import EncodingName
from hardpatch.data.crop import resize, shrink_factor
from hardpatch.data.decode import Jpeg, named_errors, open_image, read_header
from hardpatch.data.formats import ARRAYS, EXTRAS, FORMATS
from hardpatch.data.reading import RGB, Pixels, Reading
from hardpatch.data.sources import Source

QUALITY = 95
"""Quality of JPEG and WebP."""
MARGIN = 2.0
"""A JPEG is decoded at the smallest scale at which its shorter side is still this many times the new one."""
ENDINGS = {**{name: endings[0] for name, endings in FORMATS.items()}, **{name: EXTRAS[name][0][0] for name in EXTRAS}}
"""Ending of a file by the format in its header."""
WEBP_SIDE = 16_383
"""Longest side of a WebP."""


class Copy(NamedTuple):
    """The file of an image."""

    data: bytes
    ending: str
    """with its point"""


def smaller_copy(source: Source, i: int, side: int | None, encoding: EncodingName = "keep") -> Copy:
    """Return a copy of an image, upright, with a shorter side of at most `side` pixels.

    An image that is small enough keeps its file under `keep`, unless it is stored turned and a `side` is given. Others
    of 8-bit gray and RGB become files of the encoding, JPEG for `keep`; what that cannot hold, as 16 bits in a JPEG,
    becomes a TIFF, without loss. Transparent parts of what is encoded become white.

    Args:
        source: the images.
        i: number of the image.
        side: None leaves the size as it is.
        encoding: of the copy.

    Raises:
        UndecodableImage: also for an image whose file would be kept.
    """
    data = source.encoded(i)
    if data is None:
        return encode(shrink_image(source.image(i, RGB), side), encoding)
    with named_errors(source.name, i):
        header = read_header(data)
        whole = side is None and encoding == "keep"
        image = open_image(data, Reading(header.channels, header.dtype, pages="first" if whole else "error"))
        pixels = shrink_image(image, side)
        if encoding == "keep" and (whole or (pixels.shape == image.shape and header.orientation == 1)):
            return Copy(data, ENDINGS.get(header.format, ARRAYS[0]))
        return encode(pixels, encoding)


def shrink_image(image: Pixels | Jpeg, side: int | None) -> Pixels:
    """Resize to [H, W, C] of the same type with a shorter side of at most `side` pixels, keeping the aspect ratio."""
    height, width = image.shape[:2]
    zoom = 1.0 if side is None else side / min(height, width)
    size = (max(1, round(height * zoom)), max(1, round(width * zoom))) if zoom < 1 else (height, width)
    if isinstance(image, Jpeg):
        image = image.pixels(shrink_factor(height, width, size, MARGIN) if zoom < 1 else 1)
    return resize(image, size)


def encode(pixels: Pixels, encoding: EncodingName = "keep") -> Copy:
    """Encode pixels `[H, W, C]`: as the encoding if that can hold them, else as a TIFF; `keep` is JPEG."""
    plain = pixels.dtype == np.uint8 and pixels.shape[2] in (1, 3)
    if plain and encoding in ("keep", "jpeg"):
        return Copy(encode_jpeg(pixels), ".jpg")
    if encoding == "png" and (plain or (pixels.dtype == np.uint16 and pixels.shape[2] == 1)):
        return Copy(_by_pillow(pixels, "PNG"), ".png")
    if encoding == "webp" and plain and pixels.shape[2] == 3 and max(pixels.shape) <= WEBP_SIDE:
        return Copy(_by_pillow(pixels, "WEBP", quality=QUALITY), ".webp")
    return Copy(_encode_tiff(pixels), ".tif")


def encode_jpeg(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode as a JPEG of quality 95 with chroma subsampling 4:2:0."""
    import simplejpeg

    gray = pixels.shape[2] == 1
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), QUALITY, "GRAY" if gray else "RGB", "Gray" if gray else "420"
    )


def _by_pillow(pixels: Pixels, kind: str, **options: int) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels if pixels.shape[2] > 1 else pixels[:, :, 0]).save(file, kind, **options)
    return file.getvalue()


def _encode_tiff(pixels: Pixels) -> bytes:
    from tifffile import imwrite

    file = io.BytesIO()
    kind = "rgb" if pixels.shape[2] == 3 else "minisblack"
    planes = pixels if pixels.shape[2] > 1 else pixels[:, :, 0]
    imwrite(file, planes, photometric=kind, planarconfig="contig" if planes.ndim == 3 else None, compression="zlib")
    return file.getvalue()
