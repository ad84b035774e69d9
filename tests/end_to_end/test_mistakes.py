"""Bad input gets one line and exit code 2, and nothing is left half-written."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from hardpatch.cli import main
from tests.end_to_end.conftest import SMALL, write_images

Fails = Callable[..., str]


def test_data(fails: Fails, tmp_path: Path) -> None:
    out = tmp_path / "run"
    pretrain = ["pretrain", *SMALL, "--steps", 1, "--out", out, "--data"]
    assert f"--data: {tmp_path}/missing: no such file" in fails(*pretrain, tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    assert ".jpg" in fails(*pretrain, tmp_path / "empty")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "readme.txt").write_text("nothing here")
    assert "text" in fails(*pretrain, tmp_path / "text")
    assert not out.exists()


def test_too_many_broken_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_images(tmp_path / "images", classes=1, each=4)
    for name in ("0", "1"):
        path = folder / "class_0" / f"{name}.jpg"
        path.write_bytes(path.read_bytes()[:300])
    pretrain = ["pretrain", *SMALL, "--data", str(folder), "--steps", "3", "--out"]
    assert main([*pretrain, str(tmp_path / "run")]) == 2
    line = capsys.readouterr().err.splitlines()[-1]  # earlier lines name each file
    assert "data.max_bad_fraction: 2 of 4 images (50.00%)" in line
    assert "raise --data.max_bad_fraction" in line
    assert main([*pretrain, str(tmp_path / "tolerant"), "--data.max_bad_fraction", "0.5"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method.mask_ratio", "1.2"], "method.mask_ratio: expected a number between 0 and 1, got 1.2"),
        (["--model.patch_size", "5"], "patch_size: expected a divisor of the image size 32x32, got 5"),
        (["--model.patch_size", "32"], "mask_ratio: 0.75 of 1 patches leaves 0 visible"),
        (["--model.heads", "3"], "heads: expected a divisor of the width 32, got 3"),
        (["--model.with", "3"], "--model.with: unknown argument; did you mean '--model.width'?"),
        (["--optim.lrr", "3"], "--optim.lrr: unknown argument; did you mean '--optim.lr'?"),
        (["--train.device", "cuda"], "train.device: cuda is not available on this machine"),
        (["--seed", "-1"], "seed"),
    ],
)
def test_settings(fails: Fails, tmp_path: Path, arguments: list[str], message: str) -> None:
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert message in fails("pretrain", *SMALL, "--steps", 1, "--out", tmp_path / "run", *arguments)
    assert not (tmp_path / "run").exists()


def test_recipes_and_verbs(fails: Fails) -> None:
    assert "did you mean 'cifar10_tiny'?" in fails("pretrain", "--recipe", "cifar10_tny")
    assert "needs your images" in fails("pretrain", "--recipe", "cifar10_tiny")
    assert "did you mean 'pretrain'?" in fails("pretrian")
    assert "--train" in fails("knn", "somewhere")
    assert "--workers: expected a whole number from 0, or auto, got all" in fails(
        "knn", "x", "--train", "a", "--val", "b", "--workers", "all"
    )
    assert "did you mean '--temperature'?" in fails("knn", "x", "--train", "a", "--val", "b", "--temprature", "1")


def test_out_is_never_written_over(fails: Fails, run: Path, images: Path, tmp_path: Path) -> None:
    before = sorted((path, path.stat().st_mtime) for path in run.rglob("*"))
    assert "already holds a run" in fails("pretrain", *SMALL, "--data", images, "--steps", 12, "--out", run)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    assert "already holds other files" in fails("pretrain", *SMALL, "--steps", 1, "--out", tmp_path / "other")
    assert before == sorted((path, path.stat().st_mtime) for path in run.rglob("*"))


def test_out_that_cannot_be_written(fails: Fails, images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        line = fails("pretrain", *SMALL, "--data", images, "--steps", 1, "--out", out)
        assert "--out: expected a folder" in line


def test_resume_from_another_configuration(fails: Fails, run: Path, images: Path, tmp_path: Path) -> None:
    pretrain = ["pretrain", *SMALL, "--data", images, "--steps", 12, "--out", run, "--resume"]
    line = fails(*pretrain, "--seed", 3, "--method.mask_ratio", 0.5)
    assert "method.mask_ratio was 0.75, now 0.5; seed was 0, now 3" in line
    assert "config.yaml" in fails("pretrain", "--resume", "--out", tmp_path / "nowhere")


def test_weights(fails: Fails, images: Path, tmp_path: Path) -> None:
    sets = ["--train", images, "--val", images]
    assert "does not exist" in fails("knn", tmp_path / "missing", *sets)
    assert "no checkpoint" in fails("knn", tmp_path, *sets)
    for name in ("weights.pth", "weights.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps({"a": print}))
        assert name in fails("knn", tmp_path / name, *sets)


def test_labels(fails: Fails, run: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "flat" / "a.png")
    assert "label" in fails("knn", run, "--train", tmp_path / "flat", "--val", images)
    assert "--val: " in fails("knn", run, "--train", images, "--val", tmp_path / "missing")
    other = write_images(tmp_path / "other", classes=3, each=1)
    assert "class_2" in fails("linear", run, "--train", images, "--val", other)


@pytest.mark.parametrize(
    ("arguments", "message", "opened"),
    [
        (["--masks", "."], "masks: expected one mask for each image", ["IMAGES: 30 images, 2 classes"]),
        (["--mask_ratio", "1.5"], "mask_ratio: expected a number between 0 and 1, got 1.5", []),
    ],
)
def test_score(
    arguments: list[str],
    message: str,
    opened: list[str],
    run: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["score", str(run), str(images), "--out", "out", *arguments]) == 2
    *summary, error = capsys.readouterr().err.splitlines()
    assert summary == opened
    assert message in error
    assert not (tmp_path / "out").exists()


def test_a_section_of_settings_is_no_option(fails: Callable[..., str], tmp_path: Path) -> None:
    line = fails("pretrain", "--train", tmp_path / "images", "--steps", 1, "--out", tmp_path / "run")
    assert "--train: expected one of its settings, such as --train.device; images to learn from are --data PATH" in line
