"""Images on the disk, and one short run that several tests share."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hardpatch.cli import main

SMALL = [
    *("--recipe", "demo", "--batch_size", "16", "--train.log_every", "5", "--data.workers", "0"),
    *("--model.width", "32", "--model.depth", "2", "--model.heads", "2", "--model.decoder_width", "16"),
    *("--optim.lr", "1e-3", "--method.alpha_start", "0.3", "--train.device", "cpu"),
    *("--train.pictures", "0", "--train.report", "no"),
]
"""Settings of a model that learns in a second; alpha starts above 0, so that the teacher runs from the first step."""
PICTURES = ("--train.pictures", "8", "--train.report", "checks")
"""What :data:`SMALL` leaves out, and a user gets."""


def write_images(folder: Path, classes: int = 2, each: int = 15, size: int = 40) -> Path:
    """Write a folder of JPEGs for each class: class k is noise with a bright bar at position k."""
    rng = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"class_{label}").mkdir(parents=True)
        for number in range(each):
            pixels = rng.integers(0, 90, (size, size + 8, 3), dtype=np.uint8)
            pixels[:, 4 + 12 * label : 12 + 12 * label] += 150
            Image.fromarray(pixels).save(folder / f"class_{label}" / f"{number}.jpg", quality=90)
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 30 images of two classes, 40 x 48 px."""
    return write_images(tmp_path_factory.mktemp("images") / "labeled")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """Pre-train for 12 steps."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    command = ["pretrain", *SMALL, *PICTURES, "--data", str(images), "--steps", "12", "--out", str(folder)]
    assert main([*command, "--json", str(folder.parent / "result.json")]) == 0
    return folder


@pytest.fixture(scope="session")
def finetuned(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """Pre-train four blocks, and train a ``classifier``, a ``segmenter`` and a ``detector`` from there."""
    from tests.end_to_end import test_detect, test_finetune, test_segment  # which import this file

    root = tmp_path_factory.mktemp("finetuned")
    run, pairs, coco = root / "run", test_segment.write_data(root / "pairs"), root / "coco"
    coco.mkdir()
    test_detect.write_data(coco)
    brief = ("--steps", 30, "--lr", 3e-3, "--weights", "random")
    four = [*SMALL, "--model.depth", "4", "--steps", "2"]
    for command in (
        ["pretrain", *four, "--data", str(images), "--out", str(run)],
        test_finetune.command(run, images, root / "classifier", "--ema", "0.9"),
        test_segment.command(run, pairs, root / "segmenter"),
        test_detect.command(run, coco, root / "detector", *brief),
    ):
        assert main(command) == 0
    return root


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail with exit code 2 and one line on stderr; returns the line."""

    def check(*arguments: object) -> str:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert code == 2, captured.err
        assert captured.out == ""
        # tests add to SMALL, so that some options stand there twice
        (line,) = [line for line in captured.err.splitlines() if not line.endswith("times, the last one counts")]
        return line.strip()

    return check


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail with exit code 2; returns its last line, those before it describe the images."""

    def check(*arguments: object) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Traceback" not in captured.err
        line = captured.err.splitlines()[-1]
        assert line.startswith(f"hardpatch {arguments[0]}: ")
        return line

    return check


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute in one thread: a forked process waits forever for OpenMP's others, which it does not have."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def kill_after(saved: Path) -> None:
    """Kill this process as soon as a checkpoint is there, which a thread writes."""
    while not saved.is_dir():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
