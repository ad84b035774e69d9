"""Sets of images of more than 8 bits or other channels: what is found in them, and their way to the device."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from hardpatch.data.augment import EvalTransform, TrainTransform
from hardpatch.data.bands import BandSource, as_read
from hardpatch.data.device_dataset import DeviceDataset
from hardpatch.data.loader import eval_batches, train_batches
from hardpatch.data.memory import InMemorySource
from hardpatch.data.reading import Reading
from hardpatch.data.sources import open_source
from hardpatch.data.survey import adapted, measured_range, resolve_channels, resolve_range, survey
from hardpatch.errors import UserError

RNG = np.random.default_rng(0)
DEEP = Reading(1, "uint16", high=(65535.0,))


@pytest.fixture
def deep_set(tmp_path: Path) -> Path:
    for k in range(12):
        pixels = RNG.integers(100, 4096, (20, 24), dtype=np.uint16)
        tifffile.imwrite(tmp_path / f"{k:02d}.tif", pixels)
    return tmp_path


def test_range_of_a_set_of_12_bits_is_measured(deep_set: Path) -> None:
    source = open_source(deep_set)
    found = survey(source)
    assert (dict(found.dtypes), dict(found.channels)) == ({"uint16": 12}, {1: 12})
    reading, (note,) = resolve_range("auto", source, found, Reading(1))
    assert reading.dtype == "uint16"
    assert reading.low[0] == pytest.approx(100, abs=10)
    assert reading.high[0] == pytest.approx(4095, abs=10)
    assert "data.range auto: values of uint16" in note
    assert resolve_range("type", source, found, Reading(1))[0].high == (65535.0,)
    explicit, _ = resolve_range([0, 4095], source, found, Reading(1))
    assert (explicit.low, explicit.high) == ((0.0,), (4095.0,))
    with pytest.raises(UserError, match=r"data\.range: expected \[low, high\] with low < high"):
        resolve_range([5, 5], source, found, Reading(1))
    with pytest.raises(UserError, match=r"such a pair for each of 1 channels"):
        resolve_range([[0, 1], [0, 2]], source, found, Reading(1))


def test_every_way_to_the_device_keeps_16_bits(deep_set: Path) -> None:
    source = open_source(deep_set)
    expected = torch.from_numpy(np.stack([source.image(i, DEEP) for i in range(12)])).permute(0, 3, 1, 2)
    (batch,) = eval_batches(source, EvalTransform((20, 24), DEEP), batch_size=12)
    assert torch.equal(batch.images, expected)
    whole = TrainTransform((20, 24), DEEP, scale=(1, 1), ratio=(1.2, 1.2), flip=0)
    held = InMemorySource(source, DEEP)
    assert held.image(3).dtype == np.uint16
    on_device = DeviceDataset(source, whole, torch.device("cpu"))
    for batches in (
        train_batches(source, whole, batch_size=12, seed=0),
        train_batches(held, whole, batch_size=12, seed=0),
        on_device.batches(batch_size=12, seed=0),
    ):
        batch = next(batches)
        assert batch.images.dtype == torch.uint16
        assert torch.equal(batch.images, expected[batch.indices])
        batches.close()


def test_channels_of_a_set(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "gray.png")
    assert resolve_channels("auto", survey(open_source(tmp_path))) == 1
    Image.new("RGB", (8, 8)).save(tmp_path / "rgb.png")
    assert resolve_channels("auto", survey(open_source(tmp_path))) == 3
    tifffile.imwrite(
        tmp_path / "five.tif",
        RNG.integers(0, 256, (8, 8, 5), dtype=np.uint8),
        photometric="minisblack",
        planarconfig="contig",
    )
    with pytest.raises(UserError, match=r"data\.channels: the images have different channels .*5 channels as .*five"):
        resolve_channels("auto", survey(open_source(tmp_path)))
    assert resolve_channels([4, 0], survey(open_source(tmp_path))) == (4, 0)


def test_images_deeper_than_the_models_are_said_and_kept(deep_set: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = open_source(deep_set)
    reading = adapted(Reading(1), source, "--train")
    assert reading.dtype == "float32"
    assert np.allclose(source.image(0, reading), source.image(0, DEEP) * (255 / 65535), atol=1e-3)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("--train: pixels of type uint16, up to 409")
    assert "of 65535" in line
    assert adapted(DEEP, source, "--train") is DEEP


def test_eight_bits_among_sixteen_are_brought_to_their_scale(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 51, np.uint8)).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "b.tif", np.full((4, 4), 819, np.uint16))
    source = open_source(tmp_path)
    reading = Reading(1, "uint16", high=(4095.0,))
    assert [int(source.image(i, reading)[0, 0, 0]) for i in range(2)] == [819, 819]
    measured = measured_range(source, [1], reading)
    assert (measured.least, measured.most, measured.odd) == (819, 819, "")


@pytest.mark.parametrize("setting", ["auto", "type", [0.0, 50.0]])
def test_values_that_are_no_numbers_are_counted_and_do_not_move_the_range(setting: Any, tmp_path: Path) -> None:
    for k in range(4):
        pixels = np.linspace(1000, 2000, 400, dtype=np.float32).reshape(20, 20)
        if k < 3:
            pixels[0, :5] = np.nan
        if k == 1:
            pixels[1, :2] = (np.inf, -np.inf)
        np.save(tmp_path / f"{k}.npy", pixels)
    source = open_source(tmp_path)
    reading, notes = resolve_range(setting, source, survey(source), Reading(1))
    assert notes[-1] == (
        "data.range: 4 images looked at: 17 values in 3 of them are NaN or infinite and become the ends of the range"
    )
    if setting == "auto":
        assert 1000 <= reading.low[0] < 1020, "NaN, which is read as a number later, is not one of the values"
        assert (source.image(0, reading)[0, :5] == reading.low[0]).all()
    np.save(tmp_path / "4.npy", np.full((20, 20), -1, np.int16))
    source = open_source(tmp_path / "4.npy")
    assert resolve_range("type", source, survey(source), Reading(1))[1] == [
        "data.range: 1 images looked at: 400 values in 1 of them are negative"
    ]
    np.save(tmp_path / "4.npy", np.full((20, 20), np.nan, np.float32))
    source = open_source(tmp_path / "4.npy")
    with pytest.raises(UserError, match=r"none of the values in 1 images is a number"):
        resolve_range("auto", source, survey(source), Reading(1))


# bands in files of their own


def write_bands(folder: Path, names: tuple[str, ...] = ("a", "sub/b")) -> np.ndarray:
    """Write four bands of 16 bits, of which the last has half the size."""
    pixels = RNG.integers(0, 65536, (len(names), 8, 10, 4), dtype=np.uint16)
    for image, name in zip(pixels, names, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        for band in range(4):
            plane = image[..., band] if band < 3 else image[::2, ::2, band]
            tifffile.imwrite(folder / f"{name}_B0{band}.tif", plane)
    return pixels


def test_bands_are_put_together(tmp_path: Path) -> None:
    pixels = write_bands(tmp_path)
    patterns = ("*_B02.tif", "*_B00.tif", "*_B03.tif")
    bands = as_read(open_source(tmp_path), Reading(3, bands=patterns))
    assert len(bands) == 2
    assert [Path(bands.name(i)).name for i in range(2)] == ["a_B02.tif", "b_B02.tif"]
    reading = Reading(3, "uint16", high=(65535.0,), bands=patterns)
    for i in range(2):
        image = bands.image(i, reading)
        assert image.shape == (8, 10, 3)
        assert np.array_equal(image[..., :2], pixels[i][..., [2, 0]])
    assert resolve_channels("auto", survey(bands)) == 3
    assert np.array_equal(bands.image(0, reading.with_channels((1,))), pixels[0][..., [0]])


@pytest.mark.parametrize(
    ("patterns", "error"),
    [
        (["*_B09.tif"], r"data\.bands: no image matches \*_B09\.tif; the first is "),
        (["B02.tif"], r"data\.bands: expected one \* in each pattern"),
        (["*_B00.tif", "*_B01.tif"], r"data\.bands: 1 of 2 images lack \*_B01\.tif; the first is .*a"),
    ],
)
def test_bands_that_are_not_there(patterns: list[str], error: str, tmp_path: Path) -> None:
    write_bands(tmp_path)
    (tmp_path / "a_B01.tif").unlink()
    with pytest.raises(UserError, match=error):
        BandSource(open_source(tmp_path), patterns)
