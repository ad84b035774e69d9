"""Files and folders that are written completely or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
    _remove(partial)
    try:
        yield partial
        if durable:
            _sync_tree(partial)
        os.replace(partial, path)
        if durable:
            _sync(path.parent)
    finally:
        _remove(partial)


def write_text_atomically(path: Path, text: str, *, durable: bool = False) -> None:
    """Write ``text`` to ``path`` as UTF-8, completely or not at all; see :func:`atomic_path`."""
    with atomic_path(path, durable=durable) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")  # names need not be Unicode


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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
