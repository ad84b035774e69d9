"""Rarer kinds of PNG, JPEG 2000, AVIF, PNM and NumPy files, against values that are computed by hand."""

import base64
import importlib.util
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hardpatch.data.decode import decode, read_header
from hardpatch.data.pillow import _bits
from hardpatch.data.reading import UndecodableImage
from tests.data.pixels import DEEP, H, W, numbers, on_white, packed, read, saved

# PNG


def png(pixels: np.ndarray, bits: int, color: int, *chunks: bytes) -> bytes:
    rows = [b"\0" + packed(row[None].repeat(H, 0), bits)[: -(-row.size * bits // 8)] for row in pixels.astype(int)]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", W, H, bits, color, 0, 0, 0))
    data = [b"\x89PNG\r\n\x1a\n", header, *chunks, chunk(b"IDAT", zlib.compress(b"".join(rows))), chunk(b"IEND", b"")]
    return b"".join(data)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_one_transparent_gray_of_a_png(bits: int) -> None:
    values, most = numbers((1 << bits) - 1), (1 << bits) - 1
    scaled = values * (255 // most) if bits < 8 else values
    assert np.array_equal(read(png(values, bits, 0)), scaled)
    clear = values == values[2, 3]
    data = png(values, bits, 0, chunk(b"tRNS", struct.pack(">H", values[2, 3])))
    assert read_header(data).transparent
    assert np.array_equal(read(data), np.where(clear, max(most, 255), scaled))


@pytest.mark.parametrize("bits", [8, 16])
def test_colors_of_a_png(bits: int) -> None:
    most = (1 << bits) - 1
    pixels = numbers(most, 4)
    colors = pixels[..., :3]
    assert np.array_equal(read(png(colors, bits, 2, chunk(b"gAMA", struct.pack(">I", 100000)))), colors)
    transparent = read(png(colors, bits, 2, chunk(b"tRNS", struct.pack(">HHH", *colors[2, 3]))))
    assert np.array_equal(transparent, np.where((colors == colors[2, 3]).all(2, keepdims=True), most, colors))
    assert np.allclose(read(png(pixels, bits, 6)), on_white(colors, pixels[..., 3:], most), atol=0.51)
    assert np.allclose(read(png(pixels[..., 2:], bits, 4)), on_white(pixels[..., 2], pixels[..., 3], most), atol=0.51)


def test_frames_of_an_animation_of_16_bits_are_not_the_first() -> None:
    frames = [Image.fromarray(numbers(65535)) for _ in range(2)]
    data = saved(frames[0], "PNG", save_all=True, append_images=frames[1:])
    assert np.array_equal(decode(data, DEEP, page=0)[:, :, 0], np.asarray(frames[0]))
    with pytest.raises(UndecodableImage, match="only the first frame"):
        decode(data, DEEP, page=1)


# JPEG 2000, AVIF, PNM, NumPy

WRITTEN = {
    "12 bits": (
        "|4;u>04V?f0000400004000000000000004000040000000000009dD0sm3}3;+NC0RR951ONg5TmS?>VE<$QB>(|Ka%Ew3Wn>^?"
        "c_2@4Wo}APMMofZWpZ<AZ*CwmE;TMR|BwI*0000004o3i|C8U~Xc8JZZlQwK`XsUCef^OW*Z^vVg}zwL(Eoq`*#"
    ),
    "signed 16 bits": (
        "|4;u>04V?f000040000400000000000000400004000000000000EBy0sm3}3;+NC0RR951ONg5TmS?>fd6CwB>(|Ka%Ew3Wn>^?"
        "c_2@4Wo}APMMofZWpZ<AZ*CwmE;TMR|BwI*0000004o3i|C7P~20$c7+#w`S4?Z5Lpk1;Hc4N1qh+DgSv74d)*#"
    ),
    "signed 12 bits": (
        "|4;u>04V?f000040000400000000000000400004000000000000D~u0sm3}3;+NC0RR951ONg5TmS?>VE<$QB>(|Ka%Ew3Wn>^?"
        "c_2@4Wo}APMMofZWpZ<AZ*CwmE;TMR|BwI*0000003-kb|C7(;Oc8_21mW0HDdMvB)hECd1eIhZ|Je"
    ),
    "color of 16 bits": (
        "|4;u>051Rl000040000400000000000000400004000000000000R#J0S^HI4*>!HQUDA90003200aa80smY81VDiQWB?@q0Yh?S"
        "VRU6=AYyqSPjF>!N>D{dAa-"
        "SPb7^mGATlmBE;Rp;015yA0000s00IA#-}sRb5*j&fp@P=>B(ddv{gD&c0BTd&LlN`X0BVMXzF5uB|9^mh|Je"
    ),
}
"""Codestreams of 4 x 4 pixels by OpenJPEG, through imagecodecs."""


def written(name: str) -> bytes:
    return base64.b85decode(WRITTEN[name])


def test_deep_jpeg_2000_keeps_its_values() -> None:
    """Pillow would fill 16 bits, count signed values from 0 on, and show the brightest colors black."""
    grid = np.arange(16).reshape(4, 4)
    assert np.array_equal(read(written("12 bits")), grid * 273)
    assert np.array_equal(read(written("signed 16 bits")), grid * 273 - 2000)
    assert np.array_equal(read(written("signed 12 bits")), grid * 256 - 2000)
    with pytest.raises(UndecodableImage, match="truncated JPEG 2000"):
        read(written("12 bits")[:-2])
    data = written("color of 16 bits")
    assert read_header(data)[:4] == (4, 4, 3, "uint16")
    if importlib.util.find_spec("imagecodecs"):
        assert np.array_equal(read(data), np.dstack([grid] * 3) * 4369)
    else:
        with pytest.raises(UndecodableImage, match=r"3 channels of 16 bits, which needs .*hardpatch\[tiff"):
            read(data)


def test_a_fourth_band_of_a_jpeg_2000_is_transparency_if_the_file_says_so() -> None:
    pixels = numbers(255, 4, dtype="uint8")
    data = saved(Image.fromarray(pixels), "JPEG2000")
    assert np.allclose(read(data), on_white(pixels[..., :3], pixels[..., 3:], 255), atol=0.51)
    assert np.array_equal(read(data.replace(b"cdef", b"free")), pixels)
    pair = Image.fromarray(pixels[..., 2:])
    assert np.array_equal(read(saved(pair, "JPEG2000", no_jp2=True)), pixels[..., 2:])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_avif_is_upright(orientation: int, photograph: np.ndarray) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    image = Image.fromarray(photograph[:64, :96])
    upright = decode(saved(image, "PNG", exif=exif)).astype(int)
    pixels = decode(saved(image, "AVIF", exif=exif, quality=95, subsampling="4:4:4"))
    assert pixels.shape == upright.shape
    assert np.abs(pixels - upright).mean() < 2


def test_avif_of_10_bits_says_what_is_lost() -> None:
    """Pillow writes 8 bits only, and refuses a file whose header alone says 10."""
    data = saved(Image.new("RGB", (16, 16)), "AVIF")
    assert read_header(data).lost_bits == 0
    eight, ten = b"pixi" + bytes(4) + b"\3\x08\x08\x08", b"pixi" + bytes(4) + b"\3\x0a\x0a\x0a"
    assert eight in data
    assert _bits(data.replace(eight, ten), "AVIF") == 10


@pytest.mark.parametrize("most", [100, 255, 1023, 65535])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("plain", [False, True])
def test_pnm(most: int, channels: int, plain: bool) -> None:
    """Values of 8 bits are scaled to 255, others kept."""
    values = numbers(most, channels)
    kind = {1: "5", 3: "6"} if not plain else {1: "2", 3: "3"}
    data = f"P{kind[channels]}\n# by hand\n{W} {H}\n{most}\n".encode()
    data += (
        " ".join(map(str, values.ravel())).encode() if plain else values.astype("u1" if most < 256 else ">u2").tobytes()
    )
    expected = values * 255 / most if most < 256 else values
    assert np.allclose(read(data).reshape(values.shape), expected, atol=1 if most == 100 else 0)
    with pytest.raises(UndecodableImage):
        read(data[: len(data) // 2])


@pytest.mark.parametrize("dtype", [">u2", ">f4", "<f2", "i8", "u8"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_layouts_of_numpy_files(dtype: str, order: Any, version: tuple[int, int]) -> None:
    values, file = np.asarray(numbers(1000, 5).astype(dtype), order=order), io.BytesIO()
    np.lib.format.write_array(file, values, version=version)
    assert np.array_equal(read(file.getvalue()), values)


@pytest.mark.parametrize("shape", [(), (5,), (0, 5), (2, 4, 5, 3)])
def test_numpy_files_that_are_no_image(shape: tuple[int, ...]) -> None:
    file = io.BytesIO()
    np.save(file, np.zeros(shape, np.uint8))
    with pytest.raises(UndecodableImage, match=r"array of shape|0 x 5 pixels"):
        read(file.getvalue())
