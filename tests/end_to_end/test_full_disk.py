"""A disk that is full: one line, no half-written file, and what was saved before stays."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hardpatch.cli import main
from hardpatch.errors import TrainingError
from hardpatch.pickles import save_tensors
from hardpatch.train import checkpoint, saving
from hardpatch.train.metrics import MetricsLog, read_metrics
from tests.end_to_end import test_jobs as known
from tests.end_to_end.conftest import SMALL
from tests.end_to_end.test_jobs import NAMES, Job, newest

data, encoder, jobs = known.data, known.encoder, known.jobs  # fixtures


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 400 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, left: int = 0) -> Path:
    """Fill the disk with one file but for the bytes ``left``, and return the file."""
    file = disk / "filler"
    with file.open("wb", buffering=0) as opened, suppress(OSError):
        while opened.write(b"x" * 4096):
            pass
    with file.open("r+b") as opened:
        opened.truncate(max(0, file.stat().st_size - left))
    return file


def test_a_run_that_finds_no_room_leaves_none_taken(
    images: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = disk / "run"
    command = ["pretrain", *SMALL, "--data", str(images), "--steps", "4", "--train.checkpoint_steps", "2"]
    command += ["--verdict.checks", "0", "--out", str(out)]
    assert main(command) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [
        line for line in lines if "the disk of" in line and "2 checkpoints and the next one take 0.6 MiB each" in line
    ]
    assert [line for line in lines if "the checkpoint of step 2 cannot be written" in line and "goes on" in line]
    assert lines[-1] == (
        f"hardpatch pretrain: the checkpoint of step 4 cannot be written to {out}: No space left on device; make room, "
        "then run the command again"
    )
    assert list(disk.iterdir()) == []
    subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
    assert main(command) == 0


def test_a_full_disk_at_the_start(images: Path, disk: Path, fails: Callable[..., str]) -> None:
    fill(disk)
    line = fails("pretrain", *SMALL, "--data", images, "--steps", "2", "--out", disk / "run")
    assert line == (
        f"hardpatch pretrain: --out: expected a folder that can be written, got {disk / 'run'}: No space left on device"
    )
    assert [path.name for path in disk.iterdir()] == ["filler"]


def test_a_cache_is_not_needed(run: Path, images: Path, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run / "checkpoints" / "step_00000012", disk.parent / "step_00000012")
    fill(disk)
    command = ["knn", str(disk.parent / "step_00000012"), "--train", str(images), "--val", str(images)]
    assert main([*command, "--workers", "0", "--cache", str(disk / "features")]) == 0
    assert "features are not cached: cannot write to" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_that_does_not_fit_leaves_the_one_before_it(
    name: str, jobs: dict[str, Job], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = save_tensors

    def write_or_fail(tensors: Any, path: Path, metadata: dict[str, str]) -> None:
        if path.name == checkpoint.TRAINING and json.loads(metadata["hardpatch"])["step"] > 2:
            path.write_bytes(b"half")
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        write(tensors, path, metadata)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(saving, "save_tensors", write_or_fail)
        with pytest.raises(
            TrainingError, match=r"of step 6 cannot be written to .*: Disk quota exceeded; .* step_00000002$"
        ):
            jobs[name](run, data)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000002"]
    assert checkpoint.newest_whole(run) == newest(run)
    assert read_metrics(run / "metrics.jsonl")[-1]["step"] == 6
    jobs[name](run, data, resume=True)
    assert newest(run).name == "step_00000006"


def test_lines_of_metrics_wait_for_room(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = MetricsLog(disk)
    log.write({"step": 1, "loss": 0.5})
    filler = fill(disk)
    for step in range(2, 400):
        log.write({"step": step, "loss": 0.5})
    filler.unlink()
    log.write({"step": 400, "loss": 0.5})
    log.close()
    assert [row["step"] for row in read_metrics(disk / "metrics.jsonl")] == list(range(1, 401))
    assert len([line for line in caplog.messages if "its lines are kept until it can" in line]) == 1


def test_a_limit_on_the_size_of_files(images: Path, tmp_path: Path) -> None:
    command = ["pretrain", *SMALL, "--data", str(images), "--steps", "2", "--verdict.checks", "0"]
    process = subprocess.run(
        [sys.executable, "-m", "hardpatch", *command, "--out", str(tmp_path / "run")],
        check=False,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)),
    )
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    assert process.stderr.splitlines()[-1].startswith(
        "hardpatch pretrain: the checkpoint of step 2 cannot be written to"
    )
    assert not (tmp_path / "run").exists()


def test_output_that_cannot_be_written(run: Path, images: Path, tmp_path: Path) -> None:
    python = [sys.executable, "-m", "hardpatch"]
    with open("/dev/full", "w", encoding="utf-8") as full:
        info = subprocess.run([*python, "info", str(run)], check=False, stdout=full, stderr=subprocess.PIPE, text=True)
        assert info.returncode == 1
        assert info.stderr == "hardpatch: cannot write to stdout: No space left on device\n"
        command = ["pretrain", *SMALL, "--data", str(images), "--steps", "2", "--verdict.checks", "0"]
        command += ["--out", str(tmp_path / "run")]
        assert subprocess.run([*python, *command], check=False, stdout=full, stderr=full).returncode == 0
    assert (tmp_path / "run" / "result.json").is_file()
    closed = subprocess.run(["bash", "-c", f"{' '.join(python)} info {run} >&- 2>&-"], check=False)
    assert closed.returncode == 0
    head = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {' '.join(python)} info {run} | head -1"], check=False, capture_output=True
    )
    assert (head.returncode, head.stderr) == (0, b"")
