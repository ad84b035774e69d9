"""Metrics and pictures of a run, as JSON lines and for its loggers."""

import errno
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hardpatch.files import optional_file, reason_of, write_text_atomically
from hardpatch.processes import is_first, on_first
from hardpatch.train.loggers import Logger, open_loggers

log = logging.getLogger("hardpatch")


class MetricsLog:
    """``metrics.jsonl`` of a run folder, and the loggers of the run.

    A training does not end because they cannot be written. Lines of ``metrics.jsonl`` are then kept until they can.
    Only the first of several processes logs.

    Args:
        folder: of the run.
        step: optimizer steps done. Later lines are dropped: the run was killed after its last checkpoint.
        loggers: the setting ``logger``.
    """

    def __init__(self, folder: Path, step: int = 0, loggers: str = "tensorboard") -> None:
        self.path, self.pictures = folder / "metrics.jsonl", folder / "pictures"
        self._seen = _pictures(self.pictures)
        rows = [row for row in _read_lines(self.path) if row["step"] <= step]
        self.evaluated = sum(row["step"] == step for row in rows) > (step > 0)
        """True if ``step`` has a line of an evaluation as well as a line of the training, which step 0 lacks"""
        self.evaluated = on_first(lambda: self.evaluated)
        self.loggers: list[Logger] | None = None
        self._unwritten = ""
        if not is_first():
            return
        with optional_file(self.path):
            write_text_atomically(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        self.loggers = open_loggers(loggers, folder, step, lambda: read_metrics(self.path))

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a line; ``row`` holds ``step`` and numbers. Does nothing in a process that is not the first."""
        if self.loggers is None:
            return
        failed_before = bool(self._unwritten)
        self._unwritten += json.dumps(row) + "\n"
        try:
            _append(self.path, self._unwritten)
            self._unwritten = ""
        except OSError as error:
            if not failed_before:
                log.warning("cannot write %s: %s; its lines are kept until it can", self.path, reason_of(error))
        for logger in self.loggers:
            logger.add({name: value for name, value in row.items() if name != "step"}, row["step"])

    def write_pictures(self, step: int) -> None:
        """Give the loggers the PNG files in ``pictures/`` that are new, or changed since the last call."""
        if self.loggers is None:
            return
        found = _pictures(self.pictures)
        for path, changed in found.items():
            if self._seen.get(path) != changed:
                name = path.relative_to(self.pictures).with_suffix("").as_posix()
                for logger in self.loggers:
                    logger.picture(name, path, step)
        self._seen = found

    def close(self) -> None:
        """Write what could not be written before, and close the loggers."""
        if self._unwritten:
            try:
                _append(self.path, self._unwritten)
            except OSError as error:
                lines = self._unwritten.count("\n")
                log.warning("the last %d lines of %s are lost: %s", lines, self.path, reason_of(error))
        for logger in self.loggers or ():
            logger.close()


@contextmanager
def logged_pictures(folder: Path, step: int, loggers: str) -> Iterator[None]:
    """Give the loggers of a finished run the PNG files in ``pictures/`` that the block draws.

    Args:
        folder: of the run.
        step: optimizer steps done.
        loggers: the setting ``logger``.
    """
    before = _pictures(folder / "pictures")
    yield
    drawn = [path for path, changed in _pictures(folder / "pictures").items() if before.get(path) != changed]
    if not drawn or not is_first():
        return
    opened = open_loggers(loggers, folder, 0, lambda: read_metrics(folder / "metrics.jsonl"))
    for logger in opened:
        for path in drawn:
            logger.picture(path.relative_to(folder / "pictures").with_suffix("").as_posix(), path, step)
        logger.close()


def _pictures(folder: Path) -> dict[Path, int]:
    """Return the PNG files of a run, and when each was changed, nanoseconds; single images have their sheet."""
    return {path: path.stat().st_mtime_ns for path in (*folder.glob("*.png"), *folder.glob("*/contact_sheet.png"))}


def _append(path: Path, text: str) -> None:
    """Append a text completely or not at all."""
    content = text.encode()
    with path.open("ab", buffering=0) as file:
        end = file.tell()
        if file.write(content) < len(content):  # a disk that is almost full takes a part
            file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read a ``metrics.jsonl``: a row for each step, which includes the metrics of an evaluation after that step.

    Returns no rows if there is no file. Lines that are incomplete, because the run was killed, are left out.
    """
    rows: dict[int, dict[str, Any]] = {}
    for line in _read_lines(path):
        rows.setdefault(line["step"], {}).update(line)
    return list(rows.values())


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows
