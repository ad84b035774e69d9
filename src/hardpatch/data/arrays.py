"""NumPy files as images."""

import io

import numpy as np

from hardpatch.data.header import Header, check_memory, check_pixels, finite, kept_type
from hardpatch.data.reading import Pixels, Reading, UndecodableImage, arranged

FEW = 64
"""An axis of at most this length may be that of the channels."""


def decode_array(data: bytes, reading: Reading) -> Pixels:
    """Decode a .npy file of ``[H, W]``, ``[H, W, C]`` or ``[C, H, W]``: the channels are the shortest axis.

    Raises UndecodableImage for objects, other types and other shapes.
    """
    shape, dtype = _shape_and_type(data)
    axis = channel_axis(shape)
    _check_size(shape, axis, dtype, reading.max_pixels)
    try:
        values = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # NumPy evaluates the header as Python, which raises nearly anything
        raise UndecodableImage(f"broken .npy file ({' '.join(str(error).split())})") from None
    values = values * np.uint8(255) if values.dtype == bool else values
    pixels = values[:, :, None] if axis is None else np.moveaxis(values, axis, 2)
    return arranged(finite(pixels.astype(dtype), reading), reading)


def array_header(data: bytes, max_pixels: int) -> Header:
    """Read the shape and the type of a .npy file."""
    shape, dtype = _shape_and_type(data)
    axis = channel_axis(shape)
    height, width = _size(shape, axis)
    _check_size(shape, axis, dtype, max_pixels)
    return Header(height, width, 1 if axis is None else shape[axis], dtype, "NPY")


def channel_axis(shape: tuple[int, ...]) -> int | None:
    """Return the axis of the channels: the first or the last, whichever is shorter; the last if they are equal."""
    if len(shape) == 2:
        return None
    if len(shape) != 3 or min(shape) < 0 or min(shape[0], shape[2]) > FEW:
        raise UndecodableImage(f"array of shape {list(shape)}; expected [H, W], [H, W, C] or [C, H, W]")
    return 0 if shape[0] < shape[2] else 2


def _shape_and_type(data: bytes) -> tuple[tuple[int, ...], str]:
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except Exception as error:  # NumPy evaluates the header as Python, which raises nearly anything
        raise UndecodableImage(f"broken .npy file ({' '.join(str(error).split())})") from None
    return shape, kept_type(dtype)


def _check_size(shape: tuple[int, ...], axis: int | None, dtype: str, max_pixels: int) -> None:
    check_pixels(*_size(shape, axis), max_pixels)
    channels = 1 if axis is None else shape[axis]
    check_memory(*_size(shape, axis), channels * np.dtype(dtype).itemsize, max_pixels)


def _size(shape: tuple[int, ...], axis: int | None) -> tuple[int, int]:
    height, width = (side for k, side in enumerate(shape) if k != axis)
    return height, width
