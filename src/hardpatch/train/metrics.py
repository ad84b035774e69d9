"""Metrics of a run, as JSON lines and for TensorBoard."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hardpatch.files import write_text_atomically
from hardpatch.processes import is_first, on_first


class MetricsLog:
    """``metrics.jsonl`` and ``tensorboard/`` of a run folder.

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
        if not is_first():
            return
        from torch.utils.tensorboard import SummaryWriter

        write_text_atomically(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a line; ``row`` holds ``step`` and numbers. Does nothing in a process that is not the first."""
        if self.board is None:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            if name != "step":
                self.board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Flush and close the TensorBoard file."""
        if self.board is not None:
            self.board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read a ``metrics.jsonl``: a row for each step, which includes the metrics of an evaluation after that step.

    Returns no rows if there is no file. A last line that is incomplete, because the run was killed, is left out.
    """
    rows: dict[int, dict[str, Any]] = {}
    for line in _read_lines(path):
        rows.setdefault(line["step"], {}).update(line)
    return list(rows.values())


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
