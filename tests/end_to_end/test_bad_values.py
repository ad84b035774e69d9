"""The worst values of settings and paths end in one line and exit code 2, before any folder is written."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hardpatch.configuration import config
from hardpatch.configuration.size import check_fits, parameters
from hardpatch.pretrain import recipes
from tests.end_to_end.conftest import SMALL
from tests.test_yaml_text import BOMB

Fails = Callable[..., str]
SETS = ("--train", "demo:train", "--val", "demo:test")
FOREVER = "expected a whole number from 1 to 2^40"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.depth", "0"], "model.depth: expected a whole number from 1, got 0"),
        (["--depth", "1000000000"], "model.depth: expected a whole number from 1 to 1,000, got 1000000000"),
        (["--model.width", "1000000"], "model.width: expected a whole number from 1 to 65,536, got 1000000"),
        (["--model.decoder_heads", "0"], "model.decoder_heads: expected a whole number from 1, got 0"),
        (["--model.decoder_heads", "3"], "model.decoder_heads: expected a divisor of the width 16, got 3"),
        (["--optim.betas", "[1, 1]"], "optim.betas: expected for each number a number from 0, below 1, got [1.0, 1.0]"),
        (["--optim.betas", "[" * 5000], "--optim.betas: expected at most 32 lists within each other"),
        (["--optim.min_lr", "-1"], "optim.min_lr: expected a number from 0, got -1.0"),
        (["--optim.min_lr", "1"], "optim.min_lr: expected at most the peak learning rate 0.001, got 1.0"),
        (["--optim.lr", ".nan"], "optim.lr: expected a number above 0, got nan"),
        (["--data.std", "[0, 1, 1]"], "data.std: expected for each number a number from 1e-09, got [0.0, 1.0, 1.0]"),
        (["--data.mean", "[.nan, 0, 0]"], "data.mean: expected for each number"),
        (["--data.color_jitter", "1.5"], "data.color_jitter: expected a number from 0 to 1, got 1.5"),
        (["--fast.teacher_resolution", ".nan"], "fast.teacher_resolution: expected a number above 0, up to 1, got nan"),
        (["--knn.every_epochs", "0"], "knn.every_epochs: expected a number above 0, got 0.0"),
        (["--train.checkpoint_minutes", "-1"], "train.checkpoint_minutes: expected a number from 0, got -1.0"),
        (["--model.layer_scale", "-1"], "model.layer_scale: expected a number from 0, got -1.0"),
        (["--ibot.outputs", "1" + "0" * 23], "ibot.outputs: expected a whole number from 1 to 1,000,000, got 1000"),
        (["--ibot.local_crops", "1000000"], "ibot.local_crops: expected a whole number from 0 to 1,000, got 1000000"),
        (["--data.workers", "1000000000"], "data.workers: expected a whole number from 0 to 1,024, or auto, got 10000"),
        (["--steps", "1" + "0" * 30], f"steps: {FOREVER}"),
        (["--image_size", "[32, 1000000000]"], "data.image_size: expected for each number a whole number from 1 to 16"),
        (["--data.range", "[1, 1]"], "data.range: expected -1e+38 <= lowest < highest <= 1e+38, got [1.0, 1.0]"),
        (["--data.bands", "[]"], "data.bands: expected a pattern for each band, got an empty list"),
        (["--data.bands", "&a [*a]"], "--data.bands: expected plain values, got *a, which contains itself"),
        (["--steps", "!!python/object/apply:os.system [ls]"], "steps: "),
        (["--data", ""], "--data: expected a path, got an empty text; is a shell variable unset?"),
        (["--data", "null"], "--data: null: no such file or folder"),
        (["--data", "~/missing"], f"--data: {os.path.expanduser('~/missing')}: no such file or folder"),
        (["--knn.train=", "--knn.val=x"], "knn.train: expected a value, got an empty text"),
        (["--json", ""], "--json: expected a path, got an empty text"),
        (["--hours", "nan"], "argument --hours: expected a number above 0, got nan"),
    ],
)
def test_pretrain(
    arguments: list[str], message: str, fails: Fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = [] if "--steps" in arguments or "--hours" in arguments else ["--steps", "1"]
    assert message in fails("pretrain", *SMALL, *own, "--out", "run", *arguments)
    if not {"--json", "--image_size", "--steps", "--data"} & {*arguments}:
        assert message in fails("plan", "demo:train", *SMALL, *own, *arguments)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["knn", "x", *SETS, "--k", "0"], "argument --k: expected a whole number from 1, got 0"),
        (["knn", "x", *SETS, "--temperature", "nan"], "argument --temperature: expected a number above 0, got nan"),
        (
            ["knn", "x", *SETS, "--max_bad_fraction", "nan"],
            "--max_bad_fraction: expected a number from 0 to 1, got nan",
        ),
        (["knn", "", *SETS], "RUN: expected a path, got an empty text"),
        (["knn", "x", "--train", "", "--val", "demo:test"], "--train: expected a path, got an empty text"),
        (["linear", "x", *SETS, "--lr", "-1"], "argument --lr: expected a number above 0, got -1"),
        (["linear", "x", *SETS, "--epochs", "9" * 5000], "argument --epochs: expected a whole number from 1"),
        (["embed", "x", "demo:test", "--out", ""], "--out: expected a path, got an empty text"),
        (
            ["embed", "x", "demo:test", "--out", "o", "--batch_size", "10000000"],
            "--batch_size: expected a whole number",
        ),
        (["embed", "x", "", "--out", "o"], "IMAGES: expected a path, got an empty text"),
        (
            ["score", "x", "demo:test", "--out", "o", "--mask_ratio", "nan"],
            "--mask_ratio: expected a number between 0 and 1, got nan",
        ),
        (["score", "x", "demo:test", "--out", "o", "--show", "9" * 5000], "--show: expected numbers of channels"),
        (["finetune", "x", *SETS, "--out", "o", "--flip", "nan"], "argument --flip: expected a number from 0 to 1"),
        (["finetune", "x", *SETS, "--out", "o", "--image_size", "1000000000"], "--image_size: expected a whole number"),
        (["finetune", "x", *SETS, "--out", "o", "--workers", "9" * 30], "--workers: expected a whole number from 0 to"),
        (
            ["segment", "x", *SETS, "--out", "o", "--channels", "1000000"],
            "--channels: expected a whole number from 1 to",
        ),
        (["segment", "x", *SETS, "--out", "o", "--classes", ""], "--classes: expected a path, got an empty text"),
        (["detect", "x", *SETS, "--out", "o", "--head_width", "-1"], "--head_width: expected a whole number from 1"),
        (
            ["tokenizer", "--data", "demo:train", "--out", "o", "--lr", "inf"],
            "number above 0, up to 1e+30, got inf",
        ),
        (["tokenizer", "--data", "demo:train", "--out", ""], "--out: expected a path, got an empty text"),
        (
            ["shrink", "demo:train", "--out", "o", "--side", "1000000000"],
            "--side: expected a whole number from 1 to 16",
        ),
        (
            ["export", "x", "--to", "timm", "--out", "o", "--heads", "0"],
            "--heads: expected a whole number from 1, got 0",
        ),
        (["check", "demo:train", "--max_pixels", "-1"], "max_pixels: expected a whole number from 1, got -1"),
        (["stats", "demo:train", "--workers", "-1"], "--workers: expected a whole number from 0, or auto, got -1"),
        (["stats", ""], "IMAGES: expected a path, got an empty text"),
        (
            ["study", "table2", "--out", "o", "--seeds", "1000000000"],
            "--seeds: expected a whole number from 1 to 1,000",
        ),
        (["study", "fig2", "x", "demo:test", "--out", "o", "--count", "0"], "--count: expected a whole number from 1"),
        (["bench", "data", "--seconds", "nan"], "argument --seconds: expected a number above 0, got nan"),
        (["bench", "data", "--crop_scale", "0.9", "0.1"], "--crop_scale: expected 0 < lowest <= highest <= 1, got"),
        (["bench", "--size", "tiny", "--decoder_depth", "-1"], "model.decoder_depth: expected a whole number from 1"),
        (["recipes", "--images", "0"], "argument --images: expected a whole number from 1, got 0"),
        (["info", ""], "RUN: expected a path, got an empty text"),
        (["evaluate", "x", "--suite", "", "--out", "o"], "--suite: expected a path, got an empty text"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_other_verbs(
    arguments: list[str], message: str, fails: Fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in fails(*arguments)
    assert os.listdir(tmp_path) == []


def test_files_of_yaml(fails: Fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bomb.yaml").write_text(BOMB)
    Path("run").mkdir()
    Path("run/config.yaml").write_text(BOMB)
    many = "expected at most 100,000 values, got more, with its aliases written out"
    assert many in fails("pretrain", "--config", "bomb.yaml", "--out", "new")
    assert many in fails("evaluate", "x", "--suite", "bomb.yaml", "--out", "new")
    assert many in fails("pretrain", "--resume", "--out", "run")
    assert many in fails("finetune", "--resume", "--out", "run")
    assert sorted(os.listdir()) == ["bomb.yaml", "run"]


def test_a_model_that_cannot_fit(fails: Fails, tmp_path: Path) -> None:
    large = ["--model.width", "65536", "--model.depth", "1000", "--train.device", "cpu"]
    for verb in (["pretrain", "--out", tmp_path / "run"], ["plan", "demo:train"]):
        line = fails(*verb, *SMALL, "--steps", 1, *large)
        assert "model.width, model.depth" in line
        assert "expected a model (51,5" in line
        assert "billion parameters) that fits into the memory of this machine, got one of at least 8" in line
    batch = ["--batch_size", "1048576", "--image_size", "16384", "--model.patch_size", "1024"]
    line = fails("pretrain", *SMALL, "--steps", 1, "--out", tmp_path / "run", *batch)
    assert "batch_size, data.image_size: expected a batch of images that fits into the memory" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", [name for name in recipes.names() if name != "demo"])
def test_no_recipe_is_refused_for_its_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate is below what the model has, so that nothing that works is refused."""
    from hardpatch.configuration.build import initial_model
    from hardpatch.train import memory

    run = config.build(recipes.read(name), ["--data.path", "x"])
    with torch.device("meta"):
        model = initial_model(run)
    actual = sum(weight.numel() for weight in model.parameters())
    assert 0.5 * actual < parameters(run) <= actual
    monkeypatch.setattr(memory, "available_memory", lambda: 64e9)
    check_fits(run)
