"""hardpatch segment: from a run and labeled pixels to a folder with measures, pictures and weights."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import hardpatch
from hardpatch.choices import WeightsName
from hardpatch.cli import main
from hardpatch.segment.data import open_segmentation
from hardpatch.segment.labels import find_labels
from hardpatch.segment.measure import evaluate
from hardpatch.train.metrics import read_metrics
from tests.end_to_end.conftest import SMALL
from tests.segment.small import blocks, write_pair

MACHINE = ["--device", "cpu", "--workers", "0"]
SHORT = [
    *("--steps", "6", "--batch_size", "2", "--crop", "16", "24", "--short_side", "24", "--channels", "8"),
    *("--warmup_steps", "1", "--stride", "8", "--val_every", "1.2", "--log_every", "1"),
]

WEIGHTS: tuple[WeightsName, ...] = get_args(WeightsName)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """Pre-train four blocks, which UperNet needs."""
    folder = tmp_path_factory.mktemp("runs") / "four_blocks"
    four = [*SMALL, "--model.depth", "4", "--model.width", "32"]
    assert main(["pretrain", *four, "--data", str(images), "--steps", "2", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data")


def write_data(root: Path) -> Path:
    """Write five and three images of 24 x 32 px with three classes, and some pixels that are ignored."""
    for split, count in (("train", 5), ("val", 3)):
        for k in range(count):
            values = blocks(k)
            values[:2] = 7
            write_pair(root / "images" / split, root / "labels" / split, f"{split}_{k}", values)
    (root / "classes.txt").write_text("0 sky\n1 road\n2 car\n7 nothing (ignore)\n")
    return root


def command(encoder: Path, data: Path, out: Path, *options: object) -> list[str]:
    sets = ("--train", str(data), "--val", str(data), "--out", str(out))
    return ["segment", str(encoder), *sets, *SHORT, *MACHINE, *map(str, options)]


def read_result(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return content


def test_a_run_becomes_a_segmenter(
    encoder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    assert main(command(encoder, data, out, "--inference", "slide", "--json", tmp_path / "result.json")) == 0
    printed = capsys.readouterr()
    assert "6 steps done, 3 images evaluated" in printed.out
    assert "(slide inference)" in printed.out
    assert "--train: 5 images, 3 classes" in printed.err
    assert "--val: 3 images, 3 classes" in printed.err
    assert sorted(path.name for path in out.iterdir()) == [
        *("README.md", "checkpoints", "config.yaml", "environment.json", "log.txt", "metrics.jsonl", "pictures"),
        *("report.html", "result.json", "segmenter.safetensors", "tensorboard"),
    ]
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert (config["verb"], config["run"], config["train"]) == ("segment", str(encoder), str(data))
    assert config["crop"] == [16, 24]
    assert config["stride"] == [8, 8]
    assert config["layer_decay"] == 0.75  # of the preset
    rows = read_metrics(out / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    # An epoch is 5 / 2 steps: 1.2 epochs are 3 steps.
    assert ["miou" in row for row in rows] == [False, False, True, False, False, True]

    result = read_result(out)
    assert result == json.loads((tmp_path / "result.json").read_text())
    assert list(result)[:8] == ["verb", "run", "data", "images", "classes", "left_out", "seconds", "version"]
    assert (result["verb"], result["run"], result["classes"]) == ("segment", str(encoder), 3)
    assert (result["data"], result["images"]) == ({"train": str(data), "val": str(data)}, {"train": 5, "val": 3})
    assert result["left_out"] == {"train, undecodable": 0, "val, undecodable": 0}
    assert result["version"] == hardpatch.__version__
    assert list(result["train_pixels"]) == ["sky", "road", "car"]
    assert sum(result["train_pixels"].values()) == 5 * 22 * 32
    assert result["miou"] == rows[-1]["miou"]
    everywhere = result["one_class_everywhere"]
    assert everywhere["class"] == max(result["train_pixels"], key=result["train_pixels"].__getitem__)
    true = {entry["name"]: entry["pixels"] for entry in result["per_class"]}
    assert everywhere["pixel_accuracy"] == true[everywhere["class"]] / sum(true.values())
    assert sum(entry["predicted"] for entry in result["per_class"]) <= 3 * 24 * 32
    assert f"learned: {result['verdict']['learned']}; " in printed.out
    assert "6 steps of 2: with fewer than 300 the result means little; --preset small takes 2,000" in printed.err
    assert [entry["name"] for entry in result["per_class"]] == ["sky", "road", "car"]
    assert sum(entry["pixels"] for entry in result["per_class"]) == 3 * 22 * 32
    ious = [entry["iou"] for entry in result["per_class"] if entry["iou"] is not None]
    assert result["miou"] == pytest.approx(sum(ious) / len(ious))
    assert f"mIoU {result['miou']:.2%}" in printed.out
    for name in ("curves.png", "predictions.png"):
        with Image.open(out / "pictures" / name) as picture:
            assert min(picture.size) > 200

    # The saved segmenter gives the measures of the run.
    segmenter = hardpatch.load_segmenter(out)
    assert segmenter.classes == ("sky", "road", "car")
    assert segmenter.inference.mode == "slide"
    pairs = open_segmentation(data, "val", find_labels(data))
    evaluation = evaluate(segmenter.model, pairs, segmenter.inference, device=torch.device("cpu"))
    assert evaluation.measures.miou == pytest.approx(result["miou"])


def test_weights_to_start_from(encoder: Path, data: Path, tmp_path: Path) -> None:
    """The encoder starts from the run's student or teacher, or from its random initialization."""
    first = {}
    for weights in WEIGHTS:
        out = tmp_path / weights
        assert main(command(encoder, data, out, "--weights", weights, "--steps", 2, "--lr", 1e-12)) == 0
        first[weights] = hardpatch.load_segmenter(out).model.encoder.state_dict()["blocks.0.attn.qkv.weight"]
    for weights in WEIGHTS:
        expected = hardpatch.load(encoder, weights).host.encoder.state_dict()["blocks.0.attn.qkv.weight"]
        torch.testing.assert_close(first[weights], expected)
    assert not torch.allclose(first["random"], first["student"])


def test_bad_pairs_are_counted_and_named(
    encoder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = data / "labels" / "train" / "train_2.png"
    bad.write_bytes(bad.read_bytes()[:40])
    out = tmp_path / "out"
    assert main(command(encoder, data, out, "--max_bad_fraction", 0.1)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "max_bad_fraction: 1 of 5 images (20.00%)" in error
    assert str(bad) in error
    assert not out.exists()
    assert main(command(encoder, data, out, "--max_bad_fraction", 0.3)) == 0
    assert "--train: 4 images, 3 classes, left out 1 that cannot be decoded" in capsys.readouterr().err
    assert f"cannot decode {bad}" in (out / "log.txt").read_text()
    result = read_result(out)
    assert result["images"] == {"train": 4, "val": 3}
    assert result["left_out"] == {"train, undecodable": 1, "val, undecodable": 0}


def test_a_broken_validation_image_is_found_before_training(
    fails: Callable[..., str], encoder: Path, data: Path, tmp_path: Path
) -> None:
    image = data / "images" / "val" / "val_1.png"
    image.write_bytes(image.read_bytes()[:60])
    out = tmp_path / "out"
    message = fails(*command(encoder, data, out))
    assert "max_bad_fraction: 1 of 3 images (33.33%)" in message
    assert str(image) in message
    assert not out.exists()
    assert main(command(encoder, data, out, "--max_bad_fraction", 0.5)) == 0
    assert read_result(out)["images"] == {"train": 5, "val": 2}


def test_masks_of_0_and_255(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both classes are learned and measured, and the terminal says before training how they were read."""
    data = tmp_path / "data"
    for k in range(4):
        write_pair(data / "images", data / "masks", f"{k}", 255 * blocks(k, classes=2))
        (data / "masks" / f"{k}.png").rename(data / "masks" / f"{k}_mask.png")
    assert main(command(encoder, data, tmp_path / "out", "--classes", 2)) == 0
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    said = "masks of 0 and 255: 255 is read as 'class 1' and not ignored; to ignore it, say --ignore 255"
    assert lines.index(said) < lines.index("6 steps of 2 images")
    assert f"--train: 4 pairs in {data / 'images'} and {data / 'masks'} (stem + _mask)" in lines
    assert all(entry["iou"] is not None and entry["pixels"] > 0 for entry in read_result(tmp_path / "out")["per_class"])
    again = ["segment", "--resume", "--out", str(tmp_path / "out")]
    assert main(again) == 0


def test_smoothed_masks_with_a_threshold(
    fails: Callable[..., str], encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    for k in range(4):
        write_pair(data / "images", data / "labels", f"{k}", np.abs(255 * blocks(k, classes=2).astype(int) - 3))
        (data / "labels" / f"{k}.png").rename(data / "labels" / f"{k}.seg.png")
    options = ("--classes", 2, "--label_suffix", ".seg")
    assert "4 of 4 images have no label map" in fails(*command(encoder, data, tmp_path / "out", *options[:2]))
    assert "have the value 3 in" in fails(*command(encoder, data, tmp_path / "out", *options))
    assert main(command(encoder, data, tmp_path / "out", *options, "--threshold", 128)) == 0
    assert "--threshold 128: from 128 on a pixel is class 1" in capsys.readouterr().err
    assert all(entry["pixels"] > 0 for entry in read_result(tmp_path / "out")["per_class"])
    config = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert (config["threshold"], config["label_suffix"]) == (128, ".seg")
    assert "threshold was 128, now 9" in fails("segment", "--resume", "--out", tmp_path / "out", "--threshold", 9)


def test_mistakes(fails: Callable[..., str], encoder: Path, run: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    end = ["--out", out, *SHORT, *MACHINE]
    good = ["segment", encoder, "--train", data, "--val", data, *end]
    assert "RUN: expected a run folder or a weights file" in fails("segment", tmp_path / "missing", *good[2:])
    assert "expected an encoder with 4 blocks or more, this one has 2" in fails("segment", run, *good[2:])
    assert "--blocks: expected 4 increasing numbers from 1 to 4, got [1, 2]" in fails(*good, "--blocks", 1, 2)
    assert "--train: expected images/ and labels/" in fails(
        "segment", encoder, "--train", tmp_path, *good[4:], "--classes", 3
    )
    assert "--classes: expected a number" in fails("segment", encoder, "--train", tmp_path, *good[4:])
    assert "--val: expected images/" in fails("segment", encoder, "--train", data, "--val", encoder, *end)
    assert "have the value 2 in" in fails(*good, "--classes", 2, "--ignore", 7, 255)
    assert "have the value 7 in 512 pixels" in fails(*good, "--classes", 3)
    assert "--crop: expected multiples of the patch size 4, got 10 10" in fails(*good, "--crop", 10)
    assert "--stepps" in fails(*good, "--stepps", 10)
    assert "did you mean '--steps'?" in fails(*good, "--stepps", 10)
    assert "--resume" not in fails(*good, "--inference", "half")
    assert "found none in" in fails(*good, "--resume")
    label = data / "labels" / "val" / "val_1.png"
    whole = label.read_bytes()
    Image.fromarray(np.full((24, 32), 200, dtype=np.uint8)).save(label)
    assert f"--val: {label} has the value 200 in 768 pixels; expected the 3 classes 0 to 2" in fails(*good)
    Image.fromarray(np.zeros((12, 32), dtype=np.uint8)).save(label)
    assert "1 of 3 label maps have another size than their image" in fails(*good)
    label.unlink()
    assert f"1 of 3 images have no label map: {data / 'images' / 'val' / 'val_1.png'}; expected {label}" in fails(*good)
    assert not out.exists()
    label.write_bytes(whole)
    out.mkdir()
    (out / "precious").write_text("")
    assert "already holds other files" in fails(*good)


def test_an_interrupted_run_resumes_to_the_same_bits(
    fails: Callable[..., str], encoder: Path, data: Path, tmp_path: Path
) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "parts"
    assert main(command(encoder, data, whole, "--steps", 100)) == 0
    start = [sys.executable, "-m", "hardpatch", *command(encoder, data, folder, "--steps", 100)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen(
        start, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        while not read_metrics(folder / "metrics.jsonl") and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert f"nothing is lost; resume with: hardpatch segment --resume --out {folder}" in printed
    assert "weight_decay was 0.05, now 0.5" in fails("segment", "--resume", "--out", folder, "--weight_decay", 0.5)
    assert main(["segment", "--resume", "--out", str(folder)]) == 0
    weights = [path / "segmenter.safetensors" for path in (folder, whole)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert read_result(folder) == {**read_result(whole), "seconds": read_result(folder)["seconds"]}
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl")] == list(range(1, 101))
