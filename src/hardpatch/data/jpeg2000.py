"""JPEG 2000 of more than 8 bits or of bands, of which Pillow makes other values, or pictures with transparency."""

from typing import NamedTuple

import numpy as np

from hardpatch.data.header import Header, check_memory, check_pixels, kept_type, over_background
from hardpatch.data.pillow import decode_with_pillow, open_with_pillow, pillow_header
from hardpatch.data.reading import Pixels, Reading, UndecodableImage, arranged

CONTAINER, CODESTREAM = b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"
"""First bytes of the two kinds of files; a container has the codestream in it."""
END = b"\xff\xd9"
"""Last bytes of a codestream, which has them nowhere else; OpenJPEG does not miss them, nor tiles in front of them."""


class _Layout(NamedTuple):
    """Samples of a file."""

    height: int
    width: int
    components: int
    bits: int
    signed: bool
    alpha: bool
    """the last component is transparency, as the container says"""

    @property
    def ordinary(self) -> bool:
        """True for 8-bit pictures in gray or color."""
        return self.bits <= 8 and not self.signed and self.components - self.alpha in (1, 3)

    @property
    def dtype(self) -> str:
        bits = 8 if self.bits <= 8 else 16 if self.bits <= 16 else 32
        return kept_type(np.dtype(f"{'' if self.signed else 'u'}int{bits}"))


def is_jpeg2000(data: bytes) -> bool:
    """Return True for the first bytes of a JPEG 2000."""
    return data.startswith((CONTAINER, CODESTREAM))


def decode_jpeg2000(data: bytes, reading: Reading) -> Pixels:
    """Decode as :func:`hardpatch.data.decode.decode` does."""
    layout = _layout(data)
    if data.find(END, data.find(CODESTREAM)) < 0:
        raise UndecodableImage("truncated JPEG 2000")
    if layout is None or layout.ordinary:
        return decode_with_pillow(data, reading)
    check_pixels(layout.height, layout.width, reading.max_pixels)
    bytes_per_pixel = layout.components * np.dtype(layout.dtype).itemsize
    check_memory(layout.height, layout.width, bytes_per_pixel, reading.max_pixels)
    if layout.components == 1 and 8 < layout.bits <= 16:
        with open_with_pillow(data, reading.max_pixels) as file:
            values = np.array(file).astype(np.int32) >> (16 - layout.bits)  # Pillow fills 16 bits, from 0 on
        pixels = values[:, :, None] - ((1 << (layout.bits - 1)) if layout.signed else 0)
    elif layout.components in (2, 4) and layout.bits <= 8 and not layout.signed:
        with open_with_pillow(data, reading.max_pixels) as file:
            pixels = np.array(file)
    else:
        pixels = _with_imagecodecs(data, layout)
    pixels = pixels.astype(layout.dtype)
    if layout.alpha:
        pixels = over_background(pixels[:, :, :-1], pixels[:, :, -1:], reading)
    return arranged(pixels, reading)


def jpeg2000_header(data: bytes, max_pixels: int) -> Header:
    """Read the header of a JPEG 2000."""
    layout = _layout(data)
    if layout is None or layout.ordinary:
        return pillow_header(data, max_pixels)
    check_pixels(layout.height, layout.width, max_pixels)
    channels = layout.components - layout.alpha
    return Header(layout.height, layout.width, channels, layout.dtype, "JPEG2000", transparent=layout.alpha)


def _with_imagecodecs(data: bytes, layout: _Layout) -> Pixels:
    try:
        import imagecodecs
    except ImportError:
        raise UndecodableImage(
            f"JPEG 2000 of {layout.components} channels of {layout.bits} bits, which needs a further package: "
            "pip install 'hardpatch[tiff]'"
        ) from None
    try:
        pixels: Pixels = imagecodecs.jpeg2k_decode(data)
    except Exception as error:  # its own types of error
        raise UndecodableImage(f"broken JPEG 2000 ({' '.join(str(error).split())})") from None
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _layout(data: bytes) -> _Layout | None:
    """Read the marker SIZ of the codestream, and the box cdef in front of it; None if they are not there."""
    start = data.find(CODESTREAM)
    # length of the marker, capabilities, sides, offsets, tiles, components
    sizes = data[start + 4 : start + 44]
    if start < 0 or len(sizes) < 40:
        return None
    right, bottom, left, top = (int.from_bytes(sizes[k : k + 4]) for k in (4, 8, 12, 16))
    components = int.from_bytes(sizes[36:38])
    precisions = data[start + 42 : start + 42 + 3 * components : 3]
    if not precisions:
        return None
    bits, signed = max((value & 127) + 1 for value in precisions), bool(precisions[0] & 128)
    return _Layout(bottom - top, right - left, components, bits, signed, _has_alpha(data[:start]))


def _has_alpha(boxes: bytes) -> bool:
    """Return True if a channel is transparency, type 1 or 2."""
    at = boxes.find(b"cdef")
    if at < 0:
        return False
    count = int.from_bytes(boxes[at + 4 : at + 6])
    return any(int.from_bytes(boxes[k + 2 : k + 4]) in (1, 2) for k in range(at + 6, at + 6 + 6 * count, 6))
