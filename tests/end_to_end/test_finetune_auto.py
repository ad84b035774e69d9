"""``hardpatch finetune`` without a preset: a probe first, then the whole network, and what is better is kept."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hardpatch.cli import main
from hardpatch.data.augment import EvalTransform
from hardpatch.data.sources import open_source
from hardpatch.finetune.file import load_classifier
from hardpatch.train.checkpoint import newest
from hardpatch.train.metrics import read_metrics
from hardpatch.train.run_folder import read_values
from tests.end_to_end.conftest import write_images

Fails = Callable[..., str]
PLAIN = ("--lr", 2e-3, "--layer_decay", 1, "--randaugment", 0, "--cutmix", 0, "--crop_scale", 0.9, 1)
CPU = ("--workers", "0", "--device", "cpu")


def write_pairs(folder: Path, each: int, seed: int) -> Path:
    """Write two classes of squares on the left and right: one or none (class 0: both or none), in noise.

    A linear layer on features that add up over patches cannot tell them apart, a network that is trained can.
    """
    rng = np.random.default_rng(seed)
    for label in range(2):
        (folder / f"class_{label}").mkdir(parents=True)
        for number in range(each):
            pixels = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8)
            left = number % 2
            pixels[8:24, 2:14] += np.uint8(80 * left)
            pixels[8:24, 18:30] += np.uint8(80 * (left ^ label))
            Image.fromarray(pixels).save(folder / f"class_{label}" / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Write 80 images of two classes to learn from, and 40 others."""
    folder = tmp_path_factory.mktemp("labeled")
    return write_pairs(folder / "train", 40, seed=0), write_pairs(folder / "val", 20, seed=1)


@pytest.fixture(scope="module")
def tuned(run: Path, labeled: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finish a run with the settings that the number of images gives, but fewer steps."""
    folder = tmp_path_factory.mktemp("auto") / "run"
    options = ("--steps", 60, "--ema", 0.9, "--checkpoint_steps", 20, "--log_every", 1)
    assert main(command(run, labeled, folder, *options)) == 0
    return folder


def command(run: Path, labeled: tuple[Path, Path], out: Path, *options: object) -> list[str]:
    data = ("--train", labeled[0], "--val", labeled[1])
    return list(map(str, ("finetune", run, *data, "--out", out, *CPU, *options)))


def read_result(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return content


def accuracy(path: Path, images: Path) -> float:
    """Accuracy of a loaded classifier in a plain loop."""
    model, classes, size = load_classifier(path)
    assert classes == ("class_0", "class_1")
    source, correct = open_source(images), 0
    for k in range(len(source)):
        pixels = EvalTransform(size)(source.image(k))[None]
        correct += int(model(model.normalize(pixels)).argmax()) == source.label(k)
    return correct / len(source)


def test_the_result_is_not_below_the_probe(
    run: Path, labeled: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(command(run, labeled, out, "--steps", 100, *PLAIN)) == 0
    values, result = read_values(out), read_result(out)
    assert (values["steps"], values["batch_size"], values["epochs"], values["probe"]) == (100, 32, None, True)
    assert result["images"] == {"train": 64, "held_out": 16, "val": 40}
    assert result["top1"] >= result["probe"]["top1"]
    assert result["kept"] == "fine-tuned"
    gain = result["fine_tuned"]["held_out_top1"] - result["probe"]["held_out_top1"]
    assert gain > result["standard_error"] > 0
    assert accuracy(out, labeled[1]) == result["top1"] == result["fine_tuned"]["top1"]
    assert accuracy(out / "probe.safetensors", labeled[1]) == result["probe"]["top1"]
    lines = capsys.readouterr().out.splitlines()
    both = (
        f"probe {result['probe']['top1']:.2%}, fine-tuned {result['fine_tuned']['top1']:.2%} on --val; kept: fine-tuned"
    )
    assert any(line.startswith(both) for line in lines)


def test_a_training_that_ruins_the_probe_is_not_kept(
    run: Path, labeled: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(command(run, labeled, out, "--lr", 10, "--steps", 4, "--layer_decay", 1, "--clip", 1)) == 0
    result = read_result(out)
    assert result["kept"] == "probe"
    assert result["probe"]["held_out_top1"] >= result["fine_tuned"]["held_out_top1"]
    assert result["top1"] == result["probe"]["top1"] == accuracy(out, labeled[1])
    assert sum(row["images"] * row["top1"] for row in result["per_class"]) == pytest.approx(40 * result["top1"])
    assert accuracy(newest(out) or out, labeled[1]) == result["fine_tuned"]["top1"] == 0.5
    assert "kept: probe" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--probe_only", "--probe-only"])
def test_the_probe_alone(
    run: Path, labeled: tuple[Path, Path], tuned: Path, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(command(run, labeled, out, option)) == 0
    result = read_result(out)
    assert (result["kept"], result["steps"], result["fine_tuned"]) == ("probe", 0, None)
    assert result["probe"] == read_result(tuned)["probe"]
    assert result["top1"] == accuracy(out, labeled[1]) > 0.5
    assert newest(out) is None
    assert f"probe {result['top1']:.2%} on --val, not trained further" in capsys.readouterr().out
    assert main(["finetune", "--resume", "--out", str(out)]) == 0
    assert read_result(out) | {"seconds": 0} == result | {"seconds": 0}


def test_the_moving_average_begins_as_the_probe(
    tuned: Path, run: Path, labeled: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert main(command(run, labeled, out, "--steps", 1, "--ema", 0.9)) == 0  # the first step has a rate of 0
    weights = load_file((newest(out) or out) / "model.safetensors")
    assert torch.equal(weights["teacher.head.weight"], weights["student.head.weight"])
    assert weights["student.head.weight"].std() > 0.01  # that of a new layer is 2e-5
    assert read_result(tuned)["probe"] == read_result(out)["probe"]


@pytest.mark.parametrize("after", [0, 25])
def test_a_killed_run_ends_the_same(
    run: Path, labeled: tuple[Path, Path], tuned: Path, after: int, tmp_path: Path
) -> None:
    folder, start = tmp_path / "run", tmp_path / "start"
    shutil.copytree(run, start)
    options = ("--steps", 60, "--ema", 0.9, "--checkpoint_steps", 20, "--log_every", 1)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "hardpatch", *command(start, labeled, folder, *options)], env=environment
    ) as process:
        for _ in range(6000):
            rows = read_metrics(folder / "metrics.jsonl") if after else []
            if rows and rows[-1]["step"] >= after and newest(folder):
                break
            if not after and (folder / "probe.safetensors").exists():
                break
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    if after:
        shutil.rmtree(start)  # a run that has a checkpoint no longer needs the encoder that it started from
    assert main(["finetune", "--resume", "--out", str(folder), "--preset", "auto", *map(str, options)]) == 0
    for name in ("model.safetensors", "training.safetensors"):
        one, other = (load_file((newest(path) or path) / name) for path in (folder, tuned))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert read_result(folder) | {"run": "", "seconds": 0} == read_result(tuned) | {"run": "", "seconds": 0}


def test_mistakes(fails: Fails, run: Path, labeled: tuple[Path, Path], tuned: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    good = command(run, labeled, out)
    assert "--probe: expected not with --frozen" in fails(*good, "--frozen")
    assert "argument --held_out: expected a number above 0, up to 0.5, got 0" in fails(*good, "--held_out", 0)
    single = write_images(tmp_path / "single", each=1)
    assert "--train: expected two images or more of some class" in fails(*command(run, (single, labeled[1]), out))
    assert "--train: " in fails(*command(run, (tmp_path / "missing", labeled[1]), out))
    assert "probe was True, now False" in fails("finetune", "--resume", "--out", tuned, "--preset", "tiny")
    assert not out.exists()


def test_a_short_training_is_said(
    run: Path, labeled: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hardpatch.finetune.run.fit", lambda job, progress, after: job.save() or 0)
    for steps, said in ((20, True), (420, False)):  # auto would take 800, of 64 images 400 times
        out = tmp_path / str(steps)

        assert main(command(run, labeled, out, "--preset", "tiny", "--steps", steps, "--warmup_epochs", "null")) == 128
        assert ("few to learn from; --preset auto takes 800 of 32" in (out / "log.txt").read_text()) == said
