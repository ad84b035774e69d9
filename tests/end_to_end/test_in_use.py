"""A run folder that is in use is refused to every other training; links in it are replaced, never followed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

import hardpatch
from hardpatch.cli import main
from hardpatch.errors import UserError
from hardpatch.train import checkpoint
from hardpatch.train.lock import LOCK, locked
from tests.end_to_end import test_jobs as known
from tests.end_to_end.conftest import PICTURES, SMALL
from tests.end_to_end.test_jobs import NAMES, Job, newest

data, encoder, jobs = known.data, known.encoder, known.jobs  # fixtures


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_in_use_is_refused(name: str, jobs: dict[str, Job], data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    expected = rf"^--out: .*run is in use by process {os.getpid()} on "
    with locked(run):
        if name != "table_d":
            with pytest.raises(UserError, match=expected):
                jobs[name](run, data)
        assert [path.name for path in run.iterdir()] == [LOCK]
    jobs[name](run, data)
    assert not (run / LOCK).exists()
    with locked(run), pytest.raises(UserError, match=expected):
        jobs[name](run, data, resume=True)


def test_a_second_command_beside_a_running_one(images: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    out = tmp_path / "run"
    command = ["pretrain", *SMALL, "--data", str(images), "--steps", "100000", "--verdict.checks", "0"]
    command += ["--train.checkpoint_steps", "1", "--train.keep_checkpoints", "1", "--out", str(out)]
    with subprocess.Popen(
        [sys.executable, "-m", "hardpatch", *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            deadline = time.monotonic() + 120
            while checkpoint.newest(out) is None:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            for second in (command, ["pretrain", "--resume", "--out", str(out)]):
                line = fails(*second)
                assert f"{out} is in use by process {process.pid} on " in line
                assert "hardpatch pretrain" in line
            for _ in range(10):  # the training removes each checkpoint when it has written the next one
                hardpatch.load(out)
                assert main(["info", str(out)]) == 0
        finally:
            process.send_signal(signal.SIGUSR1)
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGUSR1
    assert f"hardpatch pretrain --resume --out {out}" in printed
    assert not (out / LOCK).exists()


def test_of_two_that_start_together_one_trains(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "hardpatch", "pretrain", *SMALL, "--data", str(images), "--out", str(out)]
    command += ["--steps", "3", "--verdict.checks", "0"]
    processes = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert sorted(codes) == [0, 2], errors
    line = errors[codes.index(2)].splitlines()[-1]
    assert "is in use by process" in line or "already holds a run" in line
    assert newest(out).name == "step_00000003"


def test_a_start_that_was_killed_does_not_block_the_same_command(images: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(run, out, ignore=shutil.ignore_patterns("config.yaml", "step_*", "*.jsonl", "*.json", "log.txt"))
    for name in ("tensorboard", "pictures", "neighbors.safetensors", "report.html"):
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    shutil.copy(run / "environment.json", out)
    (out / ".config.partial.yaml").write_text("half")
    shutil.rmtree(out / "features", ignore_errors=True)
    command = ["pretrain", *SMALL, "--data", str(images), "--steps", "2", "--verdict.checks", "0", "--out", str(out)]
    assert main(command) == 0
    assert not (out / ".config.partial.yaml").exists()


def test_links_are_replaced_and_their_targets_stay(images: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "run", tmp_path / "other"
    command = ["pretrain", *SMALL, *PICTURES, "--data", str(images), "--steps", "4", "--train.checkpoint_steps", "2"]
    assert main([*command, "--verdict.checks", "0", "--out", str(out)]) == 0
    shutil.rmtree(newest(out))
    other.mkdir()
    names = [
        "log.txt",
        "README.md",
        "metrics.jsonl",
        "environment.json",
        "config.yaml",
        "result.json",
        "undecodable.txt",
    ]
    for name in names:
        (other / name).write_text((out / name).read_text() if (out / name).exists() else "")
        (out / name).unlink(missing_ok=True)
        (out / name).symlink_to(other / name)
    (out / ".config.partial.yaml").symlink_to(other / "config.yaml")
    for name in ("pictures", "tensorboard"):
        shutil.rmtree(out / name)
        (other / name).mkdir()
        (out / name).symlink_to(other / name)
    before = {path.name: path.read_bytes() for path in other.iterdir() if path.is_file()}
    assert main(["pretrain", "--resume", "--out", str(out)]) == 0
    assert {path.name: path.read_bytes() for path in other.iterdir() if path.is_file()} == before
    assert [list((other / name).iterdir()) for name in ("pictures", "tensorboard")] == [[], []]
    assert [path.name for path in out.rglob("*") if path.is_symlink()] == []
    assert json.loads((out / "result.json").read_text())["steps"] == 4
    assert load_file(newest(out) / checkpoint.WEIGHTS)


def test_checkpoints_behind_a_link_are_refused(run: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    out = tmp_path / "run"
    shutil.copytree(run, out)
    (out / "checkpoints").rename(tmp_path / "elsewhere")
    (out / "checkpoints").symlink_to(tmp_path / "elsewhere")
    assert "is a symbolic link, and a run writes nothing outside its folder: move" in fails(
        "pretrain", "--resume", "--out", out
    )
    assert main(["info", str(out)]) == 0
