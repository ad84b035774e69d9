"""Image files of a few kilobytes that would take gigabytes, and files that are none."""

import io
import os
import struct
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from hardpatch.data import reading as readings
from hardpatch.data.decode import decode, image_size, named_errors, read_header
from hardpatch.data.folders import read_file
from hardpatch.data.limits import MAX_FILE_BYTES
from hardpatch.data.reading import RGB, Reading, UndecodableImage

SIDE = 1200


def encoded(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    if kind == "TIFF":
        tifffile.imwrite(file, pixels, compression="zlib", **options)  # type: ignore[arg-type]
    else:
        Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


FILES = {
    "gray of 16 bits": encoded(np.full((SIDE, SIDE), 999, np.uint16), "PNG"),
    "color": encoded(np.full((SIDE, SIDE, 3), 99, np.uint8), "PNG"),
    "transparent": encoded(np.full((SIDE, SIDE, 4), 99, np.uint8), "PNG"),
    "float": encoded(np.full((SIDE, SIDE), 0.5, np.float32), "TIFF"),
    "16 bits": encoded(np.full((SIDE, SIDE, 3), 999, np.uint16), "TIFF", photometric="rgb"),
    "GIF": encoded(np.full((SIDE, SIDE), 99, np.uint8), "GIF"),
}


@pytest.mark.parametrize("name", FILES)
def test_decoding_takes_little_more_than_the_pixels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = decode(FILES[name], RGB)
    monkeypatch.setattr(readings, "STRIP", 1 << 14)
    monkeypatch.setattr("hardpatch.data.pillow.STRIP", 1 << 14)
    tracemalloc.start()  # counts NumPy's memory and Python's
    pixels = decode(FILES[name], RGB)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(pixels, whole), "in strips as in one piece"
    stored = SIDE * SIDE * {"float": 4, "gray of 16 bits": 2, "16 bits": 6}.get(name, 0)
    assert peak < 1.3 * pixels.nbytes + 2 * stored + 2**20


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "TIFF", "npy"])
def test_an_image_of_more_memory_than_the_limit_is_refused_by_its_header(kind: str) -> None:
    shape = (100, 100) if kind in ("WEBP", "PNG") else (100, 100, 20)
    pixels = np.zeros(shape, np.uint8)
    if kind == "npy":
        file = io.BytesIO()
        np.save(file, pixels)
        data = file.getvalue()
    else:
        options = {"photometric": "minisblack", "planarconfig": "contig"} if kind == "TIFF" else {}
        data = encoded(pixels, kind, **options)
    tight = replace(RGB.with_channels(20 if len(shape) == 3 else 3), max_pixels=10_000)
    if kind == "PNG":
        assert decode(data, tight).shape == (100, 100, 3)
        return
    for work in (lambda: decode(data, tight), lambda: image_size(data, tight), lambda: read_header(data, 10_000)):
        with pytest.raises(UndecodableImage, match=r"expected at most 80,000, 8 for each pixel of data\.max"):
            work()
    assert decode(data, replace(tight, max_pixels=25_000)).shape[:2] == (100, 100)


def test_a_stack_of_pages_as_channels_is_counted(tmp_path: Path) -> None:
    data = encoded(np.zeros((40, 50, 50), np.uint8), "TIFF", photometric="minisblack", metadata=None)
    stack = Reading(40, pages="channels", max_pixels=2500)
    with pytest.raises(UndecodableImage, match="40 bytes each"):
        decode(data, stack)
    assert decode(data, replace(stack, max_pixels=12_500)).shape == (50, 50, 40)


def test_a_strip_that_unpacks_to_more_than_its_page() -> None:
    data = bytearray(encoded(np.full((16, 16), 999, np.uint16), "TIFF", photometric="minisblack"))
    bomb = zlib.compress(bytes(2**28), 9)
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        for tag, value in ((273, len(data)), (279, len(bomb))):  # where the strip is, and how many bytes it has
            struct.pack_into("<I", data, file.pages[0].tags[tag].valueoffset, value)  # type: ignore[union-attr]
    tracemalloc.start()
    with pytest.raises(UndecodableImage, match=r"a strip or tile for 512 bytes unpacks to 67,109,376 or more"):
        decode(bytes(data) + bomb, RGB.with_channels(1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**28


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    with path.open("wb") as file:
        file.truncate(40_000_000_000)
    with pytest.raises(UndecodableImage, match=f"takes 40,000,000,000 bytes; expected at most {MAX_FILE_BYTES:,}"):
        read_file(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(UndecodableImage, match="no regular file"):
        read_file(tmp_path / "a.jpg")


def test_memory_that_does_not_suffice_is_the_fault_of_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def starve(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr("hardpatch.data.decode.decode_with_pillow", starve)
    with (
        pytest.raises(UndecodableImage, match=r"^b\.png: there is not enough memory"),
        named_errors(lambda i: "b.png", 0),
    ):
        decode(FILES["color"], RGB)
    with (
        pytest.raises(UndecodableImage, match=r"^b\.png: there is not enough memory"),
        named_errors(lambda i: "b.png", 0),
    ):
        raise MemoryError


def test_a_png_of_more_data_than_pixels() -> None:
    data = bytearray(FILES["color"])
    # zeros without end behind the pixels are not unpacked
    bomb = zlib.compress(bytes(50_000_000), 9)
    chunk = b"IDAT" + bomb
    data[-12:-12] = len(bomb).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    assert decode(bytes(data), RGB).shape == (SIDE, SIDE, 3)


@pytest.mark.parametrize("color", [0, 2, 4, 6])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 3), (9, 17)])
def test_an_interlaced_png_of_16_bits(color: int, height: int, width: int) -> None:
    samples = {0: 1, 2: 3, 4: 2, 6: 4}[color]
    pixels = np.random.default_rng(0).integers(0, 65536, (height, width, samples), dtype=np.uint16)
    steps = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))

    def png(interlaced: int) -> bytes:
        passes = [pixels[y::down, x::right] for x, y, right, down in steps] if interlaced else [pixels]
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for part in passes for row in part if row.size)
        header = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, interlaced)
        parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
        chunks = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in parts)
        return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)

    reading = Reading(1 if samples < 3 else 3, "uint16", (0.0,), (65535.0,))
    assert np.array_equal(decode(png(1), reading), decode(png(0), reading))
    if samples in (1, 3):
        assert np.array_equal(decode(png(1), reading), pixels)
