"""Statistics of all images: by hand, and as a training computes them."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

import hardpatch
from hardpatch.check.stats import stats
from hardpatch.data.reading import Reading
from hardpatch.data.sources import open_source
from hardpatch.data.statistics import channel_statistics
from hardpatch.data.survey import resolve_range, survey
from hardpatch.errors import UserError


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def save_tiff(path: Path, pixels: np.ndarray) -> None:
    tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig")


def test_two_images_by_hand(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.full((9, 9, 3), (0, 51, 255), np.uint8))
    save(tmp_path / "b.png", np.full((2, 2, 3), (51, 51, 0), np.uint8))
    found = stats(tmp_path, workers=0)
    assert found.mean == pytest.approx([0.1, 0.2, 0.5])
    assert found.std == pytest.approx([0.1, 1 / 255, 0.5])  # at least one gray level
    assert (found.images, found.channels, found.dtype, found.range) == (2, 3, "uint8", (0, 255))
    assert found.settings()[2:] == ["--data.range=[0,255]", "--data.channels=3"]


def test_gray_beside_color_is_read_as_color(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.full((3, 3, 3), (0, 0, 255), np.uint8))
    save(tmp_path / "b.png", np.full((3, 3), 255, np.uint8))
    assert stats(tmp_path, workers=0).mean == pytest.approx([0.5, 0.5, 1.0])


def test_it_agrees_with_what_a_training_computes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for k in range(4):
        save_tiff(tmp_path / f"{k}.tif", rng.integers(100, 3000, (20, 20, 2), dtype=np.uint16))
    found = stats(tmp_path, workers=0)
    source = open_source(tmp_path)
    reading, _ = resolve_range([*found.range], source, survey(source), Reading(2))
    mean, std = channel_statistics(source, reading, 0)
    assert found.mean == pytest.approx(mean, abs=1e-6)
    assert found.std == pytest.approx(std, abs=1e-6)
    measured, _ = resolve_range("auto", source, survey(source), Reading(2))
    assert found.range == pytest.approx((measured.low[0], measured.high[0]), abs=3)


def test_range_of_sixteen_bits(tmp_path: Path) -> None:
    values = np.arange(1000, dtype=np.uint16).reshape(20, 50)
    tifffile.imwrite(tmp_path / "a.tif", values)
    found = stats(tmp_path, workers=0)
    assert found.percentiles == {"0": 0, "0.1": 0, "50": 499, "99.9": 998, "100": 999}
    assert list(found.range) == [0, 998]
    assert found.mean == pytest.approx([(values / 998).clip(0, 1).mean()])


def test_values_that_are_no_numbers_are_counted(tmp_path: Path) -> None:
    pixels = np.full((4, 4), 2.0, np.float32)
    pixels[0] = [np.nan, np.inf, -np.inf, -1.0]
    np.save(tmp_path / "a.npy", pixels)
    found = stats(tmp_path, workers=0)
    assert (found.missing, found.negative) == (3, 1)


def test_broken_images_are_left_out_and_named(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.full((3, 3, 3), 51, np.uint8))
    (tmp_path / "b.png").write_bytes(b"")
    found = stats(tmp_path, workers=0)
    assert found.mean == pytest.approx([0.2] * 3)
    assert found.broken == [f"{tmp_path / 'b.png'}: empty file"]
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the 2 images can be decoded; the first: .*a\.png: empty file"):
        stats(tmp_path, workers=0)


def test_different_channels_are_refused_as_a_training_does(tmp_path: Path) -> None:
    for channels in (2, 5):
        save_tiff(tmp_path / f"{channels}.tif", np.zeros((4, 4, channels), np.uint8))
    with pytest.raises(UserError, match=r"data\.channels: .*2 channels as .*2\.tif; 5 channels as .*5\.tif"):
        stats(tmp_path, workers=0)


def test_formats_name_package_and_extra() -> None:
    found = {entry.name: entry for entry in hardpatch.formats()}
    assert found["TIFF"].extensions == (".tif", ".tiff")
    assert found["JPEG"].installed
    assert found["JPEG"].package.startswith("simplejpeg ")
    for name, extra in (("HEIF", "heic"), ("JXL", "jxl"), ("DICOM", "dicom")):
        assert found[name].install == ("" if found[name].installed else f"pip install 'hardpatch[{extra}]'")
