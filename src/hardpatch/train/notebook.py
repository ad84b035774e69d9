"""Progress of a run inside a notebook: one display that is updated, and the newest picture of the run below it."""

import sys
import time
from html import escape
from pathlib import Path
from typing import Any

from hardpatch.train.progress import SHOWN, Progress, Silent

INTERVAL = 0.5
"""Seconds between two updates of the display at least."""


def in_notebook() -> bool:
    """Return True if this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


def default_progress(folder: Path) -> Progress:
    """Return a display for a run in ``folder`` that is started from Python: in a notebook only, else silence."""
    return NotebookProgress(folder) if in_notebook() else Silent()


class NotebookProgress(Silent):
    """Progress display of a notebook.

    Args:
        folder: of the run, whose newest picture is shown after each evaluation.
    """

    def __init__(self, folder: Path) -> None:
        from IPython.display import display

        self.folder = folder
        self.step = self.total = self.batch_size = 0
        self.row: dict[str, Any] = {}
        self.evaluations: list[str] = []
        self._shown = 0.0
        self._bar, self._picture = (
            display({}, raw=True, display_id=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )

    def start(self, step: int, total: int, batch_size: int, folder: Path | None = None) -> None:
        """Show the bar."""
        self.step, self.total, self.batch_size = step, total, batch_size
        self._update()

    def advance(self) -> None:
        """Count a step."""
        self.step += 1
        if time.monotonic() - self._shown > INTERVAL or self.step == self.total:
            self._update()

    def metrics(self, row: dict[str, Any]) -> None:
        """Show a line of metrics, or add that of an evaluation and show the newest picture."""
        if "loss" in row:
            self.row = row
        else:
            self.evaluations.append(f"step {row['step']}: {_values(row)}")
            self._show_picture()
        self._update()

    def stop(self) -> None:
        """Show the last state."""
        self._show_picture()
        self._update()

    def html(self) -> str:
        """Return the content of the display."""
        parts = [f"step {self.step} of {self.total}"]
        if self.row:
            left = (self.total - self.step) * self.batch_size / self.row["images_per_second"]
            parts += [_values(self.row), f"{left / 60:.1f} min left"]
        lines = [" &nbsp; ".join(escape(part) for part in parts), *map(escape, self.evaluations)]
        bar = f'<progress value="{self.step}" max="{max(1, self.total)}" style="width: 100%"></progress>'
        return bar + "<br>".join(lines)

    def _update(self) -> None:
        self._shown = time.monotonic()
        self._bar.update({"text/html": self.html(), "text/plain": f"step {self.step} of {self.total}"}, raw=True)

    def _show_picture(self) -> None:
        from IPython.display import Image

        pictures = sorted(self.folder.glob("pictures/*.png"), key=lambda path: path.stat().st_mtime)
        if pictures:
            self._picture.update(Image(filename=str(pictures[-1])))  # type: ignore[no-untyped-call]


def _values(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {row[name]:{spec}}" for name, spec in SHOWN.items() if name in row)
