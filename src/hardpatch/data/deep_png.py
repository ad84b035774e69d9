"""PNG files of 16 bits, of which Pillow keeps 8 in color.

torchvision decodes them, and ends the process where one is damaged. So the chunks are checked and unpacked here, and it
gets a file that is made anew and has nothing in it but the rows of the pixels.
"""

import zlib

import numpy as np

from hardpatch.data.header import over_background
from hardpatch.data.reading import Pixels, Reading, UndecodableImage, in_strips

MAGIC = b"\x89PNG\r\n\x1a\n"
SAMPLES = {0: 1, 2: 3, 4: 2, 6: 4}
"""Samples of a pixel by the color type."""
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column and row of each pass of an interlaced file, and the steps between its columns and rows."""
FILTERS = 5


def deep_png_samples(data: bytes) -> int:
    """Return the samples per pixel of a PNG of 16 bits, 0 for any other file."""
    if data[:8] != MAGIC or data[24:25] != b"\x10":
        return 0
    return SAMPLES.get(data[25], 0)


def decode_deep_png(data: bytes, transparent: int | tuple[int, ...] | None, reading: Reading) -> Pixels:
    """Decode a PNG of 16 bits: ``[H, W, C]``, transparency composited.

    Args:
        data: the file.
        transparent: color that is transparent, if there is one.
        reading: names the background.
    """
    import torch
    from torchvision.io import ImageReadMode, decode_png  # type: ignore[import-untyped]

    file = torch.frombuffer(_made_anew(data), dtype=torch.uint8)
    pixels: Pixels = decode_png(file, ImageReadMode.UNCHANGED).numpy().transpose(1, 2, 0)
    if pixels.shape[2] in (2, 4):
        return over_background(pixels[:, :, :-1], pixels[:, :, -1:], reading)
    if transparent is None:
        return pixels

    def composited(strip: Pixels) -> Pixels:
        opaque = (strip != np.array(transparent)).any(2, keepdims=True)
        return over_background(strip, opaque * np.uint16(65535), reading)

    return in_strips(composited, pixels)


def _made_anew(data: bytes) -> bytearray:
    """Return the same pixels as a file without anything else."""
    chunks = list(_chunks(data))
    header = next((content for kind, content in chunks if kind == b"IHDR"), b"")
    if len(header) != 13 or header != data[16:29] or header[10:12] != b"\0\0" or header[12] > 1:
        raise UndecodableImage("damaged PNG (its header)")
    width, height = int.from_bytes(header[:4]), int.from_bytes(header[4:8])
    rows = _rows(width, height, 2 * SAMPLES[header[9]], interlaced=header[12] == 1)
    length = sum(count * size for count, size in rows)
    try:
        packed = b"".join(content for kind, content in chunks if kind == b"IDAT")
        pixels = zlib.decompressobj().decompress(packed, length)
    except zlib.error as error:
        raise UndecodableImage(f"damaged PNG ({error})") from None
    if len(pixels) < length:
        raise UndecodableImage("truncated PNG")
    start = 0
    for count, size in rows:
        filters = np.frombuffer(pixels, np.uint8, count * size, start).reshape(count, size)[:, 0]
        if filters.max() >= FILTERS:
            raise UndecodableImage(f"damaged PNG (filter {filters.max()})")
        start += count * size
    stored = zlib.compress(pixels, 0)
    parts = (b"IHDR", header), (b"IDAT", stored), (b"IEND", b"")
    return bytearray().join([MAGIC, *(_chunk(kind, content) for kind, content in parts)])


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return kind and content of each chunk. Raises UndecodableImage if one is cut off or damaged."""
    found: list[tuple[bytes, bytes]] = []
    at = len(MAGIC)
    while not found or found[-1][0] != b"IEND":
        end = at + 8 + int.from_bytes(data[at : at + 4])
        if len(data) < end + 4:
            raise UndecodableImage("truncated PNG")
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4]):
            raise UndecodableImage("damaged PNG (a checksum differs)")
        found.append((data[at + 4 : at + 8], data[at + 8 : end]))
        at = end + 4
    return found


def _rows(width: int, height: int, pixel: int, *, interlaced: bool) -> list[tuple[int, int]]:
    """Return number and bytes of the rows of each pass, the byte of the filter included."""
    if not interlaced:
        return [(height, 1 + width * pixel)]
    sides = [(-(-(height - y) // down), -(-(width - x) // right)) for x, y, right, down in PASSES]
    return [(rows, 1 + columns * pixel) for rows, columns in sides if rows > 0 and columns > 0]


def _chunk(kind: bytes, content: bytes) -> bytes:
    return b"".join((len(content).to_bytes(4), kind, content, zlib.crc32(content, zlib.crc32(kind)).to_bytes(4)))
