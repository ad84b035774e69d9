"""Images of any depth, number of channels, orientation and number of pages, against Pillow and tifffile."""

import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageOps

from hardpatch.data.decode import Jpeg, decode, image_size, open_image, read_header
from hardpatch.data.pages import PageSource
from hardpatch.data.reading import Reading, UndecodableImage, as_type, from_unit, to_unit
from hardpatch.data.sources import open_source

RNG = np.random.default_rng(0)
DEEP = Reading(1, "uint16", high=(65535.0,))


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def values(dtype: str, *shape: int) -> np.ndarray:
    if dtype.startswith("float"):
        return RNG.normal(0, 100, shape).astype(dtype)
    limits = np.iinfo(dtype)
    return RNG.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


# orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_are_upright(format: str, orientation: int, photograph: np.ndarray) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    file = io.BytesIO()
    options = {"lossless": True} if format == "WEBP" else {"quality": 95} if format == "JPEG" else {}
    Image.fromarray(photograph[:100, :160]).save(file, format, exif=exif, **options)
    data = file.getvalue()
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    pixels = decode(data)
    assert image_size(data) == pixels.shape[:2] == expected.shape[:2]
    assert np.abs(pixels.astype(int) - expected).max() <= (1 if format == "JPEG" else 0)
    assert read_header(data).orientation == orientation


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_gray_tiffs_of_16_bits_are_upright(orientation: int, compression: str | None) -> None:
    pixels = values("uint16", 6, 9)
    file = io.BytesIO()
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(pixels).save(file, "TIFF", exif=exif, compression=compression)
    expected = {1: pixels, 3: pixels[::-1, ::-1], 6: np.rot90(pixels, -1)}[orientation]
    assert np.array_equal(decode(file.getvalue(), DEEP)[:, :, 0], expected)


def test_a_turned_jpeg_is_cropped_upright(photograph: np.ndarray) -> None:
    """Crops of a JPEG are drawn before it is decoded, at any scale."""
    exif = Image.Exif()
    exif[274] = 6
    file = io.BytesIO()
    Image.fromarray(np.rot90(photograph[:, :256])).save(file, "JPEG", exif=exif, quality=95)
    image = open_image(file.getvalue())
    assert isinstance(image, Jpeg)
    assert image.shape == (512, 256, 3)
    for shrink in (1, 2, 4):
        blocks = photograph[:, :256].reshape(512 // shrink, shrink, 256 // shrink, shrink, 3).mean((1, 3))
        assert np.abs(image.pixels(shrink) - blocks).mean() < 4


# depth and channels


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "float16", "float32", "float64"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 13])
@pytest.mark.parametrize("planar", [False, True])
def test_tiffs_keep_their_values(dtype: str, channels: int, planar: bool) -> None:
    pixels = values(dtype, 7, 10, channels)
    stored = pixels[:, :, 0] if channels == 1 else pixels.transpose(2, 0, 1) if planar else pixels
    layout = {} if channels == 1 else {"planarconfig": "separate" if planar else "contig"}
    kind = "rgb" if channels == 3 else "minisblack"
    for extra in ({}, {"compression": "zlib"}, {"bigtiff": True}, {"tile": (16, 16)}, {"byteorder": ">"}):
        data = tiff(stored, photometric=kind, **layout, **extra)
        header = read_header(data)
        assert (header.height, header.width, header.channels, header.pages) == (7, 10, channels, 1)
        kept = {"float16": "float32", "float64": "float32"}.get(dtype, dtype)
        assert header.dtype == kept
        decoded = decode(data, Reading(channels, kept))
        assert decoded.dtype == kept
        assert np.array_equal(decoded, pixels.astype(kept))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_pngs_of_16_bits_keep_their_values(channels: int) -> None:
    """Written by hand, since Pillow writes only gray ones."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    pixels = values("uint16", 5, 6, channels)
    if channels in (2, 4):
        pixels[:, :, -1] = 65535
    header = struct.pack(">IIBBBBB", 6, 5, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    colors = 1 if channels < 3 else 3
    assert read_header(data)[:4] == (5, 6, colors, "uint16")
    assert np.array_equal(decode(data, Reading(colors, "uint16", high=(65535.0,))), pixels[:, :, :colors])


@pytest.mark.parametrize("channels", [1, 3])
def test_pnms_of_16_bits_keep_their_values(channels: int) -> None:
    pixels = values("uint16", 4, 5, channels) // 16
    data = (b"P5" if channels == 1 else b"P6") + b"\n# twelve bits\n5 4\n4095\n" + pixels.astype(">u2").tobytes()
    assert read_header(data)[:4] == (4, 5, channels, "uint16")
    assert np.array_equal(decode(data, Reading(channels, "uint16", high=(65535.0,))), pixels)
    with pytest.raises(UndecodableImage, match="truncated"):
        decode(data[:-1], Reading(channels, "uint16", high=(65535.0,)))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_numpy_files(dtype: str) -> None:
    pixels = values(dtype, 6, 8, 5)
    for stored in (pixels, pixels.transpose(2, 0, 1)):
        file = io.BytesIO()
        np.save(file, stored)
        assert np.array_equal(decode(file.getvalue(), Reading(5, dtype)), pixels)
        with pytest.raises(UndecodableImage):
            decode(file.getvalue()[:-9], Reading(5, dtype))


def test_numpy_masks_are_black_and_white() -> None:
    file = io.BytesIO()
    np.save(file, np.array([[True, False]]))
    assert decode(file.getvalue(), Reading(1)).ravel().tolist() == [255, 0]


def test_colors_for_print_of_16_bits_are_four_channels() -> None:
    pixels = values("uint16", 4, 5, 4)
    data = tiff(pixels, photometric="separated")
    assert read_header(data).channels == 4
    assert np.array_equal(decode(data, Reading(4, "uint16")), pixels)


def test_signed_values_are_never_read_as_unsigned() -> None:
    """Without the extra for it, a compression that only Pillow knows is refused rather than misread."""
    file = io.BytesIO()
    Image.fromarray(values("uint8", 40, 50)).save(file, "TIFF", compression="tiff_lzw")
    assert decode(file.getvalue(), Reading(1)).shape == (40, 50, 1)
    if importlib.util.find_spec("imagecodecs") is None:
        data = bytearray(tiff(values("int16", 8, 8)))
        with tifffile.TiffFile(io.BytesIO(bytes(data))) as opened:
            offset = opened.pages[0].tags["Compression"].valueoffset  # type: ignore[union-attr]
        data[offset : offset + 2] = (5).to_bytes(2, "little")
        with pytest.raises(UndecodableImage, match=r"LZW compression, which needs .*hardpatch\[tiff\]"):
            decode(bytes(data), Reading(1, "int16"))


def test_numpy_files_of_objects_are_never_unpickled() -> None:
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UndecodableImage, match="type object"):
        decode(file.getvalue())


def test_what_is_no_number_becomes_the_low_end() -> None:
    pixels = np.array([[np.nan, np.inf, -np.inf, 3.0]], np.float32)
    decoded = decode(tiff(pixels), Reading(1, "float32", low=(-2.0,), high=(9.0,)))
    assert decoded[0, :, 0].tolist() == [-2, 9, -2, 3]


def test_channels_are_chosen_by_index() -> None:
    pixels = values("uint16", 4, 5, 13)
    data = tiff(pixels, photometric="minisblack", planarconfig="contig")
    assert np.array_equal(decode(data, Reading((3, 2, 1), "uint16")), pixels[:, :, [3, 2, 1]])
    with pytest.raises(UndecodableImage, match=r"13 channels; data\.channels asks for index 13"):
        decode(data, Reading((3, 13), "uint16"))
    for channels in (1, 3, 12):
        with pytest.raises(UndecodableImage, match=f"13 channels; expected {channels}: set data.channels to 13"):
            decode(data, Reading(channels, "uint16"))


def test_infrared_is_a_channel_and_alpha_is_not() -> None:
    pixels = values("uint8", 4, 5, 4)
    infrared = tiff(pixels, photometric="rgb", extrasamples=["unspecified"])
    assert np.array_equal(decode(infrared, Reading(4)), pixels)
    with pytest.raises(UndecodableImage, match="4 channels"):
        decode(infrared)
    transparent = tiff(pixels, photometric="rgb", extrasamples=["unassalpha"])
    assert read_header(transparent)[2:8] == (3, "uint8", "TIFF", 1, 1, True)
    share = pixels[:, :, 3:] / 255
    assert np.array_equal(decode(transparent), np.floor(pixels[:, :, :3] * share + 255 * (1 - share) + 0.5))


@given(dtype=st.sampled_from(["uint8", "uint16", "int16", "float32"]), data=st.data())
def test_units_and_back(dtype: str, data: st.DataObject) -> None:
    low, high = (-5.0, 5.0) if dtype == "float32" else (0.0, float(np.iinfo(dtype).max))
    elements = st.floats(low, high, width=32) if dtype == "float32" else st.integers(0, int(high))
    pixels = data.draw(arrays(dtype, (2, 3, 2), elements=elements))
    reading = Reading(2, dtype, low=(low,), high=(high,))
    assert np.allclose(from_unit(to_unit(pixels, reading), reading), pixels, atol=1e-5 if dtype == "float32" else 0)


def test_integers_are_rounded_and_clipped() -> None:
    assert as_type(np.array([-3.0, 0.6, 70000.0]), "uint16").tolist() == [0, 1, 65535]


# pages


def stack(pages: int = 3) -> np.ndarray:
    return values("uint8", pages, 6, 7)


def test_pages_are_never_dropped_without_a_word() -> None:
    pages = stack()
    data = tiff(pages, photometric="minisblack")
    assert read_header(data).pages == 3
    with pytest.raises(UndecodableImage, match=r"3 pages or frames; set data\.pages to first"):
        decode(data, Reading(1))
    assert np.array_equal(decode(data, Reading(1, pages="first"))[:, :, 0], pages[0])
    assert np.array_equal(decode(data, Reading(3, pages="channels")), pages.transpose(1, 2, 0))
    assert np.array_equal(decode(data, Reading(1), page=2)[:, :, 0], pages[2])


@pytest.mark.parametrize("container", ["tiff", "gif"])
def test_pages_of_several_channels_are_no_channels(container: str) -> None:
    """Red alone would be wrong without a word."""
    file = io.BytesIO()
    if container == "tiff":
        tifffile.imwrite(file, values("uint8", 2, 6, 7, 3), photometric="rgb")
    else:
        Image.new("RGB", (7, 6), "red").save(
            file, "GIF", save_all=True, append_images=[Image.new("RGB", (7, 6), "blue")]
        )
    with pytest.raises(UndecodableImage, match=r"2 pages of 6 x 7 with 3 channels; pages can be channels"):
        decode(file.getvalue(), Reading(6, pages="channels"))


def test_previews_in_the_jpeg_of_a_telephone_are_no_pages(photograph: np.ndarray) -> None:
    file, picture = io.BytesIO(), Image.fromarray(photograph)
    picture.save(file, "MPO", save_all=True, append_images=[picture.resize((64, 64))])
    assert read_header(file.getvalue()).pages == 1
    assert decode(file.getvalue()).shape == photograph.shape


@pytest.mark.parametrize("options", [{"imagej": True}, {"ome": True, "metadata": {"axes": "ZYX"}}])
def test_hyperstacks(options: dict[str, Any]) -> None:
    pages = stack(4)
    data = tiff(pages, photometric="minisblack", **options)
    assert read_header(data).pages == 4
    assert np.array_equal(decode(data, Reading(4, pages="channels")), pages.transpose(1, 2, 0))


def test_smaller_copies_are_no_pages() -> None:
    whole, file = values("uint8", 64, 64, 3), io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(whole, photometric="rgb")
        writer.write(whole[::2, ::2], photometric="rgb", subfiletype=1)
    assert read_header(file.getvalue()).pages == 1
    assert np.array_equal(decode(file.getvalue()), whole)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_animations(format: str) -> None:
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "green", "blue")]
    file = io.BytesIO()
    options = {"lossless": True} if format == "WEBP" else {}
    frames[0].save(file, format, save_all=True, append_images=frames[1:], **options)
    with pytest.raises(UndecodableImage, match="3 pages or frames"):
        decode(file.getvalue())
    assert decode(file.getvalue(), Reading(pages="first"))[0, 0].tolist() == [255, 0, 0]
    assert decode(file.getvalue(), page=2)[0, 0].tolist() == [0, 0, 255]


def test_each_page_as_an_image(tmp_path: Path) -> None:
    for name, pages in (("a", 2), ("b", 3)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.tif").write_bytes(tiff(stack(pages), photometric="minisblack"))
    each = PageSource(open_source(tmp_path))
    assert len(each) == 5
    assert each.name(3) == f"{tmp_path / 'b' / 'x.tif'} page 2"
    assert [each.label(i) for i in range(5)] == [0, 0, 1, 1, 1]
    expected = decode((tmp_path / "b" / "x.tif").read_bytes(), Reading(1), page=2)
    assert np.array_equal(each.image(4, Reading(1)), expected)
    with pytest.raises(UndecodableImage, match="expected at most 10, raise data"):
        PageSource(open_source(tmp_path), max_pixels=10).header(0)


# memory


def test_a_tiff_that_claims_two_to_the_31_pixels() -> None:
    data = bytearray(tiff(np.zeros((4, 4), np.uint8)))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        for tag in ("ImageWidth", "ImageLength"):
            offset = file.pages[0].tags[tag].valueoffset  # type: ignore[union-attr]
            data[offset : offset + 2] = (46341).to_bytes(2, "little")
    with pytest.raises(
        UndecodableImage, match=r"46341 x 46341 pixels; expected at most 178,956,970, raise data\.max_pix"
    ):
        decode(bytes(data), Reading(1))


def test_a_text_chunk_that_unpacks_to_gigabytes() -> None:
    import struct
    import zlib

    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    data = file.getvalue()
    text = b"zTXt" + b"bomb\0\0" + zlib.compress(bytes(80 << 20))
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    with pytest.raises(UndecodableImage, match="text in a PNG that unpacks to more than 1 MiB"):
        decode(data[:33] + chunk + data[33:])
