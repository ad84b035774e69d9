"""Progress bars on a terminal; elsewhere a line of text for each line of metrics."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich import progress as rich_progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

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

    def start(self, step: int, total: int, batch_size: int) -> None:
        """Begin after ``step`` of ``total`` optimizer steps of ``batch_size`` images."""

    def advance(self) -> None:
        """Count a step."""

    def metrics(self, row: dict[str, Any]) -> None:
        """Show a line of metrics, or of an evaluation, which has no ``loss``."""

    def stop(self) -> None:
        """Clean up when the run ends, for whatever reason."""


class Silent:
    """Progress display that shows nothing."""

    def start(self, step: int, total: int, batch_size: int) -> None:
        """Show nothing."""

    def advance(self) -> None:
        """Show nothing."""

    def metrics(self, row: dict[str, Any]) -> None:
        """Show nothing."""

    def stop(self) -> None:
        """Show nothing."""


class Unbreakable:
    """Progress display that cannot end a training: after its first failed write it shows nothing more."""

    def __init__(self, progress: Progress) -> None:
        self.progress: Progress = progress

    def start(self, step: int, total: int, batch_size: int) -> None:
        """See :meth:`Progress.start`."""
        self._show(self.progress.start, step, total, batch_size)

    def advance(self) -> None:
        """See :meth:`Progress.advance`."""
        self._show(self.progress.advance)

    def metrics(self, row: dict[str, Any]) -> None:
        """See :meth:`Progress.metrics`."""
        self._show(self.progress.metrics, row)

    def stop(self) -> None:
        """See :meth:`Progress.stop`."""
        self._show(self.progress.stop)

    def _show(self, show: Callable[..., None], *arguments: Any) -> None:
        try:
            show(*arguments)
        except (OSError, ValueError, SystemExit):  # a closed file; rich exits on a broken pipe
            self.progress = Silent()


class TrainingProgress:
    """Progress bar on a terminal; elsewhere a line of text for each line of metrics."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.bar: rich_progress.Progress | None = None
        self.speed: float | None = None
        """images per second, by the last line of the training"""

    def start(self, step: int, total: int, batch_size: int) -> None:
        """Print the length of the run and, on a terminal, start the bar."""
        self.total, self.batch_size = total, batch_size
        self.console.print(
            f"step {step} of {total}, {batch_size} images each" if step else f"{total} steps of {batch_size} images",
            highlight=False,
        )
        if self.console.is_terminal:
            self.bar = rich_progress.Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.bar.start()
            self.task = self.bar.add_task("training", total=total, completed=step, speed="")

    def advance(self) -> None:
        """Move the bar by one step."""
        if self.bar is not None:
            self.bar.advance(self.task)

    def metrics(self, row: dict[str, Any]) -> None:
        """Update the bar or print a line; an evaluation, which has no ``loss``, is always printed."""
        values = "  ".join(f"{name} {row[name]:{spec}}" for name, spec in SHOWN.items() if name in row)
        if self.bar is not None and "loss" in row:
            speed = f"{row['images_per_second']:.0f} images/s"
            self.bar.update(self.task, description=f"loss {row['loss']:.4f}", speed=speed)
            return
        line = f"step {row['step']}/{self.total}  epoch {row['epoch']:.2f}  {values}"
        self.speed = row.get("images_per_second", self.speed)
        if self.speed is not None:
            left = (self.total - row["step"]) * self.batch_size / self.speed
            line += f"  left {left / 60:.1f} min"
        self.console.print(line, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        """Stop the bar and restore the terminal."""
        if self.bar is not None:
            self.bar.stop()


@contextmanager
def doing() -> Iterator[Callable[[str], None]]:
    """Show what is being done, on a terminal only. Yields a function that shows another line."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda line: None
        return
    with console.status("") as status:
        yield lambda line: status.update(f"{line} ...")


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
    console = Console(stderr=True)
    left = (TextColumn("left"), TimeRemainingColumn())
    columns = (TextColumn(description), BarColumn(), MofNCompleteColumn(), SpeedColumn(), *left)
    with rich_progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=None)

        def update(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        yield update
