"""Limits of images; nothing here imports NumPy."""

from hardpatch.errors import UserError

MAX_PIXELS = 178_956_970
"""Pillow's own limit: above it a broken header is likelier than an image, and decoding takes minutes and all memory."""
BYTES_PER_PIXEL = 8
"""Bytes of memory that an image may take for each pixel of the limit: those of 16-bit color with transparency."""
MAX_FILE_BYTES = 1 << 30
"""Size from which a file is not read: it is no image that can be cropped in reasonable time."""


def check_channels(channels: int | tuple[int, ...]) -> None:
    """Raise UserError unless this is a number of channels, or indices of channels."""
    values = (channels,) if isinstance(channels, int) else channels
    least = 1 if isinstance(channels, int) else 0
    if not values or min(values) < least or len(set(values)) < len(values):
        raise UserError(
            f"data.channels: expected a number of channels or different indices from 0 on, got {channels!r}"
        )
