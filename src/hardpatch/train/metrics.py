"""Metrics of a run, as JSON lines and for TensorBoard."""

import errno
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hardpatch.files import optional_file, reason_of, write_text_atomically
from hardpatch.processes import is_first, on_first
from hardpatch.train.tensorboard import EventFile

log = logging.getLogger("hardpatch")


class MetricsLog:
    """``metrics.jsonl`` and ``tensorboard/`` of a run folder.

    A training does not end because they cannot be written. Lines of ``metrics.jsonl`` are then kept until they can.

    Args:
        folder: of the run.
        step: optimizer steps done. Later lines are dropped: the run was killed after its last checkpoint.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        self.path = folder / "metrics.jsonl"
        rows = [row for row in _read_lines(self.path) if row["step"] <= step]
        self.evaluated = sum(row["step"] == step for row in rows) > (step > 0)
        """True if ``step`` has a line of an evaluation as well as a line of the training, which step 0 lacks"""
        self.evaluated = on_first(lambda: self.evaluated)
        self.board = None
        self._unwritten = ""
        if not is_first():
            return
        with optional_file(self.path):
            write_text_atomically(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        self.board = EventFile(folder / "tensorboard", purge_step=step + 1 if step else None)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a line; ``row`` holds ``step`` and numbers. Does nothing in a process that is not the first."""
        if self.board is None:
            return
        failed_before = bool(self._unwritten)
        self._unwritten += json.dumps(row) + "\n"
        try:
            _append(self.path, self._unwritten)
            self._unwritten = ""
        except OSError as error:
            if not failed_before:
                log.warning("cannot write %s: %s; its lines are kept until it can", self.path, reason_of(error))
        self.board.add({name: value for name, value in row.items() if name != "step"}, row["step"])

    def close(self) -> None:
        """Write what could not be written before, and close the TensorBoard file."""
        if self._unwritten:
            try:
                _append(self.path, self._unwritten)
            except OSError as error:
                lines = self._unwritten.count("\n")
                log.warning("the last %d lines of %s are lost: %s", lines, self.path, reason_of(error))
        if self.board is not None:
            self.board.close()


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
