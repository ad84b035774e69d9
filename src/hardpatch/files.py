"""Files and folders that are written completely or not at all, and disks that are full or cannot be written."""

import errno
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""Errors of a disk that is full (space, inodes, quota, size of a file) or mounted read-only."""
UNWRITABLE = (*FULL, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENOTDIR, errno.EISDIR)
"""These, and other errors of a place that cannot be written, which are no fault of the program."""

log = logging.getLogger("hardpatch")


@contextmanager
def atomic_path(path: Path, *, durable: bool = False, concurrent: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` and move what the block writes there to ``path`` when the block ends.

    If the block raises, what it wrote is removed and ``path`` stays as it was. A process that is killed leaves at most
    the temporary file or folder behind; the next call for the same path removes it.

    Args:
        path: the file or folder to write. An existing file is replaced, an existing folder only if it is empty.
        durable: wait until everything is on the disk, so that ``path`` survives a power failure.
        concurrent: give the temporary path the process id, since several processes may write ``path`` at once.

    Yields:
        The temporary path: hidden, with the suffix of ``path``, not there yet.
    """
    process = f".{os.getpid()}" if concurrent else ""
    partial = path.with_name(f".{path.stem}{process}.partial{path.suffix}")
    remove(partial)
    try:
        yield partial
        if durable:
            _sync_tree(partial)
        os.replace(partial, path)
        if durable:
            _sync(path.parent)
    except OSError as error:
        if error.errno in FULL and error.filename is None:  # of a write to an open file, which does not say its name
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):
            remove(partial)


def write_text_atomically(path: Path, text: str, *, durable: bool = False) -> None:
    """Write ``text`` to ``path`` as UTF-8, completely or not at all; see :func:`atomic_path`."""
    with atomic_path(path, durable=durable) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")  # names need not be Unicode


def remove(path: Path) -> None:
    """Remove a file, a folder with its content, or a symbolic link, never what the link points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def optional_file(path: Path) -> Iterator[None]:
    """Write a file in the block that a run can do without: if it cannot be written, a warning says so."""
    try:
        yield
    except OSError as error:
        log.warning("cannot write %s: %s; the run goes on without it", path, reason_of(error))


def reason_of(error: OSError) -> str:
    """Return why the disk refused, in the words of the system."""
    return os.strerror(error.errno) if error.errno in FULL else error.strerror or str(error)


def os_error(error: Exception, path: Path) -> OSError:
    """Return the ``OSError`` about ``path`` that a library wrapped in an error of its own; its text has the number."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]) if number else errno.EIO, str(error), str(path))


def _sync_tree(path: Path) -> None:
    for child in path.rglob("*"):
        _sync(child)
    _sync(path)


def _sync(path: Path) -> None:
    """Wait until a file, or the list of a folder's entries, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
