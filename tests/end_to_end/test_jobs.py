"""All jobs of the training loop keep the same promises: resume, divergence, signals, files that cannot be decoded."""

import json
import logging
import math
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

import hardpatch
from hardpatch.cli import main
from hardpatch.configuration import config
from hardpatch.errors import TrainingError, UserError
from hardpatch.finetune.settings import PRESETS, SCRATCH
from hardpatch.pretrain import recipes
from hardpatch.study.table_d import train_supervised
from hardpatch.train import checkpoint
from hardpatch.train.bad_steps import BadSteps
from hardpatch.train.progress import Progress, Silent
from hardpatch.train.settings import changed
from tests.end_to_end.conftest import SMALL, kill_after, write_images

STEPS = 6
LOOP: dict[str, Any] = {"steps": STEPS, "batch_size": 4, "log_every": 1, "checkpoint_steps": 2, "workers": 0}

Job = Callable[..., Any]
"""Trains in a folder on some data: ``job(folder, data, resume=, progress=, max_bad_fraction=)``."""


class At(Silent):
    """Call ``action`` after a step."""

    def __init__(self, step: int, action: Callable[[], object]) -> None:
        self.step, self.action, self.steps = step, action, 0

    def start(self, step: int, total: int, batch_size: int, folder: Path | None = None) -> None:
        self.steps = step

    def advance(self) -> None:
        self.steps += 1
        if self.steps == self.step:
            self.action()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two classes, pairs with label maps, and COCO annotations, in folders of those names."""
    root = tmp_path_factory.mktemp("jobs")
    write_images(root / "labeled", each=6)
    rng = np.random.default_rng(0)
    objects, images = [], []
    for name in ("images", "labels"):
        (root / "pairs" / name).mkdir(parents=True)
    (root / "coco").mkdir()
    for number in range(8):
        left = int(rng.integers(4, 40))
        pixels = rng.integers(0, 90, (64, 64, 3), dtype=np.uint8)
        labels = np.zeros((64, 64), dtype=np.uint8)
        pixels[20:44, left : left + 20] += 150
        labels[20:44, left : left + 20] = 1
        Image.fromarray(pixels).save(root / "pairs" / "images" / f"{number}.png")
        Image.fromarray(labels).save(root / "pairs" / "labels" / f"{number}.png")
        Image.fromarray(pixels).save(root / "coco" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 64, "width": 64})
        corners = [left, 20, left + 20, 20, left + 20, 44, left, 44]
        objects.append(
            {
                "id": number + 1,
                "image_id": number,
                "category_id": 1,
                "bbox": [left, 20, 20, 24],
                "area": 480,
                "iscrowd": 0,
                "segmentation": [corners],
            }
        )
    content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "bar"}]}
    (root / "coco.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """Pre-train four blocks, for the verbs that start from a run."""
    folder = tmp_path_factory.mktemp("encoder") / "run"
    settings = [*SMALL, "--model.depth", "4", "--steps", "2", "--data", str(data / "labeled"), "--out", str(folder)]
    assert main(["pretrain", *settings]) == 0
    return folder


@pytest.fixture(scope="module")
def jobs(encoder: Path) -> dict[str, Job]:
    """Return the seven jobs, by name."""

    def pretrain(folder: Path, root: Path, *, max_bad_fraction: float = 0.0, **options: Any) -> Any:
        settings: dict[str, Any] = {
            "train.log_every": 1,
            "train.checkpoint_steps": 2,
            "data.workers": 0,
            "data.max_bad_fraction": max_bad_fraction,
            "steps": STEPS,
            "batch_size": 4,
            "model.width": 32,
            "model.depth": 2,
            "model.heads": 2,
            "model.decoder_width": 16,
            "method.alpha_start": 0.3,
            "optim.lr": 1e-3,
        }
        return hardpatch.pretrain("demo", data=str(root / "labeled"), out=folder, **options, **settings)

    def finetune(folder: Path, root: Path, *, max_bad_fraction: float = 0.0, **options: Any) -> Any:
        images = str(root / "labeled")
        settings = {**LOOP, "warmup_epochs": 0.1, "ema": 0.9, "max_bad_fraction": max_bad_fraction}
        return hardpatch.finetune(str(encoder), images, images, folder, **options, **settings)

    def linear(folder: Path, root: Path, *, max_bad_fraction: float = 0.0, **options: Any) -> Any:
        images, settings = str(root / "labeled"), {**LOOP, "warmup_epochs": 0.1, "max_bad_fraction": max_bad_fraction}
        return hardpatch.train_linear_probe(str(encoder), images, images, folder, **options, **settings)

    def segment(folder: Path, root: Path, *, max_bad_fraction: float = 0.0, **options: Any) -> Any:
        pairs = str(root / "pairs")
        sizes: dict[str, Any] = {"crop": (32, 32), "short_side": 32, "channels": 8, "warmup_steps": 1}
        settings = {**LOOP, **sizes, "max_bad_fraction": max_bad_fraction}
        return hardpatch.segment(str(encoder), pairs, pairs, folder, classes="2", **options, **settings)

    def detect(folder: Path, root: Path, *, max_bad_fraction: float = 0.0, **options: Any) -> Any:
        images, annotations = str(root / "coco"), str(root / "coco.json")
        sizes = {"image_size": 64, "channels": 8, "head_width": 16, "rois": 16}
        settings: dict[str, Any] = {**LOOP, **sizes, "max_bad_fraction": max_bad_fraction}
        return hardpatch.detect(str(encoder), images, annotations, images, annotations, folder, **options, **settings)

    def tokenizer(folder: Path, root: Path, *, max_bad_fraction: float = 0.0, **options: Any) -> Any:
        sizes: dict[str, Any] = {"image_size": 16, "patch_size": 8, "vocabulary": 16, "width": 16}
        settings = {**LOOP, **sizes, "max_bad_fraction": max_bad_fraction}
        return hardpatch.train_tokenizer(str(root / "labeled"), folder, **options, **settings)

    def table_d(
        folder: Path,
        root: Path,
        *,
        resume: bool = False,
        progress: Progress | None = None,
        max_bad_fraction: float = 0.0,
    ) -> Any:
        images = str(root / "labeled")
        run = config.build(recipes.read("demo"), ["--model.width=32", "--model.depth=2", "--model.heads=2"])
        more = {**LOOP, "warmup_epochs": 0.1, "val_every": None, "max_bad_fraction": max_bad_fraction}
        settings = changed(PRESETS["paper"], SCRATCH | more)
        return train_supervised(run, settings, folder, images, images, "random", None, progress or Silent())

    return {
        "pretrain": pretrain,
        "finetune": finetune,
        "linear": linear,
        "segment": segment,
        "detect": detect,
        "tokenizer": tokenizer,
        "table_d": table_d,
    }


NAMES = ("pretrain", "finetune", "linear", "segment", "detect", "tokenizer", "table_d")


def newest(folder: Path) -> Path:
    saved = checkpoint.newest(folder)
    assert saved is not None
    return saved


def assert_same_checkpoint(one: Path, other: Path) -> None:
    assert one.name == other.name
    for file in (checkpoint.WEIGHTS, checkpoint.TRAINING):
        assert (one / file).read_bytes() == (other / file).read_bytes(), file


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", NAMES)
def test_a_killed_job_resumes_to_the_same_bits(name: str, jobs: dict[str, Job], data: Path, tmp_path: Path) -> None:
    job, whole, killed = jobs[name], tmp_path / "whole", tmp_path / "killed"
    job(whole, data)
    process = os.fork()
    if process == 0:  # killed without cleanup, in the step after the checkpoint of step 2
        job(killed, data, progress=At(3, lambda: kill_after(killed / "checkpoints" / "step_00000002")))
        os._exit(1)
    assert os.waitpid(process, 0)[1] == signal.SIGKILL
    assert newest(killed).name == "step_00000002"
    job(killed, data, resume=True)
    assert_same_checkpoint(newest(whole), newest(killed))
    lines = [
        [
            {key: value for key, value in json.loads(line).items() if key != "images_per_second"}
            for line in (folder / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in (whole, killed)
    ]
    assert lines[0] == lines[1]


@pytest.mark.parametrize("name", NAMES)
def test_divergence_leaves_the_last_good_checkpoint(
    name: str, jobs: dict[str, Job], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer: Any = torch.optim.SGD if name == "linear" else torch.optim.AdamW
    step, calls = optimizer.step, []

    def poisoned(self: torch.optim.Optimizer, *arguments: Any, **options: Any) -> Any:
        result = step(self, *arguments, **options)
        calls.append(1)
        if len(calls) == 4:  # the loss of this step was finite, its update is not
            self.param_groups[0]["params"][0].data.fill_(float("nan"))
        return result

    monkeypatch.setattr(optimizer, "step", poisoned)
    with pytest.raises(TrainingError, match=r"NaN or infinite .*nothing of that was saved"):
        jobs[name](tmp_path / "run", data)
    saved = newest(tmp_path / "run")
    assert saved.name == "step_00000002"
    assert all(value.isfinite().all() for value in load_file(saved / checkpoint.WEIGHTS).values())


@pytest.mark.parametrize("name", NAMES)
def test_bad_steps_change_no_weight(
    name: str, jobs: dict[str, Job], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = BadSteps.nan_unless_finite, []

    def nan_at_the_end(self: BadSteps, loss: torch.Tensor) -> torch.Tensor:
        calls.append(loss)
        return original(self, loss * (math.nan if len(calls) > STEPS - 2 else 1.0))

    monkeypatch.setattr(BadSteps, "nan_unless_finite", nan_at_the_end)
    jobs[name](tmp_path / "run", data)
    before, last = (tmp_path / "run" / "checkpoints" / f"step_{step:08d}" for step in (STEPS - 2, STEPS))
    for file in (checkpoint.WEIGHTS, checkpoint.TRAINING):
        one, other = load_file(before / file), load_file(last / file)
        same = {key: torch.equal(one[key], other[key]) for key in one if not key.startswith("teacher.")}
        assert same == dict.fromkeys(same, True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_saves_and_stops(
    name: str, number: signal.Signals, jobs: dict[str, Job], data: Path, tmp_path: Path
) -> None:
    result = jobs[name](tmp_path / "run", data, progress=At(3, lambda: os.kill(os.getpid(), number)))
    assert result.signal == number
    assert newest(tmp_path / "run").name == "step_00000003"


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_while_logging_saves_and_stops_after_the_next_step(
    name: str, jobs: dict[str, Job], data: Path, tmp_path: Path
) -> None:
    class WhileLogging(Silent):
        def metrics(self, row: dict[str, Any]) -> None:
            if row["step"] == 3 and "loss" in row:  # there is no checkpoint of this step
                os.kill(os.getpid(), signal.SIGTERM)

    result = jobs[name](tmp_path / "run", data, progress=WhileLogging())
    assert result.signal == signal.SIGTERM
    assert newest(tmp_path / "run").name == "step_00000004"


@pytest.mark.parametrize("name", NAMES)
def test_a_corrupt_image_is_counted_and_skipped_up_to_the_limit(
    name: str, jobs: dict[str, Job], data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "data"
    shutil.copytree(data, root)
    broken = [root / "labeled" / "class_0" / "1.jpg", root / "pairs" / "images" / "1.png", root / "coco" / "1.png"]
    for path in broken:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    logging.getLogger("hardpatch").propagate = True
    with caplog.at_level(logging.WARNING, logger="hardpatch"):
        jobs[name](tmp_path / "run", root, max_bad_fraction=0.5)
    assert newest(tmp_path / "run").name == f"step_{STEPS:08d}"
    named = [record.getMessage() for record in caplog.records if record.getMessage().startswith("cannot ")]
    assert len([line for line in named if "1.jpg" in line or "1.png" in line]) >= 1
    with pytest.raises(UserError, match=r"max_bad_fraction: 1 of \d+ images .*raise --(data\.)?max_bad_fraction"):
        jobs[name](tmp_path / "strict", root, max_bad_fraction=0.01)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_signal_to_the_whole_process_group_saves(workers: str, tmp_path: Path) -> None:
    """Send the signal as `timeout`, systemd and Slurm do: to the loader's processes, too."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "hardpatch", "pretrain", *SMALL, "--steps", "100000", "--data.workers", workers]
    with subprocess.Popen(
        [*command, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as process:
        metrics, deadline = out / "metrics.jsonl", time.monotonic() + 120
        while not (metrics.is_file() and metrics.read_text().count("\n") > 1):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        for _ in range(2):  # `timeout` sends it twice
            os.killpg(process.pid, signal.SIGTERM)
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "nothing is lost" in printed
    assert len(checkpoint.checkpoints(out / "checkpoints")) == 1


def test_a_dead_terminal_does_not_end_a_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "hardpatch", "pretrain", *SMALL, "--train.log_every", "1", "--steps", "12"]
    reader, writer = os.pipe()
    with subprocess.Popen([*command, "--out", str(out)], stdout=writer, stderr=writer) as process:
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)  # every write fails from now on
        assert process.wait(timeout=120) == 0
    assert newest(out).name == "step_00000012"
    assert (out / "result.json").is_file()


@pytest.mark.parametrize("verb", ["score", "study", "embed", "export", "shrink", "evaluate"])
def test_several_processes_are_refused(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert main([verb]) == 2
    assert capsys.readouterr().err.startswith(f"hardpatch {verb}: WORLD_SIZE: expected 1 process, got 2; ")
    monkeypatch.setenv("RANK", "1")
    assert main([verb]) == 2
    assert capsys.readouterr().err == ""
