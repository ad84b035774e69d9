"""Programs in examples/, run as their first lines say."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
