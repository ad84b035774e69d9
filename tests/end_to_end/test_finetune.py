"""hardpatch finetune, from a pre-training run and labeled images to a classifier."""

import json
import os
import re
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
from hardpatch.finetune.finish import FinetuneResult
from hardpatch.finetune.run import finetune
from hardpatch.interchange.load import load
from hardpatch.train.checkpoint import checkpoints, with_prefix
from hardpatch.train.metrics import read_metrics
from hardpatch.train.progress import Silent
from hardpatch.train.run_folder import read_values
from tests.end_to_end.conftest import SMALL, write_images

Fails = Callable[..., str]

BRIEF = [
    *("--preset", "tiny", "--batch_size", "10", "--epochs", "6", "--warmup_epochs", "1", "--base_lr", "2e-2"),
    *("--val_every", "2", "--log_every", "1", "--workers", "0", "--device", "cpu"),
]
"""18 steps: 6 epochs of 30 images, 10 per step."""

EVERYTHING = [
    *("--ema", "0.9", "--mixup", "0.2", "--erase", "0.5", "--accumulation_steps", "2", "--clip", "5"),
    *("--checkpoint_steps", "4"),
]


def command(run: Path, images: Path, out: Path, *options: object, val: Path | None = None) -> list[str]:
    return [
        *("finetune", str(run), "--train", str(images), "--val", str(val or images), "--out", str(out), *BRIEF),
        *map(str, options),
    ]


@pytest.fixture(scope="module")
def tuned(run: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finish a run with mixing, erasing, a moving average, accumulation and clipping."""
    folder = tmp_path_factory.mktemp("finetune") / "run"
    assert main(command(run, images, folder, *EVERYTHING)) == 0
    return folder


def rows(folder: Path) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in row.items() if k != "images_per_second"} for row in read_metrics(folder / "metrics.jsonl")
    ]


def read_result(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return content


def last(folder: Path) -> Path:
    return checkpoints(folder / "checkpoints")[-1]


def saved(folder: Path) -> dict[str, torch.Tensor]:
    """Weights and optimizer state."""
    return {**load_file(last(folder) / "model.safetensors"), **load_file(last(folder) / "training.safetensors")}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_images_become_a_classifier(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, json_file = tmp_path / "new" / "run", tmp_path / "result.json"
    options = ("--epochs", "30", "--randaugment", "0", "--crop_scale", "0.8", "1", "--flip", "0", "--json", json_file)
    assert main(command(run, images, out, *options)) == 0
    result = read_result(out)
    assert result == json.loads(json_file.read_text())
    assert (result["verb"], result["run"], result["classes"]) == ("finetune", str(run), 2)
    assert result["data"] == {"train": str(images), "val": str(images)}
    assert result["images"] == {"train": 30, "val": 30}
    assert set(result["left_out"].values()) == {0}
    assert result["top1"] > 0.9  # bars at two places: easy
    assert result["top5"] == 1.0
    assert [row["name"] for row in result["per_class"]] == ["class_0", "class_1"]
    assert [row["images"] for row in result["per_class"]] == [15, 15]
    last = capsys.readouterr().out.splitlines()[-1]
    match = re.fullmatch(r"top-1 (\S+)%, top-5 100.00% after the last epoch \(best epoch \S+: top-1 (\S+)%\)", last)
    assert match is not None, last
    assert float(match[1]) == pytest.approx(100 * result["top1"], abs=0.01)
    assert float(match[2]) == pytest.approx(100 * result["best_top1"], abs=0.01)

    # A plain loop over the images with the saved weights gives the same number.
    model, classes, size = load_classifier(out)
    assert classes == ("class_0", "class_1")
    source, correct = open_source(images), 0
    for k in range(len(source)):
        pixels = EvalTransform(size)(source.image(k))[None]
        correct += int(model(model.normalize(pixels)).argmax()) == source.label(k)
    assert result["top1"] == correct / 30

    evaluations = [row for row in rows(out) if "top1" in row]
    assert [round(row["epoch"]) for row in evaluations] == list(range(2, 31, 2))
    assert evaluations[-1]["top1"] == result["top1"]
    assert max(row["top1"] for row in evaluations) == result["best_top1"]
    assert all(row["loss"] > 0 for row in rows(out))
    for name in ("README.md", "environment.json", "config.yaml", "pictures/curves.png", "pictures/confusion.png"):
        assert (out / name).stat().st_size > 100
    values = read_values(out)
    assert (values["verb"], values["run"], values["train"], values["epochs"]) == ("finetune", str(run), str(images), 30)


def test_the_moving_average_is_loaded_and_evaluated(tuned: Path) -> None:
    assert len(rows(tuned)) == 18
    model, _, size = load_classifier(tuned)
    averaged, weights = model.state_dict(), load_file(last(tuned) / "model.safetensors")
    assert same(averaged, with_prefix(weights, "teacher."))
    student = with_prefix(weights, "student.")
    assert averaged.keys() == student.keys()
    assert not torch.equal(averaged["head.weight"], student["head.weight"])
    source = open_source(read_values(tuned)["val"])
    pixels = torch.stack([EvalTransform(size)(source.image(k)) for k in range(len(source))])
    predicted = model(model.normalize(pixels)).argmax(dim=1).tolist()
    assert read_result(tuned)["top1"] == sum(predicted[k] == source.label(k) for k in range(30)) / 30


def test_a_killed_run_ends_the_same(run: Path, images: Path, tuned: Path, tmp_path: Path) -> None:
    folder, start = tmp_path / "run", tmp_path / "start"
    shutil.copytree(run, start)  # a copy that can be removed
    arguments = command(start, images, folder, *EVERYTHING, "--workers", "1")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-m", "hardpatch", *arguments], env=environment) as process:
        for _ in range(2400):
            metrics = rows(folder)
            if metrics and metrics[-1]["step"] >= 6 and checkpoints(folder / "checkpoints"):
                break
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    step = int(checkpoints(folder / "checkpoints")[-1].name.removeprefix("step_"))
    assert 4 <= step < 18
    shutil.rmtree(start)  # the encoder that it started from is no longer needed
    assert main(["finetune", "--resume", "--out", str(folder), "--workers", "0"]) == 0
    assert same(saved(folder), saved(tuned))
    assert rows(folder) == rows(tuned)
    facts_of_the_call = {"run": str(start), "seconds": read_result(folder)["seconds"]}
    assert read_result(folder) == {**read_result(tuned), **facts_of_the_call}


class Stopping(Silent):
    """Send SIGTERM to this process after a number of steps."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)


def test_the_python_function_stops_and_resumes(run: Path, images: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "preset": "tiny",
        "epochs": 4.0,
        "warmup_epochs": 1.0,
        "batch_size": 10,
        "val_every": 1.5,
        "workers": 0,
        "device": "cpu",
    }
    whole = finetune(run, images, images, tmp_path / "whole", **settings)
    stopped = finetune(str(run), images, images, tmp_path / "stopped", progress=Stopping(after=5), **settings)
    assert (stopped.step, stopped.total, stopped.signal) == (5, 12, signal.SIGTERM)
    assert not stopped.finished
    assert not (tmp_path / "stopped" / "result.json").exists()
    resumed = finetune(out=tmp_path / "stopped", resume=True)
    assert outcome(resumed) == outcome(whole)
    assert same(saved(tmp_path / "stopped"), saved(tmp_path / "whole"))
    again = finetune(run, images, images, tmp_path / "stopped", resume=True, **settings)  # all steps are done
    assert outcome(again) == outcome(whole)
    assert again.result == read_result(tmp_path / "stopped")


def outcome(result: FinetuneResult) -> tuple[float, ...]:
    return result.top1, result.top5, result.best_top1, result.best_epoch, result.step


def test_weights_to_start_from(run: Path, images: Path, tmp_path: Path) -> None:
    weights = {}
    for name, options in {
        "student": [],
        "teacher": ["--weights", "teacher"],
        "random": ["--weights", "random"],
        "other": ["--weights", "random", "--seed", "1"],
    }.items():
        assert main(command(run, images, tmp_path / name, "--epochs", "0.3", "--warmup_epochs", "0.3", *options)) == 0
        # One step with learning rate 0 leaves the weights unchanged.
        weights[name] = load_classifier(tmp_path / name).model.state_dict()["encoder.blocks.0.attn.qkv.weight"]
    for name, model in {"student": load(run, "student"), "teacher": load(run, "teacher")}.items():
        assert torch.equal(weights[name], model.host.encoder.state_dict()["blocks.0.attn.qkv.weight"])
    assert not torch.equal(weights["teacher"], weights["student"])
    assert not torch.equal(weights["random"], weights["student"])
    assert not torch.equal(weights["other"], weights["random"])


def test_micro_batches_give_the_result_of_the_batch(run: Path, images: Path, tmp_path: Path) -> None:
    metrics = []
    for count in (1, 5):
        out = tmp_path / str(count)
        assert main(command(run, images, out, "--epochs", 1, "--drop_path", 0, "--accumulation_steps", count)) == 0
        metrics.append(rows(out)[:-1])
    for one, other in zip(*metrics, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_classes_are_matched_by_name(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    val = tmp_path / "val"
    shutil.copytree(images / "class_1", val / "class_1")  # label 0 here, 1 in the training set
    out = tmp_path / "run"
    assert main(command(run, images, out, "--image_size", 24, val=val)) == 0
    assert "patches are interpolated to 6 x 6" in capsys.readouterr().err
    result = read_result(out)
    assert result["per_class"][0] == {"name": "class_0", "images": 0, "top1": None}
    assert result["per_class"][1] == {"name": "class_1", "images": 15, "top1": result["top1"]}
    assert load_classifier(out).image_size == (24, 24)
    assert load_classifier(out).model.encoder.grid == (6, 6)


def test_other_hosts_and_gray_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label in range(2):
        (tmp_path / "gray" / str(label)).mkdir(parents=True)
        for k in range(5):
            pixels = rng.integers(0, 90, (32, 32), dtype=np.uint8) + np.uint8(100 * label)
            Image.fromarray(pixels).save(tmp_path / "gray" / str(label) / f"{k}.png")
    settings = ["--method.host", "simmim", "--model.positions", "relative", "--model.layer_scale", "0.1"]
    settings += ["--data.channels", "1", "--data.mean", "[0.5]", "--data.std", "[0.25]", "--steps", "1"]
    pretrained, images, out = tmp_path / "pretrained", tmp_path / "gray", tmp_path / "run"
    assert main(["pretrain", *SMALL, *settings, "--data", str(images), "--out", str(pretrained)]) == 0
    augmented = ("--randaugment", 9, "--erase", 1, "--mixup", 0.8, "--image_size", 40)
    assert main(command(pretrained, images, out, *augmented, "--weights", "teacher")) == 0
    model, classes, size = load_classifier(out)
    assert (classes, size, model.encoder.channels) == (("0", "1"), (40, 40), 1)
    assert model.encoder.relative_bias is None
    assert all(block.relative_bias is not None for block in model.encoder.blocks)
    assert model(model.normalize(torch.zeros(1, 1, 40, 40, dtype=torch.uint8))).shape == (1, 2)


def test_mistakes(fails: Fails, run: Path, images: Path, tuned: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    good = command(run, images, out)
    assert "--out: expected a folder" in fails(*good[:6])
    assert "RUN: expected a pre-trained encoder to start from, got nothing" in fails("finetune", *good[2:])
    assert "--train: expected labeled images to learn from, got nothing" in fails(*good[:2], "--out", out)
    assert f"--train: {tmp_path}/missing: no such file" in fails(*command(run, tmp_path / "missing", out, val=images))
    assert f"--val: {tmp_path}/missing: no such file" in fails(*command(run, images, out, val=tmp_path / "missing"))
    assert "does not exist" in fails(*command(tmp_path / "missing", images, out))
    assert "expected a network of hardpatch finetune" in fails_to_load(run)
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "flat" / "a.png")
    assert "expected a label for every image" in fails(*command(run, tmp_path / "flat", out, val=images))
    other = write_images(tmp_path / "other", classes=3, each=1)
    assert "'class_2'" in fails(*command(run, images, out, val=other))
    one = write_images(tmp_path / "one", classes=1, each=2)
    assert "train: one class, " in fails(*command(run, one, out))
    assert "--image_size: patch_size: expected a divisor" in fails(*good, "--image_size", 30)
    assert "did you mean 'tiny'?" in fails(*good, "--preset", "tinny")
    assert "did you mean '--mixup'?" in fails(*good, "--mixpu", 1)
    assert "--warmup_epochs" in fails(*good, "--epochs", 0.5)
    if not torch.cuda.is_available():
        assert "--device: cuda is not available on this machine" in fails(*good, "--device", "cuda")
    assert "already holds a run" in fails(*command(run, images, tuned))
    assert "config.yaml" in fails("finetune", "--resume", "--out", tmp_path / "nowhere")
    assert "one of another verb" in fails("finetune", "--resume", "--out", run)
    line = fails("finetune", "--resume", "--out", tuned, "--seed", 3, "--mixup", 0.5)
    assert "seed was 0, now 3; mixup was 0.2, now 0.5" in line
    line = fails("finetune", "--resume", "--out", tuned, "--train", other)
    assert "--train: expected a copy of what the run began with" in line
    assert not out.exists()


def fails_to_load(run: Path) -> str:
    from hardpatch.errors import UserError

    with pytest.raises(UserError) as error:
        load_classifier(run)
    return str(error.value)


def test_a_folder_of_an_earlier_version_is_loaded_but_not_resumed(fails: Fails, tuned: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(tuned, folder)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("verb: finetune\n", ""))
    line = fails("finetune", "--resume", "--out", folder)
    assert f"{config} has no verb: an earlier version of hardpatch wrote it" in line
    assert "take another --out" in line
    assert load_classifier(folder).classes == ("class_0", "class_1")


def test_resume_refuses_another_data_set(fails: Fails, run: Path, tmp_path: Path) -> None:
    folder, images = tmp_path / "run", write_images(tmp_path / "images", each=5)
    assert main(command(run, images, folder, "--epochs", 1)) == 0
    (images / "class_0" / "0.jpg").unlink()
    assert "began with 10 images" in fails("finetune", "--resume", "--out", folder)


def test_too_many_broken_validation_images(run: Path, images: Path, tmp_path: Path) -> None:
    val = write_images(tmp_path / "val", each=2)
    broken = val / "class_0" / "0.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    assert main(command(run, images, tmp_path / "a", val=val)) == 2
    assert main(command(run, images, tmp_path / "b", "--max_bad_fraction", 0.3, val=val)) == 0
    result = read_result(tmp_path / "b")
    assert result["images"] == {"train": 30, "val": 3}
    assert result["left_out"] == {**dict.fromkeys(result["left_out"], 0), "val, undecodable": 1}
    assert sum(row["images"] for row in result["per_class"]) == 3


def test_a_broken_training_image_is_replaced(run: Path, images: Path, tmp_path: Path) -> None:
    train = write_images(tmp_path / "train", each=10)
    broken = train / "class_1" / "3.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    assert main(command(run, train, tmp_path / "a", "--max_bad_fraction", 0.01, val=images)) == 2
    assert main(command(run, train, tmp_path / "b", val=images)) == 0
    result = read_result(tmp_path / "b")
    assert result["images"] == {"train": 20, "val": 30}
    assert result["left_out"] == {**dict.fromkeys(result["left_out"], 0), "train, undecodable": 1}
