"""Exact resume: a run that is killed and resumed ends with the same bits as an uninterrupted one."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

from hardpatch.cli import main
from hardpatch.train.metrics import read_metrics
from tests.end_to_end.conftest import SMALL

STEPS = 100
COMMAND = [sys.executable, "-m", "hardpatch.cli", "pretrain", *SMALL, "--steps", str(STEPS)]
# One thread: the same sums in the same order on any machine. One worker: the loader runs ahead of the step.
OPTIONS = ["--data.workers", "1", "--train.checkpoint_steps", "4", "--train.log_every", "1"]
OPTIONS += ["--verdict.images", "10", "--data.hold_out", "10"]  # five checks during the training


def start(images: Path, folder: Path, *more: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*COMMAND, *OPTIONS, "--data", str(images), "--out", str(folder), *more]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_step(process: "subprocess.Popen[str]", folder: Path, step: int) -> None:
    for _ in range(2400):
        rows = read_metrics(folder / "metrics.jsonl")
        if rows and rows[-1]["step"] >= step:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("the run makes no progress")


@pytest.fixture(scope="module")
def uninterrupted(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    process = start(images, folder)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return folder


def final_files(folder: Path) -> dict[str, bytes]:
    checkpoint = folder / "checkpoints" / f"step_{STEPS:08d}"
    return {path.name: path.read_bytes() for path in sorted(checkpoint.iterdir())}


def metrics(folder: Path) -> list[dict[str, float]]:
    return [
        {k: v for k, v in row.items() if k != "images_per_second"} for row in read_metrics(folder / "metrics.jsonl")
    ]


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_stopped_at_a_random_step_ends_the_same(
    kind: signal.Signals, images: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    process = start(images, folder)
    step = random.Random().randint(5, STEPS // 2)  # 30 images, 16 a step: nearly always within an epoch
    wait_for_step(process, folder, step)
    process.send_signal(kind)
    out, errors = process.communicate(timeout=60)
    if kind == signal.SIGTERM:
        assert process.returncode == 128 + kind, errors
        assert f"hardpatch pretrain --resume --out {folder}" in out
    else:
        assert process.returncode == -kind
    assert not (folder / "checkpoints" / f"step_{STEPS:08d}").exists()
    process = start(images, folder, "--resume")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert final_files(folder) == final_files(uninterrupted)
    assert metrics(folder) == metrics(uninterrupted)


def test_resume_alone_takes_the_settings_of_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads((run / "environment.json").read_text())
    newest = run / "checkpoints" / "step_00000012" / "model.safetensors"
    changed = newest.stat().st_mtime
    assert main(["pretrain", "--resume", "--out", str(run)]) == 0
    assert "12 steps done" in capsys.readouterr().out
    assert newest.stat().st_mtime == changed
    assert before["torch"] == json.loads((run / "environment.json").read_text())["torch"]


def test_the_difficulty_memory_is_restored(images: Path, tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    arguments = ["--data", str(images), "--data.workers", "0", "--steps", "8", "--fast.remember", "true"]
    arguments += ["--method.alpha_start", "0.5", "--train.checkpoint_steps", "4", "--train.log_every", "1"]
    assert main(["pretrain", *SMALL, *arguments, "--out", str(run)]) == 0
    shutil.copytree(run, other)
    last = Path("checkpoints", "step_00000008")
    shutil.rmtree(other / last)  # as if the run had been killed after step 4
    assert main(["pretrain", *SMALL, *arguments, "--out", str(other), "--resume"]) == 0
    for name in ("model.safetensors", "training.safetensors"):
        assert (other / last / name).read_bytes() == (run / last / name).read_bytes()
    assert metrics(other) == metrics(run)
    with safe_open(run / last / "training.safetensors", "pt") as file:
        maps = file.get_tensor("memory/maps")
    assert not maps.isnan().all()

    def scored(*options: str) -> list[dict[str, Any]]:
        out = tmp_path / "score"
        assert main(["score", str(run), str(images), "--out", str(out), "--pictures", "0", *options]) == 0
        return pq.read_table(out / "scores.parquet").to_pylist()

    # This run mines by the losses that the student predicted for masked patches, so score uses the same prediction.
    assert scored() == scored("--predict", "masked")
    assert scored() != scored("--predict", "whole")


def test_a_step_schedule_and_block_masks_resume(images: Path, tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    arguments = ["--data", str(images), "--data.workers", "0", "--steps", "8", "--train.checkpoint_steps", "4"]
    arguments += ["--method.mask", "block", "--optim.schedule", "step", "--optim.step_at", "0.75", "--optim.lr", "1e-3"]
    arguments += ["--optim.warmup", "0.25", "--train.log_every", "1"]
    assert main(["pretrain", *SMALL, *arguments, "--out", str(run)]) == 0
    rates = [row["lr"] for row in metrics(run) if "lr" in row]
    assert rates == pytest.approx([0.0, 5e-4, 1e-3, 1e-3, 1e-3, 1e-3, 1e-4, 1e-4])
    shutil.copytree(run, other)
    last = Path("checkpoints", "step_00000008")
    shutil.rmtree(other / last)
    assert main(["pretrain", *SMALL, *arguments, "--out", str(other), "--resume"]) == 0
    for name in ("model.safetensors", "training.safetensors"):
        assert (other / last / name).read_bytes() == (run / last / name).read_bytes()
    assert metrics(other) == metrics(run)
