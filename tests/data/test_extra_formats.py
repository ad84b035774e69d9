"""HEIC and JPEG XL, each read by a package of its own, without which these tests are skipped."""

import base64
import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import hardpatch
from hardpatch.data.decode import decode, read_header
from hardpatch.data.formats import pillow_formats
from hardpatch.data.reading import GRAY, RGB, Reading, UndecodableImage
from tests.data.pixels import DEEP, RNG, H, W, needs, numbers, on_white, read, saved, smooth

heic, jxl = needs("pillow_heif", "heic"), needs("pillow_jxl", "jxl")


@pytest.fixture(autouse=True)
def plugins() -> None:
    """Let Pillow write the formats, too."""
    pillow_formats()


def distance(data: bytes, expected: np.ndarray, reading: Reading = RGB) -> float:
    pixels = decode(data, reading)
    assert pixels.shape[:2] == read_header(data)[:2] == expected.shape[:2]
    return float(np.abs(pixels.reshape(expected.shape).astype(float) - expected).max())


def turned(orientation: int) -> tuple[bytes, np.ndarray]:
    """Return EXIF, and the picture as it has to be shown."""
    exif = Image.Exif()
    exif[274] = orientation
    return exif.tobytes(), decode(saved(Image.fromarray(smooth()), "PNG", exif=exif))


@pytest.mark.parametrize(
    ("name", "module", "data"),
    [
        ("HEIF", "pillow_heif", b"\0\0\0\x18ftypheic" + bytes(80)),
        ("JXL", "pillow_jxl", b"\xff\x0a" + bytes(80)),
        ("DICOM", "pydicom", bytes(128) + b"DICM" + bytes(80)),
    ],
)
def test_formats_say_what_is_read(name: str, module: str, data: bytes) -> None:
    (entry,) = (entry for entry in hardpatch.formats() if entry.name == name)
    assert entry.installed == (importlib.util.find_spec(module) is not None)
    assert bool(entry.install) != entry.installed
    reason = "broken|truncated|report" if entry.installed else "which needs a further package: pip install 'hardpatch"
    for function in (decode, read_header):
        with pytest.raises(UndecodableImage, match=reason):
            function(data)


# HEIC


def heif(pixels: np.ndarray, **options: Any) -> bytes:
    return saved(Image.fromarray(pixels), "HEIF", quality=95, **options)


@heic
def test_heic() -> None:
    colors = smooth()
    assert distance(heif(colors), colors) <= 6
    assert distance(heif(colors[:, :, 0]), colors[:, :, 0], GRAY) <= 6
    alpha = np.where(np.arange(96) < 48, 0, 255).astype(np.uint8)[None, :, None].repeat(64, 0)
    transparent = heif(np.concatenate([colors, alpha], 2))
    assert read_header(transparent).transparent
    assert distance(transparent, on_white(colors, alpha, 255)) <= 6


@heic
@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic_is_turned_once(orientation: int) -> None:
    exif, expected = turned(orientation)
    assert distance(heif(smooth(), exif=exif), expected) <= 6


@heic
@pytest.mark.parametrize("bits", [10, 12])
def test_heic_of_more_bits(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Color is read in 8 bits, gray in 16."""
    import pillow_heif

    monkeypatch.setattr(pillow_heif.options, "SAVE_HDR_TO_12_BIT", bits == 12)
    colors = smooth("uint16")
    for pixels, mode, reading, scale in ((colors, "RGB;16", Reading(3), 257), (colors[:, :, 0], "I;16", DEEP, 1)):
        file = io.BytesIO()
        pillow_heif.from_bytes(mode, (96, 64), pixels.tobytes()).save(file, quality=-1)
        assert pillow_heif.open_heif(file).info["bit_depth"] == bits
        assert distance(file.getvalue(), pixels / scale, reading) <= (6 if scale > 1 else 300)
        assert read_header(file.getvalue()).lost_bits == (bits - 8 if scale > 1 else 0)


@heic
def test_pictures_of_a_heic_are_pages() -> None:
    other = 255 - smooth()
    data = heif(smooth(), save_all=True, append_images=[Image.fromarray(other)])
    with pytest.raises(UndecodableImage, match="2 pages"):
        decode(data)
    assert np.abs(decode(data, page=1).astype(int) - other).max() <= 6


# JPEG XL


def without_reconstruction(data: bytes) -> bytes:
    """Leave out the box from which a JPEG XL is turned back to the JPEG that it was."""
    kept, at = b"", 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4]) or len(data)
        kept += b"" if data[at + 4 : at + 8] == b"jbrd" else data[at : at + size]
        at += size
    return kept


@jxl
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_jpeg_xl(channels: int) -> None:
    pixels = numbers(255, channels, dtype="uint8")
    data = saved(Image.fromarray(pixels.squeeze()), "JXL", lossless=True)
    colors = pixels[:, :, : 3 if channels > 2 else 1]
    expected = on_white(colors, pixels[:, :, -1:], 255) if channels in (2, 4) else colors
    assert np.allclose(read(data).reshape(expected.shape), expected, atol=0.51)


@jxl
def test_deep_jpeg_xl() -> None:
    values = numbers(65535)
    assert np.array_equal(read(saved(Image.fromarray(values), "JXL", lossless=True)), values)
    floats = RNG.random((H, W)).astype(np.float32)
    assert np.array_equal(read(saved(Image.fromarray(floats), "JXL", lossless=True)), floats)


@jxl
def test_jpeg_xl_in_color_loses_bits_and_says_so() -> None:
    """4 x 4 pixels of 16 bits, by libjxl through imagecodecs."""
    text = (
        "0000CN?1%F4GM<}0000KW^{RQYItlQ00000YItlQ00009YItmH3IG5AVrqD7WB&>m5c~iXEdmGx0RSukOE_ql!h`oE6wE;Jv_UAlc>$"
        "@2&<g|v;NdR!+;h)8_uO;OJ@?#m&pr3t(b3V-(b3V-(b3V-(b3V-PcL+IbO6xNC0QgHC1Vl"
    )
    data = base64.b85decode(text)
    assert decode(data).dtype == np.uint8
    assert read_header(data).lost_bits == 8


@jxl
@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_xl_is_turned_once(orientation: int, tmp_path: Path) -> None:
    """A former JPEG is turned by its EXIF, any other by the decoder."""
    exif, expected = turned(orientation)
    Image.fromarray(smooth()).save(tmp_path / "x.jpg", quality=95, exif=exif)
    with Image.open(tmp_path / "x.jpg") as image:
        data = saved(image, "JXL", lossless_jpeg=True)
    assert without_reconstruction(data) != data
    for file in (data, without_reconstruction(data)):
        assert np.abs(decode(file).astype(int) - expected).mean() < 3
        assert read_header(file)[:2] == expected.shape[:2]


@jxl
@pytest.mark.parametrize("size", [(8, 8), (40, 80), (30, 40), (7, 300), (300, 9000), (500, 500)])
def test_size_of_a_jpeg_xl_is_known_before_it_is_decoded(size: tuple[int, int]) -> None:
    for container in (False, True):
        data = saved(Image.new("L", size[::-1]), "JXL", use_container=container)
        assert read_header(data)[:2] == size
        with pytest.raises(UndecodableImage, match=f"{size[0]} x {size[1]} pixels; expected at most 63"):
            decode(data, Reading(max_pixels=63))


@jxl
def test_animations_in_jpeg_xl_are_not_their_first_frame() -> None:
    """Two frames of 4 x 4 pixels, by libjxl through imagecodecs."""
    data = base64.b85decode("{|XooK@$Lo2?zuM06+js7>gA`x$py!1ONa4000081O)&<081E)6~aLQ9)L6e0000000")
    with pytest.raises(UndecodableImage, match="an animation in JPEG XL"):
        decode(data)


@pytest.mark.parametrize(
    ("format", "lossy"), [pytest.param("HEIF", True, marks=heic), pytest.param("JXL", False, marks=jxl)]
)
def test_truncated_files_are_broken(format: str, lossy: bool) -> None:
    data = saved(Image.fromarray(smooth()), format, **({} if lossy else {"lossless": True}))
    for end in range(13, len(data) - 1, 40):
        with pytest.raises(UndecodableImage, match=r"broken or truncated|Unexpected end of file"):
            decode(data[:end])
