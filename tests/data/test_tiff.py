"""Rarer kinds of TIFF, against values that are computed by hand."""

import importlib.util
import io
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import tifffile
from PIL import Image

from hardpatch.data.decode import decode, read_header
from hardpatch.data.reading import Reading, UndecodableImage, type_range
from hardpatch.data.sources import open_source
from hardpatch.data.survey import measured_range
from tests.data.pixels import DEEP, RNG, H, W, numbers, on_white, packed, read, saved


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def raw_tiff(values: np.ndarray, bits: int, photometric: int, colormap: np.ndarray | None = None) -> bytes:
    """Write a gray or palette TIFF of any number of bits in big-endian order."""
    pixels, colors = packed(values, bits), b"" if colormap is None else colormap.astype(">u2").tobytes()
    fields = [(256, W), (257, H), (258, bits), (259, 1), (262, photometric), (273, 0), (277, 1), (278, H)]
    fields += [(279, len(pixels))] + ([(320, 0)] if colors else [])
    end = 8 + 2 + 12 * len(fields) + 4
    entries = b""
    for tag, value in fields:
        kind, count = (3, len(colors) // 2) if tag == 320 else (4, 1)
        entries += struct.pack(">HHII", tag, kind, count, {273: end + len(colors), 320: end}.get(tag, value))
    return struct.pack(">2sHIH", b"MM", 42, 8, len(fields)) + entries + bytes(4) + colors + pixels


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("white_is_zero", [True, False])
def test_gray_of_few_bits(bits: int, white_is_zero: bool) -> None:
    values = numbers((1 << bits) - 1)
    expected = values * (255 // ((1 << bits) - 1))
    expected = 255 - expected if white_is_zero else expected
    assert np.array_equal(read(raw_tiff(values, bits, 1 - white_is_zero)), expected)


@pytest.mark.parametrize("white_is_zero", [True, False])
def test_twelve_bits_that_fill_no_whole_bytes(white_is_zero: bool) -> None:
    values = numbers(4095)
    data = raw_tiff(values, 12, 1 - white_is_zero)
    if importlib.util.find_spec("imagecodecs"):
        assert np.array_equal(read(data), 4095 - values if white_is_zero else values)
    else:
        with pytest.raises(UndecodableImage, match=r"12 bits that fill no whole bytes, which needs .*hardpatch\[tiff"):
            read(data)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_white_is_zero(dtype: str, compression: str | None) -> None:
    most = np.iinfo(dtype).max
    values = numbers(most, dtype=dtype)
    assert np.array_equal(read(tiff(values, photometric="miniswhite", compression=compression)), most - values)


@pytest.mark.parametrize(("bits", "most"), [(4, 65535), (8, 65535), (8, 255), (16, 65535)])
def test_palettes_of_tiffs(bits: int, most: int) -> None:
    """A palette whose numbers end at 255 is one of 8 bits, which other programs show as black."""
    colors = RNG.integers(0, most, (3, 1 << bits), endpoint=True).astype(np.uint16)
    indices = numbers((1 << bits) - 1)
    expected = colors.T[indices] >> (8 if bits < 16 and most > 255 else 0)
    assert np.array_equal(read(raw_tiff(indices, bits, 3, colors)), expected)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "float32"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
def test_transparency_of_tiffs(dtype: str, channels: int, planar: bool, kind: str) -> None:
    most = type_range(dtype)[1]
    colors, alpha = (RNG.random((H, W, n)) * most for n in (channels, 1))
    stored = colors * (alpha / most) if kind == "assocalpha" else colors
    pixels = np.concatenate([stored, alpha], 2).astype(dtype)
    data = tiff(
        pixels.transpose(2, 0, 1) if planar else pixels,
        photometric="rgb" if channels == 3 else "minisblack",
        planarconfig="separate" if planar else "contig",
        extrasamples=[kind],
    )
    assert read_header(data).transparent
    expected = on_white(colors, alpha, most)
    assert np.allclose(read(data).reshape(H, W, channels), expected, atol=2 if dtype == "uint8" else most * 4e-5)


def test_transparency_behind_infrared() -> None:
    pixels = numbers(65535, 5)
    data = tiff(pixels, photometric="rgb", extrasamples=["unspecified", "unassalpha"])
    assert np.allclose(read(data), on_white(pixels[..., :4], pixels[..., 4:], 65535), atol=1)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
def test_other_color_spaces_of_tiffs(mode: str, compression: str | None, photograph: np.ndarray) -> None:
    image = Image.fromarray(photograph[:32, :48]).convert(mode)
    expected = np.asarray(image.convert("RGB")).astype(int)
    if (mode, compression) == ("YCbCr", None) and int(PIL.__version__.split(".")[0]) < 13:
        with pytest.raises(UndecodableImage, match="truncated"):  # Pillow 12 expects four bytes for each pixel
            read(saved(image, "TIFF", compression=compression))
        return
    assert np.abs(read(saved(image, "TIFF", compression=compression)) - expected).max() <= 2  # libtiff rounds otherwise


def test_color_spaces_that_are_not_converted_are_refused() -> None:
    data = bytearray(tiff(numbers(65535, 3), photometric="rgb"))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        offset = file.pages[0].tags["PhotometricInterpretation"].valueoffset  # type: ignore[union-attr]
    data[offset : offset + 2] = (8).to_bytes(2, "little")
    with pytest.raises(UndecodableImage, match="TIFF in CIELAB of 16 bits; convert it"):
        read(bytes(data))


@pytest.mark.parametrize("dtype", ["float32", "int16", "uint16"])
def test_missing_pixels_are_no_values(dtype: str, tmp_path: Path) -> None:
    """GDAL names their value in a tag; NaN has none."""
    values = RNG.integers(500, 900, (H, W)).astype(dtype)
    nodata = 65535 if dtype == "uint16" else -9999
    values[0, :3] = nodata
    (tmp_path / "x.tif").write_bytes(tiff(values, extratags=[(42113, 2, 0, f"{nodata}", True)]))
    reading = Reading(1, dtype, low=(600.0,), high=(800.0,))
    decoded = decode((tmp_path / "x.tif").read_bytes(), reading)[:, :, 0]
    assert (decoded[0, :3] == (600 if dtype == "float32" else values[values != nodata].min())).all()
    assert np.array_equal(decoded[1:], values[1:])
    values_found = measured_range(open_source(tmp_path), [0], reading, floats=[0] if dtype == "float32" else [])
    assert 500 <= values_found.least <= values_found.low < values_found.high <= values_found.most < 900


def test_pages_have_their_own_orientation() -> None:
    for pixels in (numbers(255, 3, dtype="uint8"), numbers(65535)):
        file = io.BytesIO()
        with tifffile.TiffWriter(file) as writer:
            for orientation in (1, 3, 6):
                tag = [(274, 3, 1, orientation, True)]
                writer.write(
                    pixels, photometric="rgb" if pixels.ndim == 3 else "minisblack", extratags=tag, metadata=None
                )
        turned = [pixels, pixels[::-1, ::-1], np.rot90(pixels, -1)]
        reading = Reading(3) if pixels.ndim == 3 else DEEP
        for page, expected in enumerate(turned):
            assert np.array_equal(decode(file.getvalue(), reading, page).reshape(expected.shape), expected)


def test_pages_after_a_smaller_copy() -> None:
    pixels, file = numbers(255, 3, dtype="uint8"), io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(pixels, photometric="rgb")
        writer.write(pixels[::2, ::2], photometric="rgb", subfiletype=1)
        writer.write(255 - pixels, photometric="rgb")
    assert read_header(file.getvalue()).pages == 2
    assert np.array_equal(decode(file.getvalue(), page=1), 255 - pixels)


@pytest.mark.parametrize("options", [{"imagej": True}, {}], ids=["ImageJ", "tifffile"])
def test_a_stack_behind_one_page_is_read_plane_by_plane(options: dict[str, Any]) -> None:
    stack = RNG.integers(0, 65536, (200, 32, 32), dtype=np.uint16)
    data = tiff(stack, photometric="minisblack", truncate=True, **options)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        assert len(file.pages) == 1
    assert read_header(data).pages == 200
    with pytest.raises(UndecodableImage, match="200 pages"):
        decode(data, DEEP)
    for page in (0, 1, 199):
        tracemalloc.start()
        decoded = decode(data, DEEP, page)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert np.array_equal(decoded[:, :, 0], stack[page])
        assert peak < stack.nbytes / 4
    with pytest.raises(UndecodableImage, match="plane 200 of the stack is missing"):
        decode(data[:-1], DEEP, 199)


def test_a_truncated_stack_loses_no_page_without_a_word() -> None:
    data = tiff(RNG.integers(0, 65536, (5, 32, 32), dtype=np.uint16), photometric="minisblack", metadata=None)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        last = file.pages[4].offset
    with pytest.raises(UndecodableImage, match=r"truncated TIFF \(page 5 lies beyond its end\)"):
        read_header(data[:last])
