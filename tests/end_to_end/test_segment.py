"""hardpatch segment: from a run and labeled pixels to a folder with measures, pictures and weights."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from hardpatch.cli import main
from hardpatch.segment.file import load_segmenter
from hardpatch.train.metrics import read_metrics
from tests.end_to_end.conftest import SMALL
from tests.segment.test_data import blocks, write_pair

HERE = ["--device", "cpu", "--workers", "0"]
SHORT = [
    *("--steps", "6", "--batch_size", "2", "--crop", "16", "24", "--short_side", "24", "--channels", "8"),
    *("--warmup_steps", "1", "--stride", "8", "--val_every", "3", "--log_every", "1"),
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """A run with four blocks."""
    folder = tmp_path_factory.mktemp("runs") / "four_blocks"
    four = [*SMALL, "--model.depth", "4", "--model.width", "32"]
    assert main(["pretrain", *four, "--data", str(images), "--steps", "2", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Five and three images of 24 x 32 px with three classes, and some pixels that are ignored."""
    root = tmp_path / "data"
    for split, number in (("train", 5), ("val", 3)):
        for k in range(number):
            values = blocks(k)
            values[:2] = 7
            write_pair(root / "images" / split, root / "labels" / split, f"{split}_{k}", values)
    (root / "classes.txt").write_text("0 sky\n1 road\n2 car\n7 nothing (ignore)\n")
    return root


def test_a_run_becomes_a_segmenter(
    encoder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    given = ["segment", str(encoder), "--train", str(data), "--val", str(data), "--out", str(out), *SHORT, *HERE]
    assert main([*given, "--inference", "slide"]) == 0
    printed = capsys.readouterr().out
    assert "6 steps done, 3 images judged (slide inference)" in printed
    assert sorted(path.name for path in out.iterdir()) == [
        *("README.md", "checkpoints", "config.yaml", "environment.json", "metrics.jsonl", "pictures"),
        *("result.json", "segmenter.safetensors", "tensorboard"),
    ]
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["classes"] == {0: "sky", 1: "road", 2: "car"}
    assert config["ignored"] == [7, 255]
    assert config["crop"] == [16, 24]
    assert config["stride"] == [8, 8]
    assert config["layer_decay"] == 0.75  # of the preset
    rows = read_metrics(out / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert ["miou" in row for row in rows] == [False, False, True, False, False, True]
    result = json.loads((out / "result.json").read_text())
    assert result["miou"] == rows[-1]["miou"]
    assert [entry["name"] for entry in result["classes"]] == ["sky", "road", "car"]
    assert sum(entry["pixels"] for entry in result["classes"]) == 3 * 22 * 32
    ious = [entry["iou"] for entry in result["classes"] if entry["iou"] is not None]
    assert result["miou"] == pytest.approx(sum(ious) / len(ious))
    assert f"mIoU {result['miou']:.2%}" in printed
    for name in ("curves.png", "predictions.png"):
        with Image.open(out / "pictures" / name) as picture:
            assert min(picture.size) > 200

    # what was saved gives what was measured
    segmenter = load_segmenter(out)
    assert segmenter.classes == ("sky", "road", "car")
    assert segmenter.inference.mode == "slide"
    from hardpatch.segment.data import find_labels, open_segmentation
    from hardpatch.segment.measure import evaluate

    pairs = open_segmentation(data, "val", find_labels(data))
    judged = evaluate(segmenter.model, pairs, segmenter.inference, device=torch.device("cpu"))
    assert judged.measures.miou == pytest.approx(result["miou"])


def test_mistakes(fails: Callable[..., str], encoder: Path, run: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    end = ["--out", out, *SHORT, *HERE]
    given = ["segment", encoder, "--train", data, "--val", data, *end]
    assert "RUN: expected a run folder or a weights file" in fails("segment", tmp_path / "missing", *given[2:])
    assert "expected an encoder with 4 blocks or more, this one has 2" in fails("segment", run, *given[2:])
    assert "--blocks: expected 4 increasing numbers from 1 to 4, got [1, 2]" in fails(*given, "--blocks", 1, 2)
    assert "--train: expected images/ and labels/" in fails(
        "segment", encoder, "--train", tmp_path, *given[4:], "--classes", 3
    )
    assert "--classes: expected a number" in fails("segment", encoder, "--train", tmp_path, *given[4:])
    assert "--val: expected images/" in fails("segment", encoder, "--train", data, "--val", encoder, *end)
    assert "has the value 2 in" in fails(*given, "--classes", 2, "--ignore", 7, 255)
    assert "has the value 7 in 64 pixels" in fails(*given, "--classes", 3)
    assert "--crop: expected multiples of the patch size 4, got 10 10" in fails(*given, "--crop", 10)
    assert "--stepps" in fails(*given, "--stepps", 10)
    assert "did you mean '--steps'?" in fails(*given, "--stepps", 10)
    assert "--resume" not in fails(*given, "--inference", "half")
    assert "found none in" in fails(*given, "--resume")
    label = data / "labels" / "val" / "val_1.png"
    whole = label.read_bytes()
    Image.fromarray(np.full((24, 32), 200, dtype=np.uint8)).save(label)
    assert f"--val: {label} has the value 200 in 768 pixels; expected the 3 classes 0 to 2" in fails(*given)
    Image.fromarray(np.zeros((12, 32), dtype=np.uint8)).save(label)
    assert "must have the same size" in fails(*given)
    label.unlink()
    assert f"val_1.png has no label map: expected {label}" in fails(*given)
    assert not out.exists()
    label.write_bytes(whole)
    out.mkdir()
    (out / "precious").write_text("")
    assert "already holds other files" in fails(*given)


def test_a_killed_run_goes_on_to_the_same_bits(
    fails: Callable[..., str], encoder: Path, data: Path, tmp_path: Path
) -> None:
    given = ["segment", str(encoder), "--train", str(data), "--val", str(data), *SHORT, *HERE, "--steps", "100"]
    assert main([*given, "--out", str(tmp_path / "whole")]) == 0
    folder = tmp_path / "parts"
    command = [sys.executable, "-m", "hardpatch", *given, "--out", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as it:
        while not read_metrics(folder / "metrics.jsonl") and it.poll() is None:
            time.sleep(0.02)
        it.send_signal(signal.SIGTERM)
        assert it.stdout is not None
        printed = it.stdout.read()
    assert it.returncode == 128 + signal.SIGTERM
    assert "the same command with --resume goes on" in printed
    assert "lr was 0.002, now 0.1" in fails(*given, "--out", folder, "--resume", "--lr", 0.1)
    assert main([*given, "--out", str(folder), "--resume"]) == 0
    weights = [path / "segmenter.safetensors" for path in (folder, tmp_path / "whole")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert json.loads((folder / "result.json").read_text()) == json.loads(
        (tmp_path / "whole" / "result.json").read_text()
    )
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl")] == list(range(1, 101))
