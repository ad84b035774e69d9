"""Programs in examples/, run as their first lines say."""

import math
import re
import runpy
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import hardpatch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run_example(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_backbone(run: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    paths = sorted(images.rglob("*.jpg"))[::10]
    run_example(monkeypatch, "backbone.py", run, *paths)
    first, *rows = capsys.readouterr().out.splitlines()
    assert first == f"features: [{len(paths)}, 32]"
    similarities = np.array([[float(value) for value in row.split()[1:]] for row in rows])
    np.testing.assert_allclose(similarities, similarities.T, atol=2e-3)
    np.testing.assert_allclose(np.diag(similarities), 1, atol=2e-3)


def test_hard_patches(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "hard.png"
    run_example(monkeypatch, "hard_patches.py", run, next(images.rglob("*.jpg")), output)
    difficulty = np.array([[float(value) for value in row.split()] for row in capsys.readouterr().out.splitlines()[1:]])
    pixels = np.asarray(Image.open(output))
    patch = pixels.shape[0] // difficulty.shape[0]
    gray = (pixels == 128).all(axis=2)[patch // 2 :: patch, patch // 2 :: patch]
    assert gray.sum() == gray.size // 2
    assert difficulty[gray].min() >= difficulty[~gray].max()


def test_pretrain(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"steps": 4, "batch_size": 16, "data.workers": 0}
    shorter = partial(hardpatch.pretrain, **settings)
    monkeypatch.setattr(hardpatch, "pretrain", shorter, raising=False)
    run_example(monkeypatch, "pretrain.py", tmp_path / "run", "demo:train", images, images)
    output = capsys.readouterr().out
    assert re.search(r"k-NN top-1: \d+\.\d\d%, with random weights \d+\.\d\d%", output)
    assert re.search(r"linear top-1: \d+\.\d\d%, with random weights \d+\.\d\d%", output)
    assert "rank correlation of predicted and true difficulty: " in output
    assert (tmp_path / "run/pictures/score/contact_sheet.png").is_file()
    assert (tmp_path / "run/timm.safetensors").is_file()


def test_mean_color_host(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run_example(monkeypatch, "mean_color_host.py", 4)
    values = dict(line.split(": ") for line in capsys.readouterr().out.splitlines())
    assert set(values) == {"loss", "pair_accuracy", "spearman", "mined_loss_ratio", "mined_overlap"}
    assert all(math.isfinite(float(value)) for value in values.values())


def test_every_program_is_listed() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    assert all(f"]({program.name})" in listed for program in EXAMPLES.glob("*.py"))
