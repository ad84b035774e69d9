"""Progress of a run as lines of text or JSON, and bars for shorter work on a terminal."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from rich import progress as rich_progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from hardpatch.printable import print_json, printable
from hardpatch.transcript import note

STOPPING = "stopping after this step, with a checkpoint"

SHOWN = {
    "loss": ".4f",
    "reconstruction_loss": ".4f",
    "pair_accuracy": ".3f",
    "spearman": ".3f",
    "token_entropy": ".3f",
    "perplexity": ".1f",
    "alpha": ".2f",
    "knn_top1": ".4f",
    "top1": ".4f",
    "top5": ".4f",
    "miou": ".4f",
    "pixel_accuracy": ".4f",
    "box_ap": ".4f",
    "mask_ap": ".4f",
    "check_loss": ".4f",
    "check_train_loss": ".4f",
    "check_mean_color": ".4f",
    "check_blurred_neighbors": ".4f",
    "check_rankme": ".1f",
    "check_start_neighbors": ".2f",
    "check_map_correlation": ".2f",
    "check_knn_top1": ".4f",
    "check_linear_top1": ".4f",
    "mining_stopped": ".0f",
    "images_per_second": ".0f",
}
"""Metrics that are shown on the terminal, and their formats."""


class Progress(Protocol):
    """Display of a run; the training loop calls it."""

    def start(self, step: int, total: int, batch_size: int, folder: Path | None = None) -> None:
        """Begin after ``step`` of ``total`` optimizer steps of ``batch_size`` images, in the folder of the run."""

    def advance(self) -> None:
        """Count a step."""

    def metrics(self, row: dict[str, Any]) -> None:
        """Show a line of metrics, or of an evaluation, which has no ``loss``."""

    def stopping(self) -> None:
        """Show that the run stops after this step. A signal handler calls it, so it must not print."""

    def stop(self) -> None:
        """Clean up when the run ends, for whatever reason."""


class Silent:
    """Progress display that shows nothing."""

    def start(self, step: int, total: int, batch_size: int, folder: Path | None = None) -> None:
        """Show nothing."""

    def advance(self) -> None:
        """Show nothing."""

    def metrics(self, row: dict[str, Any]) -> None:
        """Show nothing."""

    def stopping(self) -> None:
        """Say at once that the run stops; stdout is left alone."""
        with suppress(OSError):  # a closed terminal
            os.write(2, f"\n{STOPPING}\n".encode())  # print may be interrupted in a print

    def stop(self) -> None:
        """Show nothing."""


class Lines:
    """Lines of text about a run."""

    def __init__(self) -> None:
        self.speed: float | None = None
        """images per second, by the last line of the training"""

    def start(self, step: int, total: int, batch_size: int) -> str:
        """Return the line about the length of the run."""
        self.total, self.batch_size = total, batch_size
        return f"step {step} of {total}, {batch_size} images each" if step else f"{total} steps of {batch_size} images"

    def metrics(self, row: dict[str, Any]) -> str:
        """Return the line of a row of metrics."""
        values = "  ".join(f"{name} {row[name]:{spec}}" for name, spec in SHOWN.items() if name in row)
        line = f"step {row['step']}/{self.total}  epoch {row['epoch']:.2f}  {values}"
        self.speed = row.get("images_per_second", self.speed)
        if self.speed is not None:
            left = (self.total - row["step"]) * self.batch_size / self.speed
            line += f"  left {left / 60:.1f} min"
        return line


class Unbreakable:
    """Progress display that cannot end a training: after its first failed write it shows nothing more.

    The log of the run holds its lines, whatever it shows.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress: Progress = progress
        self.lines = Lines()

    def start(self, step: int, total: int, batch_size: int, folder: Path | None = None) -> None:
        """See :meth:`Progress.start`."""
        note(self.lines.start(step, total, batch_size))
        self._show(self.progress.start, step, total, batch_size, folder)

    def advance(self) -> None:
        """See :meth:`Progress.advance`."""
        self._show(self.progress.advance)

    def metrics(self, row: dict[str, Any]) -> None:
        """See :meth:`Progress.metrics`."""
        note(self.lines.metrics(row))
        self._show(self.progress.metrics, row)

    def stopping(self) -> None:
        """See :meth:`Progress.stopping`."""
        self.progress.stopping()

    def stop(self) -> None:
        """See :meth:`Progress.stop`."""
        self._show(self.progress.stop)

    def _show(self, show: Callable[..., None], *arguments: Any) -> None:
        try:
            show(*arguments)
        except (OSError, ValueError, SystemExit):  # a closed file; rich exits on a broken pipe
            self.progress = Silent()


class PlainProgress(Silent):
    """Lines of text on stderr, one for each line of metrics."""

    def __init__(self) -> None:
        self.lines = Lines()

    def start(self, step: int, total: int, batch_size: int, folder: Path | None = None) -> None:
        """Print the length of the run."""
        self._print(self.lines.start(step, total, batch_size))

    def metrics(self, row: dict[str, Any]) -> None:
        """Print a line."""
        self._print(self.lines.metrics(row))

    def _print(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


class JsonProgress(Silent):
    """One JSON object for each line of metrics, evaluation and line of the log, on stdout."""

    def start(self, step: int, total: int, batch_size: int, folder: Path | None = None) -> None:
        """Print the length of the run."""
        where = None if folder is None else str(folder)
        print_json({"event": "start", "step": step, "steps": total, "batch_size": batch_size, "run": where})

    def metrics(self, row: dict[str, Any]) -> None:
        """Print a row of metrics."""
        print_json({"event": "metrics" if "loss" in row else "evaluation", **row})


class JsonLog(logging.Handler):
    """Handler that prints lines of the log as JSON objects on stdout."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        print_json({"event": "log", "level": record.levelname.lower(), "message": self.format(record)})


def live_console() -> Console | None:
    """Return the terminal on stderr if its lines can be replaced; None for files, pipes and ``TERM=dumb``."""
    console = Console(stderr=True)
    return console if sys.stderr.isatty() and console.is_terminal and not console.is_dumb_terminal else None


@contextmanager
def doing() -> Iterator[Callable[[str], None]]:
    """Show what is being done, on a terminal only. Yields a function that shows another line."""
    console = live_console()
    if console is None:
        yield lambda line: None
        return
    with console.status("") as status:
        console.show_cursor(True)  # a killed process cannot
        yield lambda line: status.update(Text(f"{printable(line)} ..."))


class SpeedColumn(rich_progress.ProgressColumn):
    """Speed of the last seconds."""

    def render(self, task: rich_progress.Task) -> Text:
        """Return the number per second, nothing while it is unknown."""
        return Text("" if task.speed is None else f"{task.speed:,.0f}/s")


@contextmanager
def counting(description: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show a bar that counts, on a terminal only.

    Args:
        description: text before the bar.

    Yields:
        A function that sets the bar to (done, total); the total may be None while it is unknown.
    """
    console = live_console()
    if console is None:
        yield lambda done, total: None
        return
    left = (TextColumn("left"), TimeRemainingColumn())
    columns = (TextColumn(description), BarColumn(), MofNCompleteColumn(), SpeedColumn(), *left)
    with rich_progress.Progress(*columns, console=console, transient=True, refresh_per_second=4) as bar:
        console.show_cursor(True)
        task = bar.add_task(description, total=None)

        def update(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        yield update
