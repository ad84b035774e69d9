"""Resuming a run whose images lie elsewhere, or are not the same any more."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hardpatch.cli import main
from hardpatch.data import content
from hardpatch.data.content import content_digest
from hardpatch.data.sources import open_source
from tests.end_to_end.conftest import SMALL


def write(folder: Path, inverted: int | None = None, number: int = 16) -> Path:
    """Write images of one size on the disk; one of them may have other colors."""
    folder.mkdir(parents=True)
    for k in range(number):
        pixels = np.random.default_rng(k).integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(255 - pixels if k == inverted else pixels).save(folder / f"{k}.bmp")
    return folder


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Begin a run of four steps, and lose the last checkpoint."""
    folder = tmp_path_factory.mktemp("begun")
    images = write(folder / "images")
    settings = ["--steps", "4", "--train.checkpoint_steps", "2", "--train.keep_checkpoints", "9"]
    assert main(["pretrain", *SMALL, *settings, "--data", str(images), "--out", str(folder / "run")]) == 0
    shutil.rmtree(folder / "run" / "checkpoints" / "step_00000004")
    return folder


@pytest.mark.parametrize("way", ["another spelling", "a copy"])
def test_the_same_images_elsewhere(begun: Path, way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(begun / "run", tmp_path / "run")
    copied = shutil.copytree(begun / "images", tmp_path / "scratch" / "pictures")
    data = copied if way == "a copy" else begun / "run" / ".." / "images"
    assert main(["pretrain", "--resume", "--out", str(run), "--data", str(data)]) == 0
    assert (run / "checkpoints" / "step_00000004").is_dir()


@pytest.mark.parametrize("place", ["same", "other"])
def test_one_image_exchanged(begun: Path, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(begun / "run", tmp_path / "run")
    exchanged = write(tmp_path / "images", inverted=5)
    if place == "same":
        shutil.copytree(begun / "images", tmp_path / "kept")
        shutil.copy(exchanged / "5.bmp", begun / "images" / "5.bmp")
        exchanged = begun / "images"
    capsys.readouterr()
    code = main(["pretrain", "--resume", "--out", str(run), "--data", str(exchanged)])
    said = capsys.readouterr().err
    if place == "other":
        assert code == 2
        assert "--resume: --data has as many images as the run began with, 16, but other ones" in said
    else:  # one that was broken may have been repaired
        assert code == 0
        assert "--resume: images in --data were replaced since the last call" in said
        shutil.copy(tmp_path / "kept" / "5.bmp", begun / "images" / "5.bmp")


def test_large_sets_and_files_are_read_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write(tmp_path / "images")
    monkeypatch.setattr(content, "READ", 4)
    before = content_digest(open_source(images))
    (images / "0.bmp").write_bytes((images / "0.bmp").read_bytes() + b"x")
    assert content_digest(open_source(images)) != before
    monkeypatch.setattr(content, "BLOCK", 8)
    whole = content_digest(open_source(images))
    assert whole == content_digest(open_source(shutil.copytree(images, tmp_path / "copy")))
    assert whole != before
