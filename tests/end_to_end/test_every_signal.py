"""Each row of the table of signals in docs/reliability.md: exit code, message, and a checkpoint of the last step.

Processes are forked from this one, so that they need not import for seconds.
"""

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from hardpatch.cli import main
from hardpatch.train import checkpoint
from hardpatch.train.metrics import read_metrics
from tests.end_to_end.conftest import SMALL

STOPPING = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "SIGUSR1": 138, "SIGUSR2": 140, "SIGQUIT": 131}
pytestmark = pytest.mark.usefixtures("one_thread")


def command(images: Path, out: Path, steps: int = 3000) -> list[str]:
    loop = ["--train.log_every", "1", "--train.checkpoint_steps", "100000", "--verdict.checks", "0"]
    return ["pretrain", *SMALL, *loop, "--data", str(images), "--steps", str(steps), "--out", str(out)]


def call(arguments: list[str]) -> None:
    """Run a command and end the process with its exit code."""
    code = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a process of the background
        code = main(arguments)
    finally:
        os._exit(code)


def wait_for_step(out: Path, pid: int, meanwhile: Callable[[], object] = lambda: None) -> None:
    deadline = time.monotonic() + 120
    while not any(row["step"] >= 3 for row in read_metrics(out / "metrics.jsonl")):
        assert os.waitpid(pid, os.WNOHANG)[0] == 0, "the run has ended"
        assert time.monotonic() < deadline
        meanwhile()
        time.sleep(0.01)


def code_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def assert_nothing_is_lost(out: Path) -> None:
    """Compare the last line of metrics with the checkpoint, the only one: the same step."""
    (saved,) = checkpoint.checkpoints(out / "checkpoints")
    assert saved.name == f"step_{read_metrics(out / 'metrics.jsonl')[-1]['step']:08d}"
    assert checkpoint.newest_whole(out) == saved
    assert not (out / "run.lock").exists()


@pytest.mark.parametrize("name", STOPPING)
def test_signals_that_save(name: str, images: Path, tmp_path: Path) -> None:
    out, printed = tmp_path / "run", tmp_path / "printed.txt"
    pid = os.fork()
    if pid == 0:
        handle = os.open(printed, os.O_WRONLY | os.O_CREAT)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        call(command(images, out))
    wait_for_step(out, pid)
    for number in (signal.SIGPIPE, signal.SIGCONT, signal.SIGWINCH):  # nothing comes of these
        os.kill(pid, number)
    os.kill(pid, signal.Signals[name])
    assert code_of(pid) == STOPPING[name]
    assert "stopping after this step, with a checkpoint" in printed.read_text()
    assert "Traceback" not in printed.read_text()
    assert_nothing_is_lost(out)


@pytest.mark.parametrize("nohup", [False, True])
def test_a_terminal_that_is_closed(nohup: bool, images: Path, tmp_path: Path) -> None:
    """A terminal that is closed sends SIGHUP, and every write to it fails: the run saves, or goes on under nohup."""
    out = tmp_path / "run"
    pid, master = pty.fork()
    if pid == 0:
        if nohup:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        call(command(images, out, 40 if nohup else 3000))
    os.set_blocking(master, False)

    def read() -> None:
        with suppress(BlockingIOError):
            os.read(master, 65536)

    wait_for_step(out, pid, read)
    os.close(master)
    assert code_of(pid) == (0 if nohup else 129)
    if nohup:
        assert (out / "result.json").is_file()
    else:
        assert_nothing_is_lost(out)


def test_a_command_without_any_output(images: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "hardpatch", *command(images, tmp_path / "run", 4)]
    closed = subprocess.run(["bash", "-c", 'exec "$@" >&- 2>&- <&-', "closed", *line], check=False, timeout=120)
    assert closed.returncode == 0
    assert (tmp_path / "run" / "result.json").is_file()
