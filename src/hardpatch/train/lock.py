"""Lock of a run folder: one process at a time trains in it.

The lock is a file in the folder, so that it works on file systems of any kind and is seen by other machines. It names
the process that holds it, and its time is renewed every minute.
"""

import json
import logging
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from hardpatch.errors import UserError
from hardpatch.files import reason_of
from hardpatch.processes import is_first

LOCK = "run.lock"
RENEWED = 60.0
"""Seconds between two renewals of a lock."""
STALE = 600.0
"""Seconds without a renewal after which a process on another machine counts as gone."""
UNWRITTEN = 10.0
"""Seconds after which an empty lock counts as left behind: its process was killed before it could write its name."""

log = logging.getLogger("hardpatch")


class Holder(NamedTuple):
    """The process that holds a lock."""

    host: str
    machine: str
    """boot of the machine and space of process ids, within which ``pid`` and ``started`` name one process"""
    pid: int
    started: str
    """when the process began, as the system counts it; empty where it does not say"""
    command: str
    since: str

    def __str__(self) -> str:
        """Return a phrase for messages."""
        return f"process {self.pid} on {self.host} ({self.command}, since {self.since})"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder during the block. The folder is made, and removed again if it stays empty.

    Raises:
        UserError: if another process that may be alive holds it, or the folder cannot be written.
    """
    if not is_first():
        yield  # the first process of the run holds it for all
        return
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _take(lock)
    except OSError as error:
        _remove_empty(missing)
        raise UserError(f"--out: expected a folder that can be written, got {folder}: {reason_of(error)}") from None
    ended, process = threading.Event(), os.getpid()
    threading.Thread(target=_renew, args=(lock, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        if os.getpid() == process:  # not in a forked child
            holder = _read(lock)
            if holder is not None and _is_own(holder):
                with suppress(OSError):
                    lock.unlink()
            _remove_empty(missing)


def refuse_used(folder: Path) -> None:
    """Refuse a run folder that another process uses.

    Raises:
        UserError: if a process that may be alive holds its lock.
    """
    with suppress(OSError):
        _left_behind(folder / LOCK)


def _remove_empty(folders: list[Path]) -> None:
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _renew(lock: Path, ended: threading.Event) -> None:
    while not ended.wait(RENEWED):
        with suppress(OSError):
            os.utime(lock)


def _take(lock: Path) -> None:
    """Make the lock, or raise UserError. A lock that was left behind is removed first, by one process only."""
    for _ in range(100):
        if _create(lock):
            return
        gone = _left_behind(lock)
        guard = lock.with_name(f".{LOCK}.taking")
        if gone is None or not _create(guard):
            time.sleep(0.1)  # the lock was released, or another process takes it over
            with suppress(OSError):
                if time.time() - guard.stat().st_mtime > UNWRITTEN:
                    guard.unlink()  # killed while it took over
            continue
        try:
            if _left_behind(lock) == gone:  # still the one that was judged
                lock.unlink()
                log.warning("--out: %s: the run is taken over from %s", lock.parent, gone)
                if _create(lock):
                    return
        finally:
            guard.unlink(missing_ok=True)
    raise UserError(f"--out: {lock} cannot be taken; if no process uses {lock.parent}, delete it")


def _create(lock: Path) -> bool:
    """Make a file with the name of this process, False if there is one. Exactly one of several processes succeeds."""
    try:
        file = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    try:
        with os.fdopen(file, "w", encoding="utf-8") as stream:
            json.dump(_own()._asdict(), stream)
    except OSError:
        lock.unlink(missing_ok=True)
        raise
    return True


def _left_behind(lock: Path) -> str | None:
    """Return who left the lock behind and why it counts as gone; None if there is no lock.

    Raises:
        UserError: if the process that holds it is alive, or may be.
    """
    try:
        age = time.time() - lock.lstat().st_mtime
    except FileNotFoundError:
        return None
    if lock.is_symlink():
        return "a symbolic link, which is no lock"
    folder, holder = lock.parent, _read(lock)
    if holder is None:
        if age > UNWRITTEN:
            return "a process that was killed when it began"
        time.sleep(0.1)  # it is being written
        return None
    if holder.machine == _machine():
        if not _is_alive(holder):
            return f"{holder}, which is gone"
        raise UserError(f"--out: {folder} is in use by {holder}; wait until it ends, or take another --out")
    if age > STALE:
        return f"{holder}, which gave no sign of life for {age / 60:.0f} min"
    raise UserError(
        f"--out: {folder} is in use by {holder}, whose last sign of life is {max(0.0, age):.0f} s old; after "
        f"{STALE / 60:.0f} min without one it counts as gone; if you know that it is, delete {lock}"
    )


def _read(lock: Path) -> Holder | None:
    """Read a lock; None if there is none, or nothing is written in it."""
    try:
        holder = Holder(**json.loads(lock.read_text(encoding="utf-8")))
        return holder._replace(pid=int(holder.pid))
    except (OSError, ValueError, TypeError):
        return None


def _own() -> Holder:
    """Describe this process."""
    command = " ".join(["hardpatch", *map(shlex.quote, sys.argv[1:])])
    if len(command) > 200:
        command = f"{command[:200]}..."
    pid = os.getpid()
    return Holder(
        socket.gethostname(), _machine(), pid, _started(pid) or "", command, f"{datetime.now():%Y-%m-%d %H:%M:%S}"
    )


def _is_own(holder: Holder) -> bool:
    return (holder.machine, holder.pid, holder.started) == (_machine(), os.getpid(), _started(os.getpid()) or "")


def _machine() -> str:
    """Return what tells apart machines of one name, boots of one machine, and containers with their own process ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return socket.gethostname()


def _started(pid: int) -> str | None:
    """Return when a process began, in clock ticks since the boot; None if there is none, empty if it is unknown."""
    if not Path("/proc/self/stat").exists():
        return ""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]  # a zombie holds nothing


def _is_alive(holder: Holder) -> bool:
    """Return whether the process of a lock of this machine still runs; an id may have gone to another one."""
    if _started(holder.pid) != "":
        return _started(holder.pid) == holder.started
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
