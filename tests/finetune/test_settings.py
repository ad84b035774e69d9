"""Settings of fine-tuning: presets, their files, and mistakes."""

from typing import Any

import pytest
import yaml

from hardpatch.cli.finetune import finetune
from hardpatch.errors import UserError
from hardpatch.finetune.settings import PRESETS, SCRATCH, FinetuneSettings, by_size, check, short_of
from hardpatch.train.settings import changed, to_dict, to_yaml

PAPER = PRESETS["paper"]
IMAGES = 1_281_167
"""Size of ImageNet-1K's training set."""


def test_presets() -> None:
    assert (PAPER.epochs, PAPER.warmup_epochs, PAPER.batch_size, PAPER.base_lr) == (100, 5, 1024, 5e-4)
    assert (PAPER.weight_decay, PAPER.betas, PAPER.decay_per_layer) == (0.05, (0.9, 0.999), 0.8)
    assert (PAPER.randaugment, PAPER.randaugment_std, PAPER.erase) == (9, 0.5, 0.25)
    assert (PAPER.smoothing, PAPER.mixup, PAPER.cutmix, PAPER.drop_path) == (0.1, 0.8, 1.0, 0.1)
    assert next(iter(PRESETS)) == "auto"  # the default
    for name in ("small", "tiny"):
        preset = PRESETS[name]
        assert 64 <= preset.batch_size <= 128
        assert preset.randaugment < PAPER.randaugment
        assert changed(preset, {"batch_size": 8}).batch_size == 8
    for name, preset in PRESETS.items():
        check(by_size(IMAGES) if name == "auto" else preset, IMAGES)
    assert changed(PAPER, {"weights": "random"}).decay_per_layer == 1.0
    assert changed(PAPER, {"weights": "random", "layer_decay": 0.9}).decay_per_layer == 0.9


def test_settings_are_those_of_table_s2() -> None:
    for name, epochs in {"paper": 100, "paper_large": 50}.items():
        run = PRESETS[name]
        assert (run.optimizer, run.base_lr, run.weight_decay, run.betas) == ("adamw", 5e-4, 0.05, (0.9, 0.999))
        assert (run.decay_per_layer, run.batch_size, run.warmup_epochs, run.epochs) == (0.8, 1024, 5, epochs)
        assert (run.randaugment, run.randaugment_std, run.smoothing) == (9, 0.5, 0.1)
        assert (run.mixup, run.cutmix, run.drop_path, run.frozen) == (0.8, 1.0, 0.1, False)
        assert run.total_steps(IMAGES) == round(epochs * IMAGES / 1024)
    scratch = changed(PAPER, SCRATCH)  # "without another tuning": Section A.1
    assert (scratch.weights, scratch.decay_per_layer, scratch.peak_lr) == ("random", 0.8, 2e-3)
    assert changed(PAPER, {"weights": "random"}).decay_per_layer == 1.0


@pytest.mark.parametrize(
    ("images", "steps", "batch_size", "held_out", "randaugment"),
    [
        (2, 400, 2, 0.2, 4),  # 400 epochs of the two images
        (30, 400, 24, 0.2, 4),
        (200, 2000, 32, 0.2, 4),
        (800, 2000, 32, 0.2, 4),
        (5000, 3125, 64, 0.2, 4),  # 50 epochs of 4,000 images
        (50_000, 17_578, 128, 0.1, 6),
        (IMAGES, 237_716, 256, 0.05, 9),
    ],
)
def test_auto_follows_the_number_of_images(
    images: int, steps: int, batch_size: int, held_out: float, randaugment: float
) -> None:
    run = by_size(images)
    assert (run.steps, run.batch_size, run.held_out, run.randaugment) == (steps, batch_size, held_out, randaugment)
    assert (run.probe, run.epochs, run.frozen) == (True, None, False)
    assert run.peak_lr == pytest.approx(5e-4, rel=1e-3)
    learned_from = round(images * (1 - held_out))
    assert run.val_steps(learned_from) == pytest.approx(steps / 10, rel=0.01)
    check(run, learned_from)


@pytest.mark.parametrize(
    ("preset", "values", "images", "said"),
    [
        (
            "small",
            {"epochs": 20.0},
            2600,
            "26 images per class and 20 epochs are 406 steps of 128: few to learn from; "
            "--preset auto takes 2,000 of 64",
        ),
        ("paper", {}, 800, "8 images per class and 99.8 epochs are 78 steps of 1024"),  # made for ImageNet
        ("tiny", {}, 800, None),
        ("small", {}, 50_000, None),
        ("paper", {}, IMAGES, None),
        ("paper_large", {}, IMAGES, None),
        ("auto", {}, 800, None),
        ("auto", {"steps": 100}, 800, "8 images per class and 4 epochs are 100 steps of 32"),
        ("auto", {"steps": 100, "probe_only": True}, 800, None),
    ],
)
def test_a_short_training_is_said(preset: str, values: dict[str, Any], images: int, said: str | None) -> None:
    run = changed(by_size(images) if preset == "auto" else PRESETS[preset], values)
    line = short_of(run, run.total_steps(images), images, 1000 if images == IMAGES else 100)
    assert line is None if said is None else line is not None and line.startswith(said)


def test_peak_learning_rate() -> None:
    assert PAPER.peak_lr == pytest.approx(2e-3)  # 5e-4 * 1024 / 256
    assert changed(PAPER, {"batch_size": 64}).peak_lr == pytest.approx(1.25e-4)
    assert changed(PAPER, {"batch_size": 64, "lr": 0.1}).peak_lr == 0.1


def test_settings_survive_yaml() -> None:
    values = {"weights": "random", "ema": 0.99, "clip": 1.0, "min_lr": 1e-6, "steps": 20}
    for run in (PAPER, changed(PRESETS["tiny"], values)):
        assert changed(PRESETS["small"], yaml.safe_load(to_yaml(to_dict(run)))) == run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epoch", "3"], "unrecognized arguments: --epoch; did you mean '--epochs'?"),
        (["--epochs", "many"], "argument --epochs: expected a number above 0, got many"),
        (["--seed"], "argument --seed: expected one argument"),
        (["RUN", "more"], "unrecognized arguments: more"),
        (["--weights", "best"], "argument --weights: invalid choice: 'best'"),
        (["--workers", "-1"], "argument --workers: expected a whole number from 0, or auto, got -1"),
        (["--crop_scale", "1"], "argument --crop_scale: expected 2 arguments"),
    ],
)
def test_mistakes_on_the_command_line(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        finetune(arguments)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "--epoch: unknown setting; did you mean 'epochs'?"),
        ({"epochs": "many"}, "--epochs: Expected float"),
        ({"epochs": 0}, "--epochs: expected a number above 0, got 0"),
        ({"epochs": 3, "steps": 3}, "--steps: not allowed with --epochs"),
        ({"warmup_epochs": 200}, "--warmup_epochs: expected at most the 100 epochs of the training, got 200"),
        ({"steps": 1251}, "--warmup_epochs: expected at most the 0.999888 epochs of the training, got 5"),
        ({"smoothing": 1}, "--smoothing: expected a number from 0, below 1, got 1"),
        ({"mixup": -1}, "--mixup: expected a number from 0, got -1"),
        ({"randaugment": 11}, "--randaugment: expected a number from 0 to 10, got 11"),
        ({"crop_scale": [0.5, 0.2]}, "--crop_scale: expected 0 < lowest <= highest <= 1, got [0.5, 0.2]"),
        ({"batch_size": 15}, "--batch_size: mixup and CutMix pair the images of a batch, expected an even number"),
        ({"accumulation_steps": 3}, "--accumulation_steps: expected a divisor of the batch size 1024, got 3"),
        ({"ema": 1}, "--ema: expected a number between 0 and 1, got 1"),
        ({"seed": -1}, "--seed: expected a whole number from 0, got -1"),
        ({"val_every": 0}, "--val_every: expected a number above 0, got 0"),
        ({"lr": 0}, "--lr: expected a number above 0, got 0"),
        ({"base_lr": float("nan")}, "--base_lr: expected a number above 0, got nan"),
        ({"weights": "best"}, "--weights: "),
        ({"held_out": 0}, "--held_out: expected a number above 0, up to 0.5, got 0"),
        ({"least_steps": 0}, "--least_steps: expected a whole number from 1, got 0"),
        ({"frozen": True, "probe": True}, "--probe: expected not with --frozen"),
    ],
)
def test_settings_that_cannot_work(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        check(changed(PAPER, values), IMAGES)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_an_odd_batch_needs_no_mixing() -> None:
    check(FinetuneSettings(batch_size=15, mixup=0, cutmix=0), IMAGES)
