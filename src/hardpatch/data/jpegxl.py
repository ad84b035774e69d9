"""Header of JPEG XL files: pillow-jxl-plugin decodes a file before it says its size, and of an animation one frame."""

from hardpatch.data.header import check_pixels
from hardpatch.data.reading import UndecodableImage

CODESTREAM, CONTAINER = b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"
"""First bytes of the two kinds of files."""
SIDES = (9, 13, 18, 30)
"""Bits of a side less one, by the two bits in front of it."""
RATIOS = ((1, 1), (6, 5), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
"""Width by height, for the values 1 to 7; 0 says that the width follows."""


def is_jpegxl(data: bytes) -> bool:
    """Return True for the first bytes of a JPEG XL."""
    return data.startswith((CODESTREAM, CONTAINER))


def jpegxl_bits(data: bytes, max_pixels: int) -> int:
    """Return the bits of a sample, 8 where they cannot be told. Refuse too many pixels, and animations.

    Raises UndecodableImage.
    """
    bits = _Bits(_codestream(data)[2:64])
    height, width = bits.size()
    check_pixels(height, width, max_pixels)
    if bits.take(1):  # all fields have their usual values
        return 8
    if bits.take(1):  # the first ones have not
        bits.take(3)  # orientation
        if bits.take(1):
            bits.size()  # to be shown at
        preview, animated = bits.take(1), bits.take(1)
        if preview:
            return 8
        if animated:
            raise UndecodableImage("an animation in JPEG XL, of which pillow-jxl-plugin reads the first frame only")
    floating = bits.take(1)
    usual, choice = ((32, 16, 24) if floating else (8, 10, 12)), bits.take(2)
    return usual[choice] if choice < 3 else 1 + bits.take(6)


def _codestream(data: bytes) -> bytes:
    """Return the start of the codestream, which a container has in a box."""
    at = 0
    while not data.startswith(CODESTREAM) and at + 8 <= len(data):
        size, kind, header = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8], 8
        if size == 1:
            size, header = int.from_bytes(data[at + 8 : at + 16]), 16
        if kind in (b"jxlc", b"jxlp"):
            start = at + header + 4 * (kind == b"jxlp")
            return data[start : start + 64]
        at += max(size, header) if size else len(data)
    return data


class _Bits:
    """Numbers in bytes, from the least significant bit on."""

    def __init__(self, data: bytes) -> None:
        self.value, self.left = int.from_bytes(data, "little"), 8 * len(data)

    def take(self, count: int) -> int:
        if count > self.left:
            raise UndecodableImage("truncated JPEG XL file")
        taken = self.value & ((1 << count) - 1)
        self.value, self.left = self.value >> count, self.left - count
        return taken

    def size(self) -> tuple[int, int]:
        small = self.take(1)
        height = self._side(small)
        ratio = self.take(3)
        if not ratio:
            return height, self._side(small)
        wide, high = RATIOS[ratio - 1]
        return height, height * wide // high

    def _side(self, small: int) -> int:
        if small:
            return 8 * (self.take(5) + 1)
        return self.take(SIDES[self.take(2)]) + 1
