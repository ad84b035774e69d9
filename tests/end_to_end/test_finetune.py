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
from hardpatch.errors import TrainingError
from hardpatch.finetune.run import Result, finetune, load_classifier
from hardpatch.finetune.settings import configure
from hardpatch.interchange.load import read_settings
from hardpatch.train.checkpoint import checkpoints, with_prefix
from hardpatch.train.metrics import read_metrics
from tests.end_to_end.conftest import SMALL, write_images

Fails = Callable[..., str]

BRIEF = [
    *("--preset", "tiny", "--batch_size", "10", "--epochs", "6", "--warmup_epochs", "1", "--base_lr", "2e-2"),
    *("--eval_epochs", "2", "--log_every", "1", "--workers", "0", "--device", "cpu"),
]
"""18 steps: 30 images, 10 a step."""


def command(run: Path, images: Path, out: Path, *more: object) -> list[str]:
    return [
        *("finetune", str(run), "--train", str(images), "--val", str(images), "--out", str(out), *BRIEF),
        *map(str, more),
    ]


@pytest.fixture(scope="module")
def tuned(run: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with all there is: mixing, a moving average, accumulation."""
    folder = tmp_path_factory.mktemp("finetune") / "run"
    more = (
        "--ema",
        0.9,
        "--mixup",
        0.2,
        "--erase",
        0.5,
        "--accumulation_steps",
        2,
        "--clip",
        5,
        "--checkpoint_steps",
        4,
    )
    assert main(command(run, images, folder, *more)) == 0
    return folder


def rows(folder: Path) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in row.items() if k != "images_per_second"} for row in read_metrics(folder / "metrics.jsonl")
    ]


def last(folder: Path) -> Path:
    (only,) = checkpoints(folder / "checkpoints")
    return only


def saved(folder: Path) -> dict[str, torch.Tensor]:
    """Weights and optimizer state."""
    return {**load_file(last(folder) / "model.safetensors"), **load_file(last(folder) / "training.safetensors")}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_images_become_a_classifier(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, told = tmp_path / "new" / "run", tmp_path / "result.json"
    more = ("--epochs", "30", "--randaugment", "0", "--crop_scale", "[0.8,1]", "--flip", "0", "--json", told)
    assert main(command(run, images, out, *more)) == 0
    result = json.loads((out / "accuracy.json").read_text())
    assert result == json.loads(told.read_text())
    assert result["top1"] > 0.9  # bars at two places: easy
    assert result["top5"] == 1.0
    assert [row["name"] for row in result["classes"]] == ["class_0", "class_1"]
    assert [row["images"] for row in result["classes"]] == [15, 15]
    last = capsys.readouterr().out.splitlines()[-1]
    found = re.fullmatch(r"top-1 (\S+)%, top-5 100.00% after the last epoch \(best epoch \S+: top-1 (\S+)%\)", last)
    assert found is not None, last
    assert float(found[1]) == pytest.approx(100 * result["top1"], abs=0.01)
    assert float(found[2]) == pytest.approx(100 * result["best_top1"], abs=0.01)

    # the numbers are those of a plain loop over the images, with what was saved
    model, classes, size = load_classifier(out)
    assert classes == ("class_0", "class_1")
    source, right = open_source(images), 0
    for k in range(len(source)):
        pixels = EvalTransform(size)(source.image(k, 3))[None]
        right += int(model(model.normalize(pixels)).argmax()) == source.label(k)
    assert result["top1"] == right / 30

    measured = [row for row in rows(out) if "top1" in row]
    assert [round(row["epoch"]) for row in measured] == list(range(2, 31, 2))
    assert measured[-1]["top1"] == result["top1"]
    assert max(row["top1"] for row in measured) == result["best_top1"]
    assert all(row["loss"] > 0 for row in rows(out))
    for name in ("README.md", "environment.json", "config.yaml", "pictures/curves.png", "pictures/confusion.png"):
        assert (out / name).stat().st_size > 100
    assert read_settings(out).run == str(run)


def test_the_moving_average_is_what_is_judged(tuned: Path) -> None:
    assert len(rows(tuned)) == 18
    averaged = load_classifier(tuned).model.state_dict()
    kept = load_file(last(tuned) / "model.safetensors")
    assert same(averaged, with_prefix(kept, "teacher."))
    student = with_prefix(kept, "student.")
    assert averaged.keys() == student.keys()
    assert not torch.equal(averaged["head.weight"], student["head.weight"])


def test_a_killed_run_ends_the_same(run: Path, images: Path, tuned: Path, tmp_path: Path) -> None:
    folder, start = tmp_path / "run", tmp_path / "start"
    shutil.copytree(run, start)  # a path of its own, to be taken away
    settings = read_settings(tuned)
    more = [f"--{name}={getattr(settings, name)}" for name in ("ema", "mixup", "erase", "accumulation_steps", "clip")]
    arguments = [*command(start, images, folder, *more), "--checkpoint_steps", "4", "--workers", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-m", "hardpatch", *arguments], env=environment) as process:
        for _ in range(2400):
            done = rows(folder)
            if done and done[-1]["step"] >= 6:
                break
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    step = int(checkpoints(folder / "checkpoints")[-1].name.removeprefix("step_"))
    assert 4 <= step < 18
    shutil.rmtree(start)  # what it began with is not needed any more
    assert main(["finetune", "--resume", "--out", str(folder), "--workers", "0"]) == 0
    assert same(saved(folder), saved(tuned))
    assert rows(folder) == rows(tuned)
    assert (folder / "accuracy.json").read_bytes() == (tuned / "accuracy.json").read_bytes()


class Stopping:
    """Asks the process to stop after some steps, as Ctrl-C does."""

    def __init__(self, after: int) -> None:
        self.left = after

    def start(self, step: int, total: int, batch_size: int) -> None: ...

    def advance(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    def metrics(self, row: dict[str, Any]) -> None: ...

    def stop(self) -> None: ...


def test_without_the_command_line_stopped_and_resumed(run: Path, images: Path, tmp_path: Path) -> None:
    settings = configure(
        "tiny",
        run=str(run),
        train=str(images),
        val=str(images),
        epochs=4.0,
        warmup_epochs=1.0,
        batch_size=10,
        eval_epochs=1.5,
        workers=0,
        device="cpu",
    )
    whole = finetune(settings, tmp_path / "whole")
    stopped = finetune(settings, tmp_path / "stopped", progress=Stopping(after=5))
    assert (stopped.step, stopped.total, stopped.signal) == (5, 12, signal.SIGTERM)
    assert not stopped.finished
    assert not (tmp_path / "stopped" / "accuracy.json").exists()
    resumed = finetune(settings, tmp_path / "stopped", resume=True)
    assert outcome(resumed) == outcome(whole)
    assert same(saved(tmp_path / "stopped"), saved(tmp_path / "whole"))
    again = finetune(settings, tmp_path / "stopped", resume=True)  # nothing is left to do
    assert outcome(again) == outcome(whole)


def outcome(result: Result) -> tuple[float, ...]:
    return result.top1, result.top5, result.best_top1, result.best_epoch, result.step


def test_from_scratch(run: Path, images: Path, tmp_path: Path) -> None:
    first = {}
    for name, more in {"a": [], "b": ["--from_scratch"], "c": ["--from_scratch", "--seed", "1"]}.items():
        assert main(command(run, images, tmp_path / name, "--epochs", "0.3", "--warmup_epochs", "0.3", *more)) == 0
        # one step at learning rate 0: the weights are what it began with
        first[name] = load_classifier(tmp_path / name).model.state_dict()["encoder.blocks.0.attn.qkv.weight"]
    from hardpatch import load

    trained = load(run).host.encoder.state_dict()["blocks.0.attn.qkv.weight"]
    assert torch.equal(first["a"], trained)
    assert not torch.equal(first["b"], first["a"])
    assert not torch.equal(first["c"], first["b"])
    assert read_settings(tmp_path / "a").layer_decay == 0.8
    assert read_settings(tmp_path / "b").layer_decay == 1.0


def test_pieces_of_a_batch_are_the_batch(run: Path, images: Path, tmp_path: Path) -> None:
    found = []
    for pieces in (1, 5):
        out = tmp_path / str(pieces)
        assert main(command(run, images, out, "--epochs", 1, "--drop_path", 0, "--accumulation_steps", pieces)) == 0
        found.append(rows(out)[:-1])
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_classes_go_by_their_names(run: Path, images: Path, tmp_path: Path) -> None:
    val = tmp_path / "val"
    shutil.copytree(images / "class_1", val / "class_1")  # label 0 here, 1 in the training set
    out = tmp_path / "run"
    assert main([*command(run, images, out), "--val", str(val), "--image_size", "24"]) == 0
    result = json.loads((out / "accuracy.json").read_text())
    assert result["classes"][0] == {"name": "class_0", "images": 0, "top1": None}
    assert result["classes"][1] == {"name": "class_1", "images": 15, "top1": result["top1"]}
    assert load_classifier(out).image_size == (24, 24)
    assert load_classifier(out).model.encoder.grid == (6, 6)


def test_other_hosts_and_gray_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label in range(2):
        (tmp_path / "gray" / str(label)).mkdir(parents=True)
        for k in range(5):
            pixels = rng.integers(0, 90, (32, 32), dtype=np.uint8) + np.uint8(100 * label)
            Image.fromarray(pixels).save(tmp_path / "gray" / str(label) / f"{k}.png")
    more = ["--method.host", "simmim", "--model.positions", "relative", "--model.layer_scale", "0.1"]
    more += ["--data.channels", "1", "--data.mean", "[0.5]", "--data.std", "[0.25]", "--steps", "1"]
    pretrained, images, out = tmp_path / "pretrained", tmp_path / "gray", tmp_path / "run"
    assert main(["pretrain", *SMALL, *more, "--data", str(images), "--out", str(pretrained)]) == 0
    augmented = ("--randaugment", 9, "--erase", 1, "--mixup", 0.8, "--image_size", 40)
    assert main(command(pretrained, images, out, *augmented, "--weights", "teacher")) == 0
    model, classes, size = load_classifier(out)
    assert (classes, size, model.encoder.channels) == (("0", "1"), (40, 40), 1)
    assert model(model.normalize(torch.zeros(1, 1, 40, 40, dtype=torch.uint8))).shape == (1, 2)


def test_mistakes(fails: Fails, run: Path, images: Path, tuned: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    good = command(run, images, out)
    assert "--out: expected a folder" in fails(*good[:6])
    assert "RUN: expected what to start from, got nothing" in fails("finetune", *good[2:])
    assert f"--train: {tmp_path}/missing: no such file" in fails(*good, "--train", tmp_path / "missing")
    assert f"--val: {tmp_path}/missing: no such file" in fails(*good, "--val", tmp_path / "missing")
    assert "does not exist" in fails(*command(tmp_path / "missing", images, out))
    assert "of another kind, classifier" in fails(*command(tuned, images, out))
    assert "expected a network of hardpatch finetune" in fails_to_load(run)
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "flat" / "a.png")
    assert "expected a label for every image" in fails(*good, "--train", tmp_path / "flat")
    other = write_images(tmp_path / "other", classes=3, each=1)
    assert "'class_2'" in fails(*good, "--val", other)
    one = write_images(tmp_path / "one", classes=1, each=2)
    assert "--train: expected two classes or more" in fails(*good, "--train", one, "--val", one)
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
    assert "mixup was 0.2, now 0.5; seed was 0, now 3" in line
    assert not out.exists()


def fails_to_load(run: Path) -> str:
    from hardpatch.errors import UserError

    with pytest.raises(UserError) as error:
        load_classifier(run)
    return str(error.value)


def test_resume_refuses_another_data_set(fails: Fails, run: Path, tmp_path: Path) -> None:
    folder, images = tmp_path / "run", write_images(tmp_path / "images", each=5)
    assert main(command(run, images, folder, "--epochs", 1)) == 0
    (images / "class_0" / "0.jpg").unlink()
    assert "began with 10 images" in fails("finetune", "--resume", "--out", folder)


def test_too_many_broken_validation_images(run: Path, images: Path, tmp_path: Path) -> None:
    val = write_images(tmp_path / "val", each=2)
    broken = val / "class_0" / "0.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    assert main([*command(run, images, tmp_path / "a"), "--val", str(val)]) == 2
    assert main([*command(run, images, tmp_path / "b"), "--val", str(val), "--max_bad_fraction", "0.3"]) == 0
    assert json.loads((tmp_path / "b" / "accuracy.json").read_text())["images"] == 3


def test_a_loss_that_explodes_is_told(run: Path, images: Path, tmp_path: Path) -> None:
    settings = configure(
        "tiny",
        run=str(run),
        train=str(images),
        val=str(images),
        batch_size=10,
        epochs=6,
        workers=0,
        device="cpu",
        warmup_epochs=0,
        base_lr=1e30,
    )
    with pytest.raises(TrainingError, match=r"NaN or infinite between steps .* lower --base_lr"):
        finetune(settings, tmp_path / "run")
    assert not checkpoints(tmp_path / "run" / "checkpoints")
