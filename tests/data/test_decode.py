import io
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hardpatch.data.decode import Jpeg, decode, open_image
from hardpatch.data.limits import check_channels
from hardpatch.data.reading import GRAY as GRAYSCALE
from hardpatch.data.reading import Reading, UndecodableImage
from hardpatch.errors import UserError

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (12, 17), dtype=np.uint8)
RGB = RNG.integers(0, 256, (12, 17, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (12, 17), dtype=np.uint8)
LUMA = np.asarray(Image.fromarray(RGB).convert("L"))


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def smooth(height: int = 40, width: int = 48) -> Image.Image:
    """Make an image without fine details, which JPEG changes little."""
    return Image.fromarray(RGB[:4, :4]).resize((width, height), Image.Resampling.BICUBIC)


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def rgb_of(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[:, :, None], 3, axis=2)


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_deflate"}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_lossless_formats_are_decoded_exactly(format: str, options: dict[str, Any]) -> None:
    data = encoded(Image.fromarray(RGB), format, **options)
    assert np.array_equal(decode(data), RGB)
    assert np.array_equal(decode(data, GRAYSCALE), LUMA[:, :, None])


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF"])
def test_gray_is_repeated_over_the_channels(format: str) -> None:
    data = encoded(Image.fromarray(GRAY), format)
    assert np.array_equal(decode(data), rgb_of(GRAY))
    assert np.array_equal(decode(data, GRAYSCALE), GRAY[:, :, None])


def on(colors: np.ndarray, alpha: np.ndarray, background: Any) -> np.ndarray:
    """Composite by hand, rounded."""
    share = alpha.reshape(*alpha.shape[:2], 1) / 255
    return np.floor(colors * share + np.asarray(background) * (1 - share) + 0.5).astype(np.uint8)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("background", [(255, 255, 255), (10, 200, 90)])
def test_alpha_is_composited(format: str, background: tuple[int, int, int]) -> None:
    image = Image.fromarray(np.dstack([RGB, np.maximum(ALPHA, 1)]))
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    data = encoded(image, format, **options)
    expected = on(RGB, np.maximum(ALPHA, 1), background)
    assert np.array_equal(decode(data, Reading(background=background)), expected)


def test_gray_with_alpha() -> None:
    data = encoded(Image.fromarray(np.dstack([GRAY, ALPHA])), "PNG")
    assert np.array_equal(decode(data), rgb_of(on(GRAY[:, :, None], ALPHA, 255)[:, :, 0]))
    assert np.array_equal(decode(data, GRAYSCALE), on(GRAY[:, :, None], ALPHA, 255))


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF"])
def test_one_bit_images_become_black_and_white(format: str) -> None:
    bits = GRAY > 128
    data = encoded(Image.fromarray(bits), format)
    assert np.array_equal(decode(data), rgb_of(bits * np.uint8(255)))
    assert np.array_equal(decode(data, GRAYSCALE), bits[:, :, None] * np.uint8(255))


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(256))], ids=["opaque", "one color", "table"])
def test_palette(transparency: int | bytes | None) -> None:
    image = Image.fromarray(RGB).quantize(64)
    options = {} if transparency is None else {"transparency": transparency}
    colors, indices = np.asarray(image.convert("RGB")), np.asarray(image)
    alpha = np.full(indices.shape, 255)
    if isinstance(transparency, int):
        alpha[indices == transparency] = 0
    elif transparency is not None:
        alpha = indices.astype(int)  # the table has the index itself as alpha
    assert np.array_equal(decode(encoded(image, "PNG", **options)), on(colors, alpha, 255))


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bit_gray_keeps_its_values(format: str, channels: int) -> None:
    deep = np.linspace(0, 65535, 12 * 17).round().astype(np.uint16).reshape(12, 17)
    data = encoded(Image.fromarray(deep), format)
    pixels = decode(data, Reading(channels, "uint16", high=(65535.0,)))
    assert pixels.dtype == np.uint16
    assert np.array_equal(pixels, np.repeat(deep[:, :, None], channels, axis=2))
    assert np.array_equal(decode(data, Reading(channels))[:, :, 0], np.round(deep / 257).astype(np.uint8))


def test_big_endian_sixteen_bit_tiff() -> None:
    deep = np.linspace(0, 65535, 20).round().astype(">u2").reshape(4, 5)
    header = b"MM\x00\x2a\x00\x00\x00\x08"
    fields = [(256, 5), (257, 4), (258, 16), (259, 1), (262, 1), (273, 8 + 2 + 12 * 8 + 4), (277, 1), (279, 40)]
    entries = b"".join(tag.to_bytes(2) + (4).to_bytes(2) + (1).to_bytes(4) + value.to_bytes(4) for tag, value in fields)
    data = header + len(fields).to_bytes(2) + entries + bytes(4) + deep.tobytes()
    assert np.array_equal(decode(data, Reading(1, "uint16", high=(65535.0,)))[:, :, 0], deep)


def test_floats_and_32_bits_keep_their_values() -> None:
    floats = np.linspace(-3, 800, 16, dtype=np.float32).reshape(4, 4)
    wide = np.full((4, 4), 70000, np.uint32)
    assert np.array_equal(decode(tiff(floats), Reading(1, "float32"))[:, :, 0], floats)
    assert np.array_equal(decode(tiff(wide), Reading(1, "uint32", high=(2.0**32,)))[:, :, 0], wide)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"keep_rgb": True}])
def test_jpeg_equals_pillow(options: dict[str, Any]) -> None:
    data = encoded(smooth(), "JPEG", quality=90, **options)
    with Image.open(io.BytesIO(data)) as file:
        expected = np.asarray(file.convert("RGB")).astype(int)
    assert np.abs(decode(data) - expected).max() <= 1
    assert np.abs(decode(data, GRAYSCALE)[:, :, 0] - np.asarray(smooth().convert("L")).astype(int)).mean() < 2


@pytest.mark.parametrize("mode", ["L", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_in_other_color_spaces(mode: str, channels: int) -> None:
    original = np.asarray(smooth().convert(mode).convert("RGB" if channels == 3 else "L")).astype(int)
    pixels = decode(encoded(smooth().convert(mode), "JPEG", quality=95), Reading(channels))
    assert pixels.shape == (40, 48, channels)
    assert np.abs(pixels.reshape(original.shape) - original).mean() < 3


def test_stray_bytes_are_damage() -> None:
    """Nobody knows what they replaced; of 16,288 good files none had any."""
    data = encoded(smooth(), "JPEG")
    at = data.index(b"\xff\xda")
    with pytest.raises(UndecodableImage, match=r"damaged JPEG .*extraneous"):
        decode(data[:at] + b"\x00\x00" + data[at:])
    assert np.array_equal(decode(data + b"after the end"), decode(data))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_damage_inside_a_jpeg_is_never_half_a_picture(mode: str, photograph: np.ndarray) -> None:
    data = encoded(Image.fromarray(photograph).convert(mode), "JPEG", quality=90, restart_marker_rows=4)
    middle = len(data) // 2
    for bad in (data[:middle] + bytes(len(data) - middle - 2) + data[-2:], data[:middle] + b"\0" * 800 + data[middle:]):
        with pytest.raises(UndecodableImage, match="JPEG"):
            decode(bad)


def test_array_is_writable() -> None:
    for format in ("JPEG", "PNG", "BMP"):
        pixels = decode(encoded(smooth(), format))
        assert pixels.flags.writeable
        assert pixels.flags.c_contiguous


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_truncated_file_is_never_half_an_image(format: str, options: dict[str, Any]) -> None:
    data = encoded(smooth(16, 16), format, **options)
    whole = decode(data)
    refused = 0
    for end in range(len(data)):
        try:
            pixels = decode(data[:end])
        except UndecodableImage:
            refused += 1
        else:  # the last bytes of a PNG hold no pixels
            assert np.array_equal(pixels, whole), f"{end} of {len(data)} bytes gave half an image"
    assert refused > 0.9 * len(data)


def test_truncated_jpeg_with_an_end_marker() -> None:
    data = encoded(smooth(), "JPEG", quality=95)
    with pytest.raises(UndecodableImage, match="truncated JPEG"):
        decode(data[: len(data) // 2] + b"\xff\xd9")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"\x00" * 100, "not a JPEG"),
        (encoded(smooth(), "ICO"), "not a JPEG"),
        (b"<html>", "not a"),
    ],
)
def test_other_files_are_undecodable(data: bytes, reason: str) -> None:
    with pytest.raises(UndecodableImage, match=reason):
        decode(data)


def test_reason_contains_no_memory_address() -> None:
    """Bad files are counted by their message, so it must not change between reads."""
    with pytest.raises(UndecodableImage) as caught:
        decode(b"nonsense")
    assert "0x" not in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(
    format=st.sampled_from(["JPEG", "PNG", "BMP", "TIFF", "WEBP"]),
    position=st.floats(0, 1, exclude_max=True),
    garbage=st.binary(min_size=1, max_size=6),
)
def test_damaged_bytes_give_an_image_or_undecodable(format: str, position: float, garbage: bytes) -> None:
    data = bytearray(encoded(smooth(16, 16), format))
    start = int(position * len(data))
    data[start : start + len(garbage)] = garbage
    try:
        pixels = decode(bytes(data))
    except UndecodableImage as error:
        reason = str(error)
    else:
        reason = "none"
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3
    assert reason
    assert "\n" not in reason


def test_header_with_gigapixels_is_refused_at_once() -> None:
    data = bytearray(encoded(smooth(), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = b"\xff\xdc\xff\xdc"
    with pytest.raises(UndecodableImage, match="65500 x 65500 pixels"):
        decode(bytes(data))


def test_large_images_do_not_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warnings are errors in these tests, as they may be in a run."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 12 * 17 - 1)
    assert np.array_equal(decode(encoded(Image.fromarray(RGB), "PNG")), RGB)


def test_the_pixel_limit_is_a_setting() -> None:
    data = encoded(Image.fromarray(RGB), "PNG")
    with pytest.raises(UndecodableImage, match=r"12 x 17 pixels; expected at most 203, raise data\.max_pixels"):
        decode(data, Reading(max_pixels=203))
    assert np.array_equal(decode(data, Reading(max_pixels=204)), RGB)


def test_the_limit_can_be_above_that_of_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    assert np.array_equal(decode(encoded(Image.fromarray(RGB), "PNG"), Reading(max_pixels=1000)), RGB)


@pytest.mark.parametrize("channels", [0, (), (0, 0), (-1,)])
def test_impossible_channels_are_a_user_error(channels: int | tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"data\.channels"):
        check_channels(channels)


# decoding at a smaller scale


@pytest.mark.parametrize("shape", [(40, 48), (41, 47), (8, 8), (5, 3), (1, 1)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
def test_shrunken_jpeg_has_whole_pixels(shape: tuple[int, int], channels: int, shrink: int) -> None:
    image = open_image(encoded(smooth(*shape), "JPEG", quality=95), Reading(channels))
    assert isinstance(image, Jpeg)
    assert image.shape == (*shape, channels)
    pixels = image.pixels(shrink)
    assert pixels.shape == (-(-shape[0] // shrink), -(-shape[1] // shrink), channels)
    assert pixels.flags.writeable


@pytest.mark.parametrize("shrink", [2, 4, 8])
def test_shrunken_jpeg_is_the_mean_of_its_blocks(photograph: np.ndarray, shrink: int) -> None:
    image = open_image(encoded(Image.fromarray(photograph), "JPEG", quality=95))
    assert isinstance(image, Jpeg)
    blocks = image.pixels().reshape(512 // shrink, shrink, 512 // shrink, shrink, 3).mean((1, 3))
    assert np.abs(image.pixels(shrink) - blocks).mean() < 3


def test_truncated_jpeg_is_detected_at_any_scale(photograph: np.ndarray) -> None:
    data = encoded(Image.fromarray(photograph), "JPEG")
    for shrink in (1, 2, 4, 8):
        image = open_image(data[: len(data) // 2])
        assert isinstance(image, Jpeg)
        with pytest.raises(UndecodableImage, match="truncated"):
            image.pixels(shrink)


def test_only_a_jpeg_is_opened_without_decoding() -> None:
    assert np.array_equal(open_image(encoded(Image.fromarray(RGB), "PNG")), RGB)  # type: ignore[arg-type]
