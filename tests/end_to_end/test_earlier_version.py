"""Folders that an earlier version wrote: their weights load, and a run that cannot be resumed gets one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import hardpatch
from hardpatch.configuration.upgrade import RENAMED
from hardpatch.train import checkpoint
from hardpatch.train.manifest import MANIFEST

NAMES = {new.split(".")[1]: old.split(".")[1] for old, new in RENAMED.items()}


@pytest.fixture
def old_run(run: Path, tmp_path: Path) -> Path:
    """Copy a finished run and give its settings the names of the earlier version."""
    folder = tmp_path / "old"
    shutil.copytree(run, folder)
    config = (folder / "config.yaml").read_text()
    for name, old in NAMES.items():
        config = config.replace(f" {name}:", f" {old}:")
    (folder / "config.yaml").write_text(config)
    (weights,) = folder.glob(f"checkpoints/*/{checkpoint.WEIGHTS}")
    metadata = json.dumps(checkpoint.read_metadata(weights))
    for name, old in NAMES.items():
        metadata = metadata.replace(f'"{name}":', f'"{old}":')
    save_file(load_file(weights), weights, {"hardpatch": metadata})
    (weights.parent / MANIFEST).unlink()  # which that version did not write
    return folder


def test_a_pretraining_run_loads_and_resumes(old_run: Path, run: Path) -> None:
    assert f"  {NAMES['color_jitter']}:" in (old_run / "config.yaml").read_text()
    old, new = hardpatch.load(old_run).state_dict(), hardpatch.load(run).state_dict()
    assert old.keys() == new.keys()
    assert all((old[name] == new[name]).all() for name in new)
    assert hardpatch.pretrain(out=old_run, resume=True).step == 12
    assert "color_jitter" in (old_run / "config.yaml").read_text()


@pytest.fixture
def detector(run: Path, tmp_path: Path) -> Path:
    """Train a detector for one step on one image with one object."""
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[8:24, 8:24] = 200
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "0.png")
    shape = {"bbox": [8, 8, 16, 16], "area": 256, "segmentation": [[8, 8, 24, 8, 24, 24, 8, 24]], "iscrowd": 0}
    content = {
        "images": [{"id": 0, "file_name": "0.png", "height": 32, "width": 32}],
        "annotations": [{"id": 1, "image_id": 0, "category_id": 1, **shape}],
        "categories": [{"id": 1, "name": "square"}],
    }
    (tmp_path / "objects.json").write_text(json.dumps(content))
    images, objects, folder = str(tmp_path / "images"), str(tmp_path / "objects.json"), tmp_path / "detector"
    sizes: dict[str, Any] = {"image_size": 32, "channels": 8, "head_width": 16, "rois": 8, "global_blocks": 2}
    hardpatch.detect(str(run), images, objects, images, objects, folder, steps=1, batch_size=1, workers=0, **sizes)
    return folder


def test_a_detector_loads_and_is_not_resumed(detector: Path, fails: Callable[..., str]) -> None:
    config = detector / "config.yaml"
    config.write_text(config.read_text().replace("verb: detect\n", ""))
    (weights,) = detector.glob(f"checkpoints/*/{checkpoint.WEIGHTS}")
    metadata = checkpoint.read_metadata(weights)
    assert metadata is not None
    metadata["run"] = metadata.pop("detect") | {"epochs": 30.0}  # saved beside steps, and not used
    save_file(load_file(weights), weights, {"hardpatch": json.dumps(metadata)})
    (weights.parent / MANIFEST).unlink()  # which that version did not write
    assert hardpatch.load_detector(detector).categories == {1: "square"}
    line = fails("detect", "--resume", "--out", detector)
    assert f"{config} has no verb: an earlier version of hardpatch wrote it" in line
