"""hardpatch tokenizer, from images on the disk to a file that a run can use."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from hardpatch.cli import main
from hardpatch.models.tokenizer import load_tokenizer

SIZES = ["--image_size", "24", "--patch_size", "8", "--vocabulary", "32", "--width", "16", "--batch_size", "10"]
HERE = ["--workers", "0", "--device", "cpu"]


def test_images_become_a_tokenizer(
    fails: Callable[..., str], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "tokens.safetensors"
    assert main(["tokenizer", "--data", str(images), "--out", str(out), "--epochs", "2", *SIZES, *HERE]) == 0
    told = capsys.readouterr().out
    assert "6 steps done" in told
    assert "reconstruction error 0." in told
    assert "of 32; entropy" in told
    assert f"--method.tokenizer {out}" in told
    rows = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [6]
    assert {"loss", "reconstruction_loss", "entropy", "perplexity", "used", "images_per_second"} <= rows[0].keys()
    with Image.open(out.with_suffix(".png")) as picture:
        assert picture.size == (8 * 144, 2 * 144)  # 24 px enlarged six times
    tokens = load_tokenizer(out).tokens(torch.zeros(2, 3, 48, 48, dtype=torch.uint8), (3, 3))
    assert tokens.shape == (2, 9)
    assert tokens.max() < 32
    assert "expected a checkpoint" in fails("info", out)  # a tokenizer is no run
    assert sorted(path.suffix for path in out.parent.iterdir()) == [".jsonl", ".png", ".safetensors"]


def test_mistakes(fails: Callable[..., str], images: Path, tmp_path: Path) -> None:
    out = tmp_path / "tokens.safetensors"
    given = ["tokenizer", *SIZES, *HERE, "--steps", 1, "--out", out, "--data"]
    assert "--data: " in fails(*given, tmp_path / "missing")
    assert "--patch_size: expected a divisor of the image size 24, got 7" in fails(*given, images, "--patch_size", 7)
    assert "--vocabulary: expected 2 to 8192, got 9000" in fails(*given, images, "--vocabulary", 9000)
    assert "--width: expected a multiple of 8, got 12" in fails(*given, images, "--width", 12)
    assert "--epochs" in fails(*given, images, "--epochs", 1)
    assert "--lr: expected a number above 0, got 0" in fails(*given, images, "--lr", 0)
    assert "seed: expected 0 or more, got -1" in fails(*given, images, "--seed", -1)
    assert "--out: expected the name of a .safetensors file" in fails(*given, images, "--out", tmp_path / "tokens.pt")
    assert "did you mean '--vocabulary'?" in fails(*given, images, "--vocabluary", 3)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("in the way")
    assert "can be written" in fails(*given, images, "--out", tmp_path / "file" / "tokens.safetensors")
    (tmp_path / "file").unlink()
    for name in ("tokens.safetensors", "tokens.jsonl"):
        (tmp_path / name).write_text("precious")
        assert f"{name} already exists" in fails(*given, images)
        assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]
        (tmp_path / name).unlink()


def test_unreadable_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"no picture")
    out = tmp_path / "tokens.safetensors"
    given = ["tokenizer", "--data", str(tmp_path / "images"), "--out", str(out), *SIZES, *HERE, "--steps", "1"]
    assert main(given) == 2
    assert "none of the 1 images can be decoded" in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Where SIGINT is ignored, as in the background of a script, a process that is started ignores it too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interruption_leaves_nothing_behind(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "tokens.safetensors"
    command = [sys.executable, "-m", "hardpatch", "tokenizer", "--data", str(images), "--out", str(out)]
    with subprocess.Popen(
        [*command, *SIZES, *HERE, "--steps", "1000000"], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("step 50/"):
                process.send_signal(signal.SIGINT)
                break
        process.stderr.read()
    assert process.returncode == 130
    assert not list(tmp_path.iterdir())
