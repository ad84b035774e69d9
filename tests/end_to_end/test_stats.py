"""hardpatch stats and hardpatch formats, as a user runs them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from hardpatch.cli import main
from tests.data.small import MANY_WORKERS

pytestmark = pytest.mark.filterwarnings(MANY_WORKERS)


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """Write three images of 16 bits, gray levels 0 to 999, and a broken one."""
    for k in range(3):
        tifffile.imwrite(tmp_path / f"{k}.tif", np.arange(1000, dtype=np.uint16).reshape(20, 50))
    (tmp_path / "broken.tif").write_bytes(b"II*\0")
    return tmp_path


@pytest.mark.parametrize("workers", ["0", "2"])
def test_stats_prints_settings_that_pretrain_takes(
    deep: Path, workers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stats", str(deep), "--workers", workers]) == 0
    out = capsys.readouterr().out
    assert "3 of 1 channels, kept as uint16" in out
    assert "percentiles  0 %: 0, 0.1 %: 0, 50 %: 499, 99.9 %: 998, 100 %: 999" in out
    assert f"1 images cannot be decoded and are not counted; the first: {deep / 'broken.tif'}" in out
    settings = out.splitlines()[-1].split()
    assert settings == ["--data.mean=[0.5005]", "--data.std=[0.28925]", "--data.range=[0,998]", "--data.channels=1"]
    assert main(["pretrain", "--recipe", "demo", "--data", str(deep), "--out", "run", *settings, "--print_config"]) == 0
    assert "range:" in capsys.readouterr().out


def test_stats_as_json(deep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", str(deep), "--workers", "0", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["mean"] == pytest.approx([0.5005], abs=1e-4)
    assert (printed["images"], printed["range"], printed["negative"], printed["missing"]) == (3, [0, 998], 0, 0)
    assert main(["stats", str(deep), "--workers", "0", "--json", str(deep / "x.json")]) == 0
    assert json.loads((deep / "x.json").read_text()) == printed
    assert capsys.readouterr().out.startswith("images  ")


def test_mistakes(fails: Callable[..., str], tmp_path: Path) -> None:
    assert "no such file" in fails("stats", tmp_path / "nowhere")
    assert "no images in this folder" in fails("stats", tmp_path)
    (tmp_path / "a.png").write_bytes(b"x")
    assert "none of the 1 images can be decoded; the first: " in fails("stats", tmp_path, "--workers", "0")


def test_formats(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["formats"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["format", "read", "extensions", "by", "to", "install"]
    assert any(line.startswith("PNG") and " yes " in line and "torchvision" in line for line in lines)
    assert main(["formats", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["formats"]
    assert len(listed) == len(lines) - 1
    assert {entry["name"] for entry in listed} >= {"JPEG", "HEIF", "NPY", "Parquet"}
