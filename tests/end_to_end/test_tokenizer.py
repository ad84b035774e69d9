"""hardpatch tokenizer, from images on the disk to a run folder that host beit can use."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

import hardpatch
from hardpatch.cli import main
from hardpatch.models.tokenizer import FILE, load_tokenizer
from hardpatch.train.checkpoint import checkpoints

SIZES = ["--image_size", "24", "--patch_size", "8", "--vocabulary", "32", "--width", "16", "--batch_size", "10"]
MACHINE = ["--workers", "0", "--device", "cpu"]


def test_images_become_a_tokenizer(
    fails: Callable[..., str], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "tokens"
    assert main(["tokenizer", "--data", str(images), "--out", str(out), "--epochs", "2", *SIZES, *MACHINE]) == 0
    printed = capsys.readouterr()
    assert "6 steps done" in printed.out
    assert "reconstruction error 0." in printed.out
    assert "of 32; entropy" in printed.out
    assert f"--method.tokenizer {out}" in printed.out
    assert "--data: 30 images, 2 classes" in printed.err
    assert sorted(path.name for path in out.iterdir()) == [
        *("README.md", "checkpoints", "config.yaml", "environment.json", "log.txt", "metrics.jsonl", "pictures"),
        *("result.json", "tensorboard", FILE),
    ]
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {row["step"] for row in rows} == {1, 2, 5, 6}
    names = {"loss", "reconstruction_loss", "entropy", "perplexity", "used", "images_per_second"}
    assert names <= {name for row in rows for name in row}
    with Image.open(out / "pictures" / "reconstructions.png") as picture:
        assert picture.size == (8 * 144, 2 * 144)  # 24 px enlarged six times
    result = json.loads((out / "result.json").read_text())
    assert (result["verb"], result["run"], result["classes"]) == ("tokenizer", str(out), None)
    assert (result["data"], result["images"]) == ({"train": str(images)}, {"train": 30})
    assert result["left_out"] == {"not images": 0, "undecodable": 0}
    assert result["version"] == hardpatch.__version__
    assert f"reconstruction error {result['quality']['error']:.5f}" in printed.out
    for path in (out, out / FILE):
        tokens = load_tokenizer(path).tokens(torch.zeros(2, 3, 48, 48, dtype=torch.uint8), (3, 3))
        assert tokens.shape == (2, 9)
        assert tokens.max() < 32
    for verb in ("info", "knn"):  # a tokenizer is no pre-training run
        assert str(out) in fails(verb, out, *(["--train", images, "--val", images] if verb == "knn" else []))


def test_mistakes(fails: Callable[..., str], images: Path, tmp_path: Path) -> None:
    out = tmp_path / "tokens"
    command = ["tokenizer", *SIZES, *MACHINE, "--steps", 1, "--out", out, "--data"]
    assert "--data: " in fails(*command, tmp_path / "missing")
    assert "--data: expected images to train on" in fails(*command[:-1])
    assert "--out: expected a folder for the run, got nothing" in fails("tokenizer", "--data", images)
    assert "--patch_size: expected a divisor of the image size 24, got 7" in fails(*command, images, "--patch_size", 7)
    assert "--vocabulary: expected a whole number from 2 to 8,192, got 9000" in fails(
        *command, images, "--vocabulary", 9000
    )
    assert "--width: expected a multiple of 8, got 12" in fails(*command, images, "--width", 12)
    assert "--epochs" in fails(*command, images, "--epochs", 1)
    assert "--lr: expected a number above 0, got 0" in fails(*command, images, "--lr", 0)
    assert "--seed: expected a whole number from 0, got -1" in fails(*command, images, "--seed", -1)
    assert "did you mean '--vocabulary'?" in fails(*command, images, "--vocabluary", 3)
    assert not list(tmp_path.iterdir())
    out.write_text("in the way")
    assert "--out: expected a folder" in fails(*command, images)
    assert "--out: expected a folder" in fails(*command, images, "--out", out / "tokens")
    out.unlink()
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    assert "already holds other files" in fails(*command, images)
    assert [path.read_text() for path in out.iterdir()] == ["precious"]


def test_unreadable_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"no picture")
    out = tmp_path / "tokens"
    command = ["tokenizer", "--data", str(tmp_path / "images"), "--out", str(out), *SIZES, *MACHINE, "--steps", "1"]
    assert main(command) == 2
    assert "none of the 1 images can be decoded" in capsys.readouterr().err.splitlines()[-1]
    assert not (out / FILE).exists()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let child processes react to SIGINT even if this process ignores it, as in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_run_resumes(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "tokens"
    command = [sys.executable, "-m", "hardpatch", "tokenizer", "--data", str(images), "--out", str(out)]
    command += [*SIZES, *MACHINE, "--steps", "200", "--log_every", "10"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("step 50/"):
                process.send_signal(signal.SIGINT)
                break
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert f"nothing is lost; resume with: hardpatch tokenizer --resume --out {out}" in printed
    assert not (out / FILE).exists()
    saved = checkpoints(out / "checkpoints")[-1]
    assert "step_00000050" <= saved.name < "step_00000200"
    assert main(["tokenizer", "--resume", "--out", str(out)]) == 0
    assert json.loads((out / "result.json").read_text())["steps"] == 200
    load_tokenizer(out)
