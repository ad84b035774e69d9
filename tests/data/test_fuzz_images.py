"""Image files with changed bytes: an image, or an UndecodableImage."""

import io

import numpy as np
import tifffile
from hypothesis import given
from PIL import Image

from hardpatch.data.decode import decode, read_header
from hardpatch.data.reading import RGB, Reading
from tests.fuzz import fuzz_settings, mutated, outcome


def contents() -> list[bytes]:
    """Small files of every format that is always read."""
    rng = np.random.default_rng(0)
    color = rng.integers(0, 255, (9, 11, 3), dtype=np.uint8)
    deep = rng.integers(0, 65535, (9, 11), dtype=np.uint16)
    files = []
    for kind, options in (
        ("JPEG", {}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"lossless": False}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "jpeg"}),
        ("BMP", {}),
        ("GIF", {}),
        ("PPM", {}),
        ("JPEG2000", {}),
    ):
        file = io.BytesIO()
        Image.fromarray(color).save(file, kind, **options)
        files.append(file.getvalue())
    for pixels, options in ((deep, {}), (color, {"compression": "zlib", "photometric": "rgb"})):
        file = io.BytesIO()
        tifffile.imwrite(file, pixels, **options)  # type: ignore[arg-type]
        files.append(file.getvalue())
    file = io.BytesIO()
    Image.fromarray(deep).save(file, "PNG")
    array = io.BytesIO()
    np.save(array, deep)
    return [*files, file.getvalue(), array.getvalue()]


@fuzz_settings
@given(data=mutated(contents()))
def test_changed_bytes(data: bytes) -> None:
    for reading in (RGB, Reading(1, "uint16", (0.0,), (65535.0,), pages="first")):
        pixels = outcome(lambda reading=reading: decode(data, reading))  # type: ignore[misc]
        if pixels is not None:
            assert pixels.dtype == reading.dtype
            assert pixels.shape[2] == reading.channels
            assert pixels.flags.writeable
    outcome(lambda: read_header(data))
