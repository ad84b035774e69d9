"""hardpatch detect, from a run and annotated images to boxes, masks and average precision."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import hardpatch
from hardpatch.cli import main
from hardpatch.detect.masks import mask_tools
from hardpatch.errors import UserError
from hardpatch.train import checkpoint
from hardpatch.train.metrics import read_metrics

TINY = [
    *("--image_size", "32", "--batch_size", "2", "--window", "3", "--channels", "8", "--head_width", "16"),
    *("--rois", "8", "--global_blocks", "2", "--log_every", "2", "--workers", "0", "--device", "cpu"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("coco"))


def write_data(folder: Path) -> Path:
    """Write ``train/`` and ``val/`` with a JSON each: a bright rectangle on noise, the last image empty."""
    rng = np.random.default_rng(0)
    for part, number in (("train", 5), ("val", 3)):
        (folder / part).mkdir()
        images, annotations = [], []
        for k in range(number):
            pixels = rng.integers(0, 90, (24, 32, 3), dtype=np.uint8)
            if k < number - 1:
                pixels[6:18, 4 + k : 20 + k] += 140
                corners = [4 + k, 6, 20 + k, 6, 20 + k, 18, 4 + k, 18]
                box = {"bbox": [4 + k, 6, 16, 12], "area": 192, "segmentation": [corners]}
                annotations.append(box | {"id": k, "image_id": 10 + k, "category_id": 3 + 5 * (k % 2), "iscrowd": 0})
            Image.fromarray(pixels).save(folder / part / f"{k}.png")
            images.append({"id": 10 + k, "file_name": f"{k}.png", "height": 24, "width": 32})
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 3, "name": "box"}, {"id": 8, "name": "chest"}],
        }
        (folder / f"{part}.json").write_text(json.dumps(content))
    return folder


def command(run: Path, data: Path, out: Path, *options: object) -> list[str]:
    names = {"--train": "train", "--annotations": "train.json", "--val": "val", "--val_annotations": "val.json"}
    paths = [word for option, name in names.items() for word in (option, str(data / name))]
    return ["detect", str(run), *paths, "--out", str(out), *TINY, *map(str, options)]


def test_a_run_becomes_a_detector(
    fails: Callable[..., str], run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, copy = tmp_path / "detector", tmp_path / "copy.json"
    assert main(command(run, data, out, "--steps", 5, "--val_every", 0.8, "--json", copy)) == 0
    captured = capsys.readouterr()
    assert "5 steps done" in captured.out
    assert "box: AP " in captured.out
    assert "mask: AP " in captured.out
    assert {path.name for path in out.iterdir()} == {
        *("README.md", "config.yaml", "environment.json", "metrics.jsonl", "tensorboard", "log.txt"),
        *("checkpoints", "pictures", "report.html", "result.json", "detections.json"),
    }
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert (config["verb"], config["run"], config["annotations"]) == ("detect", str(run), str(data / "train.json"))
    assert (config["steps"], config["image_size"], config["jitter"]) == (5, 32, [0.8, 1.25])
    result = json.loads((out / "result.json").read_text())
    assert json.loads(copy.read_text()) == result
    assert set(result["box"]) == set(result["mask"]) == {"AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"}
    assert (result["verb"], result["images"], result["steps"]) == ("detect", {"train": 5, "val": 3}, 5)
    assert (result["classes"], set(result["left_out"].values())) == (2, {0})
    assert result["verdict"]["learned"] == "no"
    assert any("learned nothing yet (5 steps of 2 images" in reason for reason in result["verdict"]["reasons"])
    assert f"learned: no; {'; '.join(result['verdict']['reasons'])}" in captured.out
    assert "5 steps of 2: with fewer than 1,000 the result means little" in (out / "log.txt").read_text()
    detections = json.loads((out / "detections.json").read_text())
    assert len(detections) == result["detections"]
    for entry in detections:
        assert entry["image_id"] in (10, 11, 12)
        assert entry["category_id"] in (3, 8)
        assert mask_tools().area(entry["segmentation"]) >= 0
    rows = read_metrics(out / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 4, 5]
    losses = {"loss", "loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg", "lr"}
    assert losses <= rows[0].keys()
    assert [{"box_ap", "mask_ap"} <= row.keys() for row in rows] == [
        False,
        True,
        True,
        True,
    ]  # 0.8 epochs are two steps
    for name in ("curves.png", "detections.png"):
        with Image.open(out / "pictures" / name) as picture:
            assert min(picture.size) > 200

    changed = command(run, data, out, "--steps", 5, "--weight_decay", 0.5, "--resume")
    assert "weight_decay was 0.05, now 0.5; take those, or another --out" in fails(*changed)
    # another call evaluates again, with the same result
    assert main(["detect", "--resume", "--out", str(out)]) == 0
    assert json.loads((out / "detections.json").read_text()) == detections
    again = json.loads((out / "result.json").read_text())
    assert again | {"seconds": 0} == result | {"seconds": 0}


def test_a_detector_is_loaded_from_its_folder(run: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "scratch"
    assert main(command(run, data, out, "--epochs", 0.4, "--weights", "random")) == 0
    assert json.loads((out / "result.json").read_text())["steps"] == 1
    detector = hardpatch.load_detector(out)
    assert detector.categories == {3: "box", 8: "chest"}
    assert detector.image_size == 32
    assert not detector.model.training
    with torch.no_grad():
        (output,) = detector.model([torch.zeros(3, 24, 32).byte()])
    assert set(output) == {"boxes", "labels", "scores", "masks"}
    saved = checkpoint.newest(out)
    assert saved is not None
    weights = checkpoint.with_prefix(load_file(saved / checkpoint.WEIGHTS), "student.")
    for name, value in detector.model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    with pytest.raises(UserError, match="expected a run folder with checkpoints/ or a weights file"):
        hardpatch.load_detector(data)
    with pytest.raises(UserError, match="is of another kind"):
        hardpatch.load_detector(run)


def test_an_interrupted_command_says_how_to_resume(run: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "detector"
    process = subprocess.Popen(
        [sys.executable, "-m", "hardpatch", *command(run, data, out, "--steps", 100_000)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    with process:
        deadline = time.monotonic() + 120
        while not read_metrics(out / "metrics.jsonl"):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert f"nothing is lost; resume with: hardpatch detect --resume --out {out}" in printed
    assert hardpatch.load_detector(out).image_size == 32


def test_mistakes(
    fails: Callable[..., str],
    run: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    good: list[Any] = command(run, data, out, "--steps", 1)

    def with_value(option: str, value: object) -> list[Any]:
        changed = list(good)
        changed[changed.index(option) + 1] = value
        return changed

    assert "--annotations: " in fails(*with_value("--annotations", data / "none.json"))
    message = fails(*with_value("--train", data / "val"))
    assert "--train: " in message
    assert "max_bad_fraction: 2 of 5 images (40.00%) cannot be used" in message
    assert "4.png: No such file or directory; raise --max_bad_fraction" in message
    assert "do the two belong together?" in fails(*with_value("--val", run))
    assert "expected COCO annotations as JSON" in fails(*with_value("--val_annotations", run / "README.md"))
    assert "names: expected a list of class names" in fails(*with_value("--val_annotations", run / "config.yaml"))
    assert "a folder without XML and text files" in fails(*with_value("--annotations", data / "train"))
    assert f"did you mean {data / 'train.json'}?" in fails(*with_value("--annotations", data))
    assert "--image_size: expected a multiple of" in fails(*with_value("--image_size", 30))
    assert "--lr: expected a number above 0, got 0" in fails(*good, "--lr", 0)
    assert "--steps: not allowed with --epochs" in fails(*good, "--epochs", 1)
    assert "RUN" in fails("detect", tmp_path / "missing", *good[2:])
    assert "RUN: expected " in fails("detect", *good[2:])
    assert "--annotations: expected annotations of " in fails(*good[:4], *good[6:])
    assert "did you mean '--image_size'?" in fails(*good, "--image_sise", 3)
    assert "found none in" in fails(*good, "--resume")
    other = json.loads((data / "val.json").read_text())
    other["categories"][0]["name"] = "bag"
    changed = tmp_path / "other.json"
    changed.write_text(json.dumps(other))
    assert "--val_annotations: expected the 2 categories" in fails(*with_value("--val_annotations", changed))
    changed.unlink()
    assert not list(tmp_path.iterdir())
    # as if it were not installed
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    assert "pip install hardpatch[detect]" in fails(*good)
    monkeypatch.undo()
    out.mkdir()
    (out / "precious").write_text("")
    assert "already holds other files" in fails(*good)
