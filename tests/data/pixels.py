"""Pixels, packed bits and transparency, from which the tests of formats make their files and their expectations."""

import importlib.util
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hardpatch.data.decode import decode, read_header
from hardpatch.data.reading import Reading, type_range

RNG = np.random.default_rng(0)
H, W = 6, 8
DEEP = Reading(1, "uint16", high=(65535.0,))


def numbers(most: int, *channels: int, dtype: str = "uint16") -> np.ndarray:
    return RNG.integers(0, most, (H, W, *channels), dtype=dtype, endpoint=True)


def packed(values: np.ndarray, bits: int) -> bytes:
    """Pack each row from the most significant bit on."""
    digits = (values.reshape(H, -1, 1) >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(digits.reshape(H, -1).astype(np.uint8), axis=1).tobytes()


def on_white(colors: np.ndarray, alpha: np.ndarray, most: float) -> np.ndarray:
    share = alpha / most
    return colors * share + most * (1 - share)


def read(data: bytes) -> np.ndarray:
    """Decode as the header says, which has to agree."""
    header = read_header(data)
    pixels = decode(data, Reading(header.channels, header.dtype, high=(type_range(header.dtype)[1],)))
    assert (pixels.shape, str(pixels.dtype)) == ((header.height, header.width, header.channels), header.dtype)
    return pixels[:, :, 0] if header.channels == 1 else pixels


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def smooth(dtype: str = "uint8") -> np.ndarray:
    """Make colors that lossy compression changes little."""
    y, x = np.mgrid[:64, :96]
    return (np.stack([x * 2, y * 3, x + y], 2) * (257 if dtype == "uint16" else 1)).astype(dtype)


def needs(module: str, extra: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(module) is None
    return pytest.mark.skipif(missing, reason=f"{module} is not installed: pip install 'hardpatch[{extra}]'")
