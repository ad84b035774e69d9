"""One process at a time in a run folder: living, dead and foreign holders of the lock."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hardpatch.errors import UserError
from hardpatch.train import lock
from hardpatch.train.lock import LOCK, locked, refuse_used

HOLD = """
import sys, time
from pathlib import Path
from hardpatch.train.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
RACE = """
import sys, time
from pathlib import Path
from hardpatch.errors import UserError
from hardpatch.train.lock import locked
time.sleep(max(0, float(sys.argv[2]) - time.time()))
try:
    with locked(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
except UserError as error:
    print(error, flush=True)
"""


def hold(folder: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


def write_lock(folder: Path, **changes: Any) -> Path:
    """Write the lock of this process, with some values changed."""
    folder.mkdir(exist_ok=True)
    (folder / LOCK).write_text(json.dumps(lock._own()._asdict() | changes))
    return folder / LOCK


def test_it_is_held_during_the_block_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    with locked(folder):
        values = json.loads((folder / LOCK).read_text())
        assert values["pid"] == os.getpid()
        assert {"host", "machine", "started", "command", "since"} <= values.keys()
    assert list(tmp_path.iterdir()) == []
    folder.mkdir(parents=True)
    with pytest.raises(RuntimeError, match="a fault"), locked(folder):
        raise RuntimeError("a fault")
    assert list(folder.iterdir()) == []


def test_a_living_process_is_named(tmp_path: Path) -> None:
    process = hold(tmp_path)
    try:
        with (
            pytest.raises(UserError, match=rf"^--out: .* is in use by process {process.pid} on \S+ \(hardpatch.*since"),
            locked(tmp_path),
        ):
            pass
        with pytest.raises(UserError, match=f"process {process.pid} "):
            refuse_used(tmp_path)
    finally:
        end(process)


def test_a_dead_process_is_replaced_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    end(process := hold(tmp_path))
    refuse_used(tmp_path)
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    (line,) = caplog.messages
    assert f"taken over from process {process.pid} on " in line
    assert list(tmp_path.iterdir()) == []


def test_an_id_that_went_to_another_process_holds_nothing(tmp_path: Path) -> None:
    write_lock(tmp_path, started="1")  # this process has the id, and began at another time
    with locked(tmp_path):
        pass


def test_another_machine_is_believed_until_it_is_silent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write_lock(tmp_path, host="node7", machine="node7 x", pid=1)
    with pytest.raises(UserError, match=rf"in use by process 1 on node7 .* delete {file}$"), locked(tmp_path):
        pass
    os.utime(file, (time.time() - 700,) * 2)
    with locked(tmp_path):
        pass
    assert "which gave no sign of life for 12 min" in caplog.text


def test_the_lock_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEWED", 0.01)
    with locked(tmp_path):
        os.utime(tmp_path / LOCK, (0, 0))
        deadline = time.monotonic() + 10
        while (tmp_path / LOCK).stat().st_mtime < 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_lock_without_a_name_is_waited_for_then_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "UNWRITTEN", 0.3)
    for text in ("", '{"half'):
        (tmp_path / LOCK).write_text(text)
        started = time.monotonic()
        with locked(tmp_path):
            pass
        assert time.monotonic() - started > 0.2


def test_a_link_is_no_lock_and_its_target_stays(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "other")
    with locked(tmp_path / "run"):
        assert not (tmp_path / "run" / LOCK).is_symlink()
    assert (tmp_path / "other").read_text() == "precious"


@pytest.mark.parametrize("dead", [False, True])
def test_of_several_at_once_one_gets_it(dead: bool, tmp_path: Path) -> None:
    if dead:
        write_lock(tmp_path, started="1")
    at = str(time.time() + 4)
    command = [sys.executable, "-c", RACE, str(tmp_path), at]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    processes = [subprocess.Popen(command, text=True, **pipes) for _ in range(4)]
    lines = [process.stdout.readline() for process in processes if process.stdout is not None]
    for process in processes:
        process.communicate("")
    assert lines.count("held\n") == 1, lines
    assert all("is in use by process" in line for line in lines if line != "held\n")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    expected = r"^--out: expected a folder that can be written, got .*: Not a directory$"
    with pytest.raises(UserError, match=expected), locked(tmp_path / "file" / "run"):
        pass
