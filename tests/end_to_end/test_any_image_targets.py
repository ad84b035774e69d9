"""hardpatch detect and segment on 13 bands, 16-bit gray and floats: the model sees the values of the files."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import hardpatch
from hardpatch.cli import main
from hardpatch.data.reading import Reading
from hardpatch.detect.batches import ScaleJitter, evaluation_batches, training_batches
from hardpatch.detect.coco import read_coco
from hardpatch.detect.model import Canvas
from hardpatch.segment.batches import SegmentationTransform, evaluation_pairs, segmentation_batches
from hardpatch.segment.data import open_segmentation
from hardpatch.segment.labels import find_labels
from hardpatch.train.metrics import read_metrics
from tests.end_to_end.test_any_image import CPU, SMALL

SIZE = (24, 32)
BAND = 7
"""The only band in which the object differs from the ground."""
DETECT = [
    *("--image_size", "32", "--batch_size", "2", "--window", "3", "--channels", "8", "--head_width", "16"),
    *("--rois", "8", "--global_blocks", "2", "--log_every", "1", "--lr", "2e-3"),
]
SEGMENT = [
    *("--batch_size", "4", "--crop", "24", "--short_side", "24", "--channels", "8", "--warmup_steps", "1"),
    *("--log_every", "10"),
]


def write_image(folder: Path, number: int, kind: str, inside: np.ndarray, rng: np.random.Generator) -> str:
    """Write noise with a brighter object, and return the name of the file."""
    name = f"{number}.png" if kind == "gray16" else f"{number}.tif"
    if kind == "float":
        pixels = rng.normal(0, 1, SIZE).astype(np.float32)
        pixels[inside] += 5
    else:
        pixels = rng.integers(500, 3000, (*SIZE, 13) if kind == "bands" else SIZE).astype(np.uint16)
        (pixels[..., BAND] if kind == "bands" else pixels)[inside] += 5000
    if kind == "bands":
        tifffile.imwrite(folder / name, pixels, photometric="minisblack", planarconfig="contig")
    elif kind == "gray16":
        Image.fromarray(pixels).save(folder / name)
    else:
        tifffile.imwrite(folder / name, pixels)
    return name


def stored(path: Path) -> np.ndarray:
    """Read ``[H, W, C]`` without this project's code."""
    pixels = np.array(Image.open(path)) if path.suffix == ".png" else tifffile.imread(path)
    return pixels.reshape(*SIZE, -1)


def write_data(root: Path, kind: str, train: int = 16, val: int = 4) -> Path:
    """Write images, their label maps, and a COCO file for each split: a rectangle of 14 x 16 pixels in each image."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        folders = root / "images" / split, root / "labels" / split
        for folder in folders:
            folder.mkdir(parents=True)
        images, annotations = [], []
        for k in range(count):
            top, left = int(rng.integers(0, 8)), int(rng.integers(0, 12))
            inside = np.zeros(SIZE, bool)
            inside[top : top + 14, left : left + 16] = True
            name = write_image(folders[0], k, kind, inside, rng)
            Image.fromarray(inside.astype(np.uint8)).save(folders[1] / f"{k}.png")
            images.append({"id": k, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
            annotations.append({"id": k, "image_id": k, "category_id": 1, "bbox": [left, top, 16, 14]})
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "field"}]}
        (root / f"{split}.json").write_text(json.dumps(content))
    (root / "classes.txt").write_text("ground\nfield\n")
    return root


def pretrained(data: Path, out: Path) -> str:
    """Pre-train four blocks, which UperNet needs."""
    deep = ["--data.image_size=24", "--model.width=32", "--model.depth=4"]
    assert main(["pretrain", "--data", str(data / "images" / "train"), "--out", str(out), *SMALL, *deep]) == 0
    return str(out)


@pytest.mark.parametrize(
    ("kind", "reading", "steps"),
    [("bands", (13, "uint16"), (30, 40)), ("gray16", (1, "uint16"), (2, 2)), ("float", (1, "float32"), (2, 2))],
)
def test_detectors_and_segmenters(
    kind: str, reading: tuple[int, str], steps: tuple[int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_data(tmp_path / "data", kind)
    run = pretrained(data, tmp_path / "run")
    capsys.readouterr()
    out = tmp_path / "detector"
    paths = [f"--{name}={data / 'images' / name}" for name in ("train", "val")]
    paths += [f"--annotations={data / 'train.json'}", f"--val_annotations={data / 'val.json'}"]
    assert main(["detect", run, *paths, "--out", str(out), "--steps", str(steps[0]), *DETECT, *CPU]) == 0
    said = capsys.readouterr().err
    assert "--val: COCO JSON: 4 images, 1 class, 4 boxes" in said
    assert "More samples per pixel" not in said  # Pillow's, which does not read many bands
    losses = [row["loss"] for row in read_metrics(out / "metrics.jsonl") if "loss" in row]
    assert np.isfinite(losses).all()
    canvas = hardpatch.load_detector(out).model.transform
    assert isinstance(canvas, Canvas)
    assert (canvas.reading.number, canvas.reading.dtype) == reading
    paths = ["--train", str(data), "--val", str(data), "--out", str(tmp_path / "segmenter")]
    assert main(["segment", run, *paths, "--steps", str(steps[1]), *SEGMENT, *CPU]) == 0
    said = capsys.readouterr().err
    assert "value 1 -> field: train  29.17%" in said
    assert "More samples per pixel" not in said
    segmenter = hardpatch.load_segmenter(tmp_path / "segmenter").model
    assert (segmenter.reading.number, segmenter.reading.dtype) == reading
    for picture in (out / "pictures" / "detections.png", tmp_path / "segmenter" / "pictures" / "predictions.png"):
        assert picture.is_file()
    if kind == "bands":  # trained long enough to find the object, which one band of 13 shows
        assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
        per_class = json.loads((tmp_path / "segmenter" / "result.json").read_text())["per_class"]
        assert per_class[1]["iou"] > 0.5  # 0.29 for all pixels as field


@pytest.mark.parametrize("kind", ["bands", "gray16", "float"])
def test_the_model_sees_the_values_of_the_files(kind: str, tmp_path: Path) -> None:
    data = write_data(tmp_path, kind, train=3, val=1)
    folder = data / "images" / "train"
    channels = 13 if kind == "bands" else 1
    low, high = (-2.0, 8.0) if kind == "float" else (400.0, 9000.0)
    reading = Reading(channels, "float32" if kind == "float" else "uint16", (low,), (high,))
    annotations = read_coco(data / "train.json")
    files = [folder / image.file for image in annotations.images]

    fitted = ScaleJitter(32, (1.0, 1.0), flip=0.0)
    batches = training_batches(annotations, folder, fitted, batch_size=3, seed=0, reading=reading, masks=False)
    samples = next(batches).samples
    batches.close()
    samples += next(iter(evaluation_batches(annotations, folder, 32, batch_size=3, reading=reading))).samples
    assert len(samples) == 6
    canvas = Canvas(32, [0.0] * channels, [1.0] * channels, reading)
    for sample in samples:
        pixels = stored(files[sample.image_index]).transpose(2, 0, 1)
        assert np.array_equal(sample.image.numpy(), pixels)
        expected = ((pixels.astype(np.float32) - low) / (high - low)).clip(0, 1)
        seen = canvas([sample.image])[0].tensors[0]
        assert np.allclose(seen[:, : SIZE[0]].numpy(), expected, atol=1e-6)
        assert (seen[:, SIZE[0] :] == 0).all()

    pairs = open_segmentation(data, "train", find_labels(data))
    transform = SegmentationTransform(
        SIZE, 24, (1.0, 1.0), flip=0.0, photometric=False, fill=(0.0,) * channels, reading=reading
    )
    crops = next(segmentation_batches(pairs, transform, batch_size=3, reading=reading, seed=0)).images
    whole = [pair.image for pair in evaluation_pairs(pairs, 24, reading)]
    expected_set = {stored(file).transpose(2, 0, 1).tobytes() for file in files}
    for images in (crops, whole):
        assert {torch.as_tensor(image).numpy().tobytes() for image in images} == expected_set


def test_weights_of_a_file_for_each_band_are_refused(fails: Callable[..., str], tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", "gray16", train=6, val=1)
    split = data / "images" / "train"
    for k in range(6):
        Image.fromarray(stored(split / f"{k}.png")[..., 0]).save(split / f"{k}_red.png")
        (split / f"{k}.png").rename(split / f"{k}_blue.png")
    run = tmp_path / "run"
    bands = ["--data.bands", "['*_red.png', '*_blue.png']", "--data.image_size=24", "--model.depth=4"]
    assert main(["pretrain", "--data", str(split), "--out", str(run), *SMALL, *bands]) == 0
    data = write_data(tmp_path / "one", "gray16", train=2, val=1)
    sets = ["--train", data, "--val", data, "--out", tmp_path / "out"]
    line = "RUN: was trained on a file for each band (*_red.png, *_blue.png)"
    assert line in fails("segment", run, *sets, "--steps", 1, *SEGMENT, *CPU)
    paths = [f"--annotations={data / 'train.json'}", f"--val_annotations={data / 'val.json'}"]
    assert line in fails("detect", run, *sets, *paths, "--steps", 1, *DETECT, *CPU)
