"""A loader process that dies is replaced once; the second time at one step the training ends, saved, with one line."""

import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import hardpatch
from hardpatch.cli import main
from hardpatch.data import folders
from hardpatch.data.loader import WorkerDiedError
from hardpatch.data.order import TrainingOrder
from hardpatch.data.sources import open_source
from hardpatch.train import checkpoint
from tests.end_to_end.conftest import SMALL


def children(pid: int) -> list[int]:
    """Return the child processes of a process that run Python's loaders."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


def test_a_killed_process_is_replaced(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "hardpatch", "pretrain", *SMALL, "--data", str(images), "--out", str(out)]
    command += ["--data.workers", "2", "--train.log_every", "1", "--steps", "300", "--verdict.checks", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        metrics = out / "metrics.jsonl"
        while not (metrics.is_file() and metrics.read_text().count("\n") > 1 and children(process.pid)):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(children(process.pid)[0], signal.SIGKILL)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    (line,) = [line for line in errors.splitlines() if "a process that decodes images ended" in line]
    assert "(SIGKILL: killed, maybe since memory ran out); it was reading " + str(images) in line
    assert line.endswith("The training goes on with new processes")
    assert checkpoint.newest(out) == out / "checkpoints" / "step_00000300"


@pytest.mark.usefixtures("one_thread")
def test_a_file_that_kills_its_reader_is_named(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fifth_batch = next(islice(iter(TrainingOrder(30, 4, 0, 0, 0, 1)), 4, None))
    read, poison = folders.read_file, open_source(str(images)).name(int(fifth_batch[0, 1]))
    main_process = os.getpid()

    def read_or_die(name: str) -> bytes:
        if name == poison and os.getpid() != main_process:
            os.kill(os.getpid(), signal.SIGSEGV)
        return read(name)

    out = tmp_path / "run"
    settings: dict[str, Any] = {
        "data.workers": 1,
        "steps": 20,
        "verdict.checks": 0,
        "train.log_every": 1,
        "batch_size": 4,
    }
    sizes: dict[str, Any] = {"model.width": 32, "model.depth": 1, "model.heads": 2, "model.decoder_width": 16}
    monkeypatch.setattr(folders, "read_file", read_or_die)
    with pytest.raises(
        WorkerDiedError, match=rf"\(SIGSEGV\); it was reading {poison}; .* To go on after step (\d+), add"
    ) as caught:
        hardpatch.pretrain("demo", data=str(images), out=out, **settings, **sizes)
    step = int(str(caught.value).partition("after step ")[2].partition(",")[0])
    assert step <= 4
    saved = checkpoint.newest_whole(out)
    assert (0 if saved is None else int(saved.name.removeprefix("step_"))) == step
    monkeypatch.undo()
    assert main(["pretrain", "--resume", "--out", str(out)]) == 0
    assert (f"step {step} of 20" if step else "20 steps of 4") in capsys.readouterr().err


ORPHANS = """
import os, time
from hardpatch.data import loader
write = loader.write_names_to
def slowly(names, worker):
    write(names, worker)
    print("begun", flush=True)
    time.sleep(1)
loader.write_names_to = slowly
batches = iter(loader.batch_loader([1, 2, 3], None, 2))
time.sleep(0.5)
os.kill(os.getpid(), 9)
"""


def test_no_process_outlives_a_parent_that_is_killed_as_it_starts() -> None:
    """Until torch's watchdog begins, whoever adopted a process counts as its parent, and it waited for that one."""
    result = subprocess.run([sys.executable, "-c", ORPHANS], capture_output=True, text=True, timeout=60)
    assert result.returncode == -signal.SIGKILL  # its output has ended, so that the two processes have, too
    assert result.stdout == "begun\n" * 2, result.stderr
