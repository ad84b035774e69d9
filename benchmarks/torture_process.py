"""A call of the command line in a process of its own, of which parts can be killed."""

import faulthandler
import importlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch.utils.data._utils as torch_loader
from torture_record import STEPS, read_records, record_in

from hardpatch.cli import VERBS, main

for _name in sorted(set(VERBS.values())):  # once, instead of in every process
    importlib.import_module(f"hardpatch.cli.{_name}")
for _name in ("pretrain", "finetune", "segment", "detect"):
    importlib.import_module(f"hardpatch.{_name}.run")

_modules: tuple[Any, ...] = (torch_loader, torch_loader.worker)
for _module in _modules:  # how soon a dead loader process is noticed, and the death of its parent; 5 seconds otherwise
    _module.MP_STATUS_CHECK_INTERVAL = 0.5

SECONDS_OF_ORPHANS = 20.0
"""Time in which the other processes of a run that was killed have to end"""


class Attempt:
    """A call of the command line.

    Args:
        command: verb and options, without ``--out``.
        folder: for what the process prints, and for the records of its batches.
        run: the run's folder.
    """

    def __init__(self, command: list[str], folder: Path, run: Path) -> None:
        self.folder, self.run = folder, run
        self._code: int | None = None
        self._before, self._began = self._lines(), time.time()
        self.pid = os.fork()
        if self.pid == 0:
            _call([*command, "--out", str(run)], folder)

    def steps(self) -> int:
        """Return the steps that this call has begun."""
        return self._lines() - self._before

    def _lines(self) -> int:
        path = self.folder / STEPS.format(0)
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def half_written(self) -> bool:
        """Return whether there is a hidden folder of a checkpoint that this call writes or removes."""
        for checkpoints in (self.run / "checkpoints", *self.run.glob("runs/*/*/checkpoints")):
            with suppress(OSError), os.scandir(checkpoints) as entries:
                for entry in entries:  # what an earlier call left has not changed since
                    if entry.name.startswith(".step_") and entry.stat().st_ctime > self._began:
                        return True
        return False

    def loaders(self) -> list[int]:
        """Return the loader processes of the first process."""
        ranks = self._ranks()
        return [child for child in children(self.pid) if child not in ranks]

    def other_ranks(self) -> list[int]:
        """Return the processes of the run but the first."""
        return [pid for pid in self._ranks() if pid in children(self.pid)]

    def _ranks(self) -> set[int]:
        return {line["pid"] for line in read_records(self.folder) if line["rank"] != "steps_0"}

    def ended(self) -> bool:
        """Return whether the first process has ended."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code is not None

    def until(self, holds: Callable[[], bool], pause: float = 0.002, seconds: float = 120.0) -> None:
        """Wait until something holds or the process has ended."""
        deadline = time.monotonic() + seconds
        while not holds() and not self.ended():
            if time.monotonic() > deadline:
                os.killpg(self.pid, signal.SIGKILL)
                raise SystemExit(f"the run makes no progress, see {self.folder / 'output.txt'}")
            time.sleep(pause)

    def sleep(self, seconds: float) -> None:
        """Wait for these seconds, or until the process has ended."""
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= end)

    def kill(self, pid: int) -> bool:
        """Send a SIGKILL to a process of the run. Returns False if it was gone."""
        if self.ended():
            return False
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def wait(self, seconds: float) -> int:
        """Wait for the end of the process. Returns its exit code, negative for a signal."""
        self.until(lambda: False, seconds=seconds)
        assert self._code is not None
        return self._code

    def orphans(self) -> list[int]:
        """Return the processes of an ended run that are still there after a while, and end them."""
        deadline = time.monotonic() + SECONDS_OF_ORPHANS
        while (left := session(self.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        for pid in left:
            os.kill(pid, signal.SIGTRAP)
            time.sleep(0.5)
            os.kill(pid, signal.SIGKILL)
        return left


def _call(command: list[str], folder: Path) -> None:
    """Call the command line in a new session, and end the process."""
    os.setsid()
    output = os.open(folder / "output.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for number in (1, 2):
        os.dup2(output, number)
    faulthandler.register(signal.SIGTRAP, (folder / "stacks.txt").open("a"))  # of processes that are left
    fork: Any = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: fork
    code = 70
    try:
        record_in(folder)
        code = main(command)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def children(pid: int) -> list[int]:
    """Return the child processes of a process."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        return [int(child) for child in listed.read_text().split()]
    except OSError:
        return []


def session(leader: int) -> list[int]:
    """Return the living processes of a session but its leader."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, number = path.read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if int(number) == leader and int(path.parent.name) != leader and state != "Z":
            found.append(int(path.parent.name))
    return found
