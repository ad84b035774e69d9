"""Real images on the disk, and one short run that several tests look at."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hardpatch.cli import main

SMALL = [
    *("--recipe", "demo", "--batch_size", "16", "--train.log_every", "5", "--data.workers", "0"),
    *("--model.width", "32", "--model.depth", "2", "--model.heads", "2", "--model.decoder_width", "16"),
    *("--optim.lr", "1e-3", "--method.alpha_start", "0.3", "--train.device", "cpu"),
]
"""A model that learns in seconds; alpha starts high enough that the teacher is at work from the first step."""


def write_images(folder: Path, classes: int = 2, each: int = 15, size: int = 40) -> Path:
    """One folder a class of JPEGs: class k is a bright bar at place k over noise."""
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
    """30 photographs in two folders, 40 x 48 px."""
    return write_images(tmp_path_factory.mktemp("images") / "labeled")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """A finished run of 12 steps."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["pretrain", *SMALL, "--data", str(images), "--steps", "12", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail with exit code 2 and one line on stderr; returns the line."""

    def check(*arguments: object) -> str:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert code == 2, captured.err
        assert captured.out == ""
        assert captured.err.count("\n") == 1, captured.err
        return captured.err.strip()

    return check
