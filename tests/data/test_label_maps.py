"""Label files: the values that stand in them, whatever the format."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from hardpatch.data.label_maps import LabelMap, read_label_map, read_object_mask
from hardpatch.data.reading import UndecodableImage

VALUES = np.array([[0, 1, 2], [2, 0, 1]])
PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0]


def palette_image(values: np.ndarray = VALUES) -> Image.Image:
    image = Image.fromarray(values.astype(np.uint8))
    image.putpalette(PALETTE)
    return image


@pytest.mark.parametrize("ending", ["png", "tif", "bmp"])
def test_8_bits_and_palettes(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"a.{ending}"
    Image.fromarray(VALUES.astype(np.uint8)).save(file)
    content = read_label_map(file)
    assert (content.values.tolist(), content.kind) == (VALUES.tolist(), "gray")
    palette_image().save(file)
    content = read_label_map(file)
    assert (content.values.tolist(), content.kind) == (VALUES.tolist(), "palette")
    assert content.colors()[0].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    Image.fromarray(content.colors()).save(file)
    assert read_label_map(file).kind == "RGB"
    assert (read_label_map(file).values == content.colors()).all()


def test_gif_and_1_bit(tmp_path: Path) -> None:
    palette_image().save(tmp_path / "a.gif")
    assert (read_label_map(tmp_path / "a.gif").colors() == read_label_map_of(tmp_path, palette_image()).colors()).all()
    content = read_label_map_of(tmp_path, Image.fromarray(VALUES > 0))
    assert (content.values.tolist(), content.kind) == ([[0, 1, 1], [1, 0, 1]], "1-bit")
    assert content.colors()[0].tolist() == [[0] * 3, [255] * 3, [255] * 3]


def read_label_map_of(tmp_path: Path, image: Image.Image) -> LabelMap:
    image.save(tmp_path / "of.png")
    return read_label_map(tmp_path / "of.png")


@pytest.mark.parametrize(
    "dtype", [np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64, np.float16, np.float32, np.float64]
)
def test_wide_types_of_tiff(tmp_path: Path, dtype: type) -> None:
    values: np.ndarray = (VALUES * 500).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", values)
    content = read_label_map(tmp_path / "a.tif")
    assert (content.values.tolist(), content.kind) == ((VALUES * 500).tolist(), "gray")
    assert content.values.dtype.kind in "iu"


def test_unsigned_values_of_32_bits(tmp_path: Path) -> None:
    values = np.array([[0, 1, 2**31], [2**31 - 1, 2**32 - 1, 7]], np.uint32)
    tifffile.imwrite(tmp_path / "x.tif", values)
    assert np.array_equal(read_label_map(tmp_path / "x.tif").values, values)


def test_16_bit_png(tmp_path: Path) -> None:
    values = np.array([[26001, 65535]], dtype=np.uint16)
    assert read_label_map_of(tmp_path, Image.fromarray(values)).values.tolist() == values.tolist()


def test_alpha_is_dropped_only_where_it_hides_nothing(tmp_path: Path) -> None:
    colors = np.zeros((2, 3, 4), dtype=np.uint8)
    colors[..., 0], colors[..., 3] = VALUES, 255
    content = read_label_map_of(tmp_path, Image.fromarray(colors))
    assert (content.values.tolist(), content.kind) == (colors[..., :3].tolist(), "RGB")
    gray = Image.merge("LA", [Image.fromarray(colors[..., 0]), Image.fromarray(colors[..., 3])])
    assert read_label_map_of(tmp_path, gray).values.tolist() == VALUES.tolist()
    transparent = palette_image()
    transparent.save(tmp_path / "a.png", transparency=0)  # how VOC's maps are often re-saved
    assert read_label_map(tmp_path / "a.png").values.tolist() == VALUES.tolist()
    colors[0, :2, 3] = 17
    with pytest.raises(UndecodableImage, match=r"of\.png: .* alpha channel that is not opaque in 2 pixels; save it"):
        read_label_map_of(tmp_path, Image.fromarray(colors))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_orientation_is_applied(tmp_path: Path, orientation: int, ending: str) -> None:
    turned = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.T,
        6: lambda a: np.rot90(a, 3),
        7: lambda a: a[::-1, ::-1].T,
        8: lambda a: np.rot90(a),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"a.{ending}"
    for image in (Image.fromarray(VALUES.astype(np.uint8)), palette_image(), Image.fromarray(VALUES.astype(np.uint16))):
        image.save(file, exif=exif)
        assert read_label_map(file).values.tolist() == turned[orientation](VALUES).tolist()


def pages(file: Path) -> None:
    Image.fromarray(VALUES.astype(np.uint8)).save(file, "TIFF", save_all=True, append_images=[palette_image()])


def jpeg(file: Path) -> None:
    Image.fromarray(VALUES.astype(np.uint8)).save(file, "JPEG")


def cmyk(file: Path) -> None:
    Image.new("CMYK", (3, 2)).save(file, "TIFF")


def deep_rgb(file: Path) -> None:
    """Write a PNG of one pixel with 16 bits in each of three channels, which Pillow does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" + struct.pack(">HHH", 7, 7, 7))
    parts = chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (pages, "got 2 pages; keep the one that has the classes"),
        (jpeg, "got JPEG, which changes the values; save it as PNG, or for a mask of two classes see --threshold"),
        (cmyk, "got the color mode CMYK; save it as gray, palette or RGB"),
        (deep_rgb, "got several channels of 16 bits; save class ids as gray, or colors with 8 bits"),
        (
            lambda file: tifffile.imwrite(file, np.full((2, 3, 3), 7, np.uint16), photometric="rgb"),
            "got several channels of 16 bits",
        ),
        (lambda file: tifffile.imwrite(file, VALUES / 2), r"0\.5 among them in 2 pixels; save whole numbers"),
        (
            lambda file: tifffile.imwrite(file, np.array([[np.nan, 1]], np.float32)),
            "float32 .* nan among them in 1 pixels",
        ),
        (lambda file: tifffile.imwrite(file, np.zeros((5, 4, 7), np.int64)), r"got a TIFF of 5 pages"),
        (lambda file: tifffile.imwrite(file, VALUES.astype(np.complex64)), "of type complex64; expected whole"),
        (lambda file: file.write_bytes(b"II*\0rubbish"), r"cannot read it \("),
        (lambda file: file.write_bytes(b"<html>"), r"cannot read it \(not a PNG, TIFF, BMP or GIF file\)"),
        (lambda file: file.mkdir(), "cannot read it (.*directory)"),
    ],
)
def test_what_is_no_label_map(tmp_path: Path, write: Callable[[Path], None], reason: str) -> None:
    write(tmp_path / "a.tif")
    with pytest.raises(UndecodableImage, match=reason) as error:
        read_label_map(tmp_path / "a.tif")
    assert str(error.value).startswith(f"{tmp_path / 'a.tif'}: ")
    assert "\n" not in str(error.value)


def test_truncated_png(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 9, (64, 64), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(UndecodableImage, match=r"a\.png: cannot read it"):
        read_label_map(tmp_path / "a.png")


def test_object_masks(tmp_path: Path) -> None:
    """Any value but black is the object, except in JPEG files, which are never quite black."""
    truth = np.zeros((32, 32), dtype=bool)
    truth[8:20, 4:24] = True
    images = {
        "ones.png": Image.fromarray(truth.astype(np.uint8)),
        "white.png": Image.fromarray(truth.astype(np.uint8) * 255),
        "bits.png": Image.fromarray(truth),
        "wide.png": Image.fromarray(truth.astype(np.uint16) * 300),
        "lossy.jpg": Image.fromarray(truth.astype(np.uint8) * 255),
        "color.bmp": Image.fromarray(truth[..., None] * np.array([0, 0, 9], np.uint8)),
    }
    white_is_0 = Image.fromarray((~truth).astype(np.uint8))
    white_is_0.putpalette([255, 255, 255, 0, 0, 0])
    for name, image in {**images, "palette.png": white_is_0}.items():
        image.save(tmp_path / name, quality=60) if name.endswith("jpg") else image.save(tmp_path / name)
        assert (read_object_mask(tmp_path / name) == truth).all(), name
