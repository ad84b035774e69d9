"""Every verb on images of many bands, of floats, of one band, and of mixed formats, through the command line."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter

import hardpatch
from hardpatch.cli import main
from hardpatch.data.decode import decode
from hardpatch.data.reading import Reading
from hardpatch.interchange.backbone import load_backbone

SMALL = [
    *("--data.image_size=16", "--model.patch_size=4", "--model.width=16", "--model.depth=2", "--model.heads=2"),
    *("--model.decoder_width=16", "--model.decoder_depth=2", "--model.decoder_heads=2", "--data.workers=0"),
    *("--steps=4", "--batch_size=6", "--train.device=cpu"),
]
CPU = ["--device", "cpu", "--workers", "0"]


def write_set(folder: Path, channels: int, dtype: str, per_class: int = 6, size: tuple[int, int] = (20, 28)) -> Path:
    """Write two classes of smooth noise, of 13 bits or of floats around 0."""
    rng = np.random.default_rng(0)
    for number in range(2):
        (folder / f"class{number}").mkdir(parents=True)
        for k in range(per_class):
            noise = gaussian_filter(rng.standard_normal((*size, channels)), (1 + 2 * number, 1 + 2 * number, 0))
            noise /= noise.std()
            pixels = noise if dtype == "float32" else (2000 + 500 * noise + 300 * number).clip(0, 8191)
            stored = pixels.astype(dtype)[..., 0] if channels == 1 else pixels.astype(dtype)
            layout = {} if channels == 1 else {"planarconfig": "contig"}
            path = folder / f"class{number}" / f"{k}.tif"
            tifffile.imwrite(path, stored, photometric="minisblack", **layout)  # type: ignore[arg-type]
    return folder


@pytest.mark.parametrize(("channels", "dtype"), [(13, "uint16"), (1, "float32"), (2, "uint16")])
def test_every_verb(channels: int, dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, run = str(write_set(tmp_path / "images", channels, dtype)), str(tmp_path / "run")
    labeled = ["--train", images, "--val", images]
    assert main(["pretrain", "--data", images, "--out", run, *SMALL]) == 0
    said = capsys.readouterr()
    assert f"12 of {channels} channels; 12 {dtype}" in said.out + said.err
    assert f"data.range auto: values of {dtype} from" in (tmp_path / "run" / "log.txt").read_text()
    reading = hardpatch.load(run).reading
    assert (reading.number, reading.dtype) == (channels, dtype)
    assert main(["knn", run, *labeled, *CPU]) == 0
    assert main(["linear", run, *labeled, *CPU]) == 0
    shown = ["--show", "3,2,1"] if channels > 3 else []
    assert main(["score", run, images, "--out", str(tmp_path / "score"), "--draws", "4", *shown, *CPU]) == 0
    assert (tmp_path / "score" / "contact_sheet.png").is_file()
    assert main(["embed", run, images, "--out", str(tmp_path / "e.parquet"), *CPU]) == 0
    vectors = np.stack(pq.read_table(tmp_path / "e.parquet")["embedding"].to_pylist())
    assert np.isfinite(vectors).all()
    finetune = ["--epochs", "2", "--warmup_epochs", "0", "--batch_size", "6", "--randaugment", "9", "--erase", "0.5"]
    out = str(tmp_path / "finetuned")
    assert main(["finetune", run, *labeled, "--out", out, *finetune, *CPU]) == 0
    assert 0 <= json.loads((tmp_path / "finetuned" / "result.json").read_text())["top1"] <= 1


def test_many_bands_in_timm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import timm

    images, run, out = (
        write_set(tmp_path / "images", 13, "uint16"),
        str(tmp_path / "run"),
        tmp_path / "timm.safetensors",
    )
    assert main(["pretrain", "--data", str(images), "--out", run, *SMALL]) == 0
    assert main(["export", run, "--to", "timm", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "pixels: uint16, (value - " in said
    code = next(line for line in said.splitlines() if "timm.create_model" in line).strip()
    network = eval(code, {"timm": timm}).eval()  # what the verb tells the user to type
    model = hardpatch.load(run)
    pixels = decode((images / "class0" / "0.tif").read_bytes(), model.reading)[:16, :16]
    inputs = model.normalize(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    with torch.no_grad():
        assert torch.allclose(network.forward_features(inputs), model.encode(inputs), atol=1e-5)
    assert load_file(out)["patch_embed.proj.weight"].shape[1] == 13
    assert load_backbone(out).reading == model.reading


def write_mixed(folder: Path) -> Path:
    """Write photographs of several sizes and formats, gray and in color, of 8 and of 16 bits."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(4):
        rgb = rng.integers(0, 256, (20 + k, 30, 3), dtype=np.uint8)
        Image.fromarray(rgb).save(folder / f"{k}.jpg")
        Image.fromarray(rgb[..., 0]).save(folder / f"{k}.png")
        Image.fromarray(rgb).save(folder / f"{k}.webp", lossless=True)
        tifffile.imwrite(folder / f"{k}.tif", rgb[..., 0].astype(np.uint16) * 16)
    return folder


def test_gray_rgb_and_deep_images_in_one_folder(tmp_path: Path) -> None:
    folder, run = write_mixed(tmp_path / "images"), tmp_path / "run"
    assert main(["pretrain", "--data", str(folder), "--out", str(run), *SMALL]) == 0
    reading = hardpatch.load(run).reading
    assert (reading.number, reading.dtype) == (3, "uint16")
    assert 3900 < reading.high[0] <= 4080


def test_shrink_keeps_depth_channels_and_turns_upright(tmp_path: Path) -> None:
    images = write_set(tmp_path / "images", 5, "uint16", per_class=2)
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (60, 40), "red").save(images / "class0" / "turned.jpg", exif=exif)
    out = tmp_path / "small"
    assert main(["shrink", str(images), "--side", "10", "--out", str(out), "--workers", "0"]) == 0
    (file,) = out.glob("*.parquet")
    rows = {Path(row["image"]["path"]).name: row["image"]["bytes"] for row in pq.read_table(file).to_pylist()}
    assert decode(rows["turned.jpg"]).shape == (15, 10, 3)
    deep = decode(rows["0.tif"], Reading(5, "uint16"))
    assert deep.shape == (10, 14, 5)
    assert deep.max() > 255


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        (["--data.channels", "3"], r"none of .*2 channels; expected 3: set data.channels to 2"),
        (["--data.channels", "[0,2]"], r"2 channels; data.channels asks for index 2"),
        (["--data.range", "[9,1]"], "data.range: expected -1e+38 <= lowest < highest <= 1e+38, got [9.0, 1.0]"),
        (["--data.mean", "[0.5,0.5,0.5]"], "data.mean: expected 2 numbers"),
        (
            ["--data.background", "[300,0,0]"],
            "data.background: expected for each number a whole number from 0 to 255, got [300, 0, 0]",
        ),
        (["--data.max_pixels", "0"], "data.max_pixels: expected a whole number from 1"),
        (["--data.max_pixels", "100"], "20 x 28 pixels; expected at most 100, raise data.max_pixels"),
    ],
)
def test_mistakes(settings: list[str], error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_set(tmp_path / "images", 2, "uint16", per_class=2)
    out = tmp_path / "run"
    assert main(["pretrain", "--data", str(images), "--out", str(out), *SMALL, *settings]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    for part in error.split(".*"):
        assert part.lstrip("r") in line
    assert not out.exists()


def test_maps_drawn_on_turned_photographs(tmp_path: Path) -> None:
    """What training sees of a photograph that is stored turned fits a map that was drawn on it upright."""
    from hardpatch.segment.data import open_segmentation
    from hardpatch.segment.labels import Labels

    exif = Image.Exif()
    exif[274] = 6
    for part in ("images", "labels"):
        (tmp_path / part / "train").mkdir(parents=True)
    labels = np.zeros((24, 32), np.uint8)
    labels[4:10, 3:20] = 1
    colors = np.zeros((24, 32, 3), np.uint8)
    colors[labels == 1] = (255, 0, 0)
    Image.fromarray(np.rot90(colors)).save(tmp_path / "images" / "train" / "a.png", exif=exif)
    Image.fromarray(labels).save(tmp_path / "labels" / "train" / "a.png")
    pairs = open_segmentation(tmp_path, "train", Labels(("background", "object"), (0, 1)))
    red = pairs.image(0, Reading(3))[..., 0] == 255
    assert np.array_equal(red, pairs.label_map(0) == 1)


def test_deep_images_for_a_model_of_8_bits_keep_their_depth(run: Path, tmp_path: Path) -> None:
    """Weights of photographs are fine-tuned, segment and detect on 16 bits without passing through 8."""
    images = write_set(tmp_path / "images", 1, "uint16", size=(32, 32))
    labeled = ["--train", str(images), "--val", str(images), "--out", str(tmp_path / "finetuned")]
    steps = ["--epochs", "1", "--warmup_epochs", "0", "--batch_size", "6"]
    assert main(["finetune", str(run), *labeled, *steps, *CPU]) == 0
    log = (tmp_path / "finetuned" / "log.txt").read_text()
    assert "12 images, 2 classes" in log
    model = hardpatch.load_classifier(tmp_path / "finetuned").model
    assert (model.reading.dtype, model.reading.high) == ("float32", (255.0,))
    pixels = decode((images / "class0" / "0.tif").read_bytes(), model.reading)
    assert len(np.unique(pixels)) > 256


def test_pages_as_channels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, run = tmp_path / "images", tmp_path / "run"
    folder.mkdir()
    for k in range(6):
        stack = np.random.default_rng(k).integers(0, 256, (4, 20, 24), dtype=np.uint8)
        tifffile.imwrite(folder / f"{k}.tif", stack, photometric="minisblack")
    assert main(["pretrain", "--data", str(folder), "--out", str(run), "--data.pages", "channels", *SMALL]) == 0
    assert hardpatch.load(run).reading.channels == 4
    assert main(["embed", str(run), str(folder), "--out", str(tmp_path / "e.parquet"), *CPU]) == 0
    assert "6 vectors" in capsys.readouterr().out


def test_channels_to_show_are_numbers(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "score"
    assert main(["score", str(run), "demo:test", "--out", str(out), "--show", "3,red"]) == 2
    assert "--show: expected numbers of channels, counted from 0, got 3,red" in capsys.readouterr().err
    assert not out.exists()
