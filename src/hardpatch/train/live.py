"""Live view of a run on a terminal: progress, a few numbers, what is good and what is not, the last warning."""

import logging
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from hardpatch.printable import printable
from hardpatch.train.numbers import CHECK, STEP, Number, alarms, numbers
from hardpatch.train.progress import STOPPING

REFRESHES = 2
"""Times a second that the view is drawn."""
TITLE, VALUE = 22, 10
"""Columns of the names and the values."""
STYLES = {"good": "green", "watch": "yellow", "bad": "bold red"}


class LiveProgress:
    """View of a run that is drawn again and again in its place; lines of the log appear above it.

    Args:
        console: the terminal.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live: Live | None = None
        self.folder: Path | None = None
        self.step = self.total = self.batch_size = 0
        self.rows: dict[str, list[dict[str, Any]]] = {"step": [], "check": []}
        """first and last row of the metrics of steps, and of evaluations"""
        self.so_far = ""
        self.warnings: list[str] = []
        self.state = "training"
        self._width = console.width
        self._started = time.monotonic()

    def start(self, step: int, total: int, batch_size: int, folder: Path | None = None) -> None:
        """Show the view."""
        self.step, self.total, self.batch_size, self.folder = step, total, batch_size, folder
        self._started = time.monotonic()
        self.live = Live(
            console=self.console,
            refresh_per_second=REFRESHES,
            get_renderable=self.frame,
            redirect_stdout=sys.stdout.isatty(),
            vertical_overflow="crop",
        )
        self.live.start()
        self.console.show_cursor(True)  # nothing is left hidden, however the process ends
        _open_views.add(self)

    def advance(self) -> None:
        """Count a step."""
        self.step += 1

    def metrics(self, row: dict[str, Any]) -> None:
        """Show a row of metrics."""
        rows = self.rows["step" if "loss" in row else "check"]
        rows[1:] = [row]

    def stopping(self) -> None:
        """Show that the run stops."""
        self.state = STOPPING

    def stop(self) -> None:
        """Leave the last view on the terminal."""
        _open_views.discard(self)
        live, self.live = self.live, None
        if live is not None:
            if self.step >= self.total:
                self.state = "done"
            live.stop()
            self.console.print()

    def frame(self) -> Text:
        """Return the view for the terminal as it is."""
        width, height = self.console.size
        if width < self._width and self.live is not None:  # the lines of the last view are torn apart
            self.console.clear()
        self._width = width
        head, middle, end = self._head(width - 1), self._numbers(width - 1), self._words(width - 1)
        if len(head) + len(middle) + len(end) >= height:
            head, middle, end = ([line for line in part if line.plain] for part in (head, middle, end))
        lines = [*head, *middle[: max(0, height - 1 - len(head) - len(end))], *end][: max(1, height - 1)]
        for line in lines:
            line.truncate(width - 1, overflow="ellipsis")
        return Text("\n", no_wrap=True, overflow="crop", end="").join(lines)

    def _head(self, width: int) -> list[Text]:
        """Return the lines about the progress of the run."""
        name = "" if self.folder is None else f"  {printable(str(self.folder))}"
        return [Text(""), Text.assemble((self.state, "bold"), (name, "dim")), self._bar(width), *self._times(width)]

    def _numbers(self, width: int) -> list[Text]:
        """Return the lines of the numbers."""
        step, check = self.rows["step"], self.rows["check"]
        lines = []
        if step:
            lines += [Text(""), *(_line(each, width) for each in numbers(STEP, step[-1], step[0]))]
        if check:
            when = "the start" if check[-1]["step"] == 0 else f"step {check[-1]['step']:,}"
            lines += [Text(""), Text(f"measured at {when}", "dim")]
            lines += [_line(each, width) for each in numbers(CHECK, check[-1], check[0])]
        return lines

    def _words(self, width: int) -> list[Text]:
        """Return the lines about what is wrong, the verdict so far and the last warning."""
        rows = [rows[-1] for rows in self.rows.values() if rows]
        lines = [_line(each, width) for row in rows for each in alarms(row)]
        if self.so_far:
            lines += [Text(""), *_wrapped("learned so far", self.so_far, self.console, width)]
        if self.warnings:
            count = f"last of {len(self.warnings)} warnings" if len(self.warnings) > 1 else "warning"
            lines += [Text(""), *_wrapped(count, self.warnings[-1], self.console, width, "yellow")]
        return lines

    def _bar(self, width: int) -> Text:
        share = self.step / max(1, self.total)
        percent = f" {100 * share:3.0f} %"
        columns = max(1, width - len(percent))
        done, rest = ("━", "─") if "utf" in self.console.encoding.lower() else ("#", "-")
        filled = int(columns * min(1.0, share))
        return Text.assemble((done * filled, "cyan"), (rest * (columns - filled), "dim"), percent)

    def _times(self, width: int) -> list[Text]:
        parts = [f"step {self.step:,} of {self.total:,}"]
        speed = self.rows["step"][-1]["images_per_second"] if self.rows["step"] else 0.0
        if speed:
            parts.append(f"{speed:,.0f} images/s")
        parts.append(f"{_clock(time.monotonic() - self._started)} elapsed")
        if speed and self.step < self.total:
            parts.append(f"{_clock((self.total - self.step) * self.batch_size / speed)} left")
        text = "   ".join(parts)
        return [Text(text)] if len(text) <= width else [Text(parts[0]), Text("   ".join(parts[1:]))]


class LiveLog(logging.Handler):
    """Handler that prints lines of the log above the view of a run, which also shows the last warning.

    Args:
        progress: the view.
    """

    def __init__(self, progress: LiveProgress) -> None:
        super().__init__()
        self.progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        progress, line = self.progress, Text(self.format(record))
        if hasattr(record, "so_far"):  # a verdict, which has its place in the view
            progress.so_far = printable(record.so_far)
            return
        if record.levelno >= logging.WARNING:
            progress.warnings.append(printable(record.getMessage()))
            line = Text.assemble((f"{record.levelname.lower()}: ", "yellow"), line)
        with suppress(OSError, SystemExit):  # a closed terminal
            progress.console.print(line)


def _line(number: Number, width: int) -> Text:
    title = Text(f"{number.title:<{TITLE}}"[:TITLE], "dim")
    text = Text.assemble(title, f"{number.value:>{VALUE}}  ")
    if number.state is not None:
        text.append(number.state, STYLES[number.state])
    if number.note and TITLE + VALUE + 9 + len(number.note) <= width:
        text.append(" " * (TITLE + VALUE + 9 - len(text)) + number.note, "dim")
    return text


def _wrapped(title: str, words: str, console: Console, width: int, style: str = "") -> list[Text]:
    """Return a text of up to two lines, under its title on a narrow terminal."""
    indent = TITLE if width >= 3 * TITLE else 2
    room = width - indent
    lines = list(Text(words, style).wrap(console, room))
    if len(lines) > 2:
        lines = [lines[0], Text(" ", style).join([each.copy() for each in lines[1:]])]
        lines[1].truncate(room, overflow="ellipsis")
    for line in lines:
        line.rstrip()
    head = [] if indent == TITLE else [Text(title, "dim")]
    first = Text(f"{title:<{TITLE}}", "dim") if indent == TITLE else Text("  ")
    return [*head, *(Text.assemble(first if k == 0 else " " * indent, line) for k, line in enumerate(lines))]


def _clock(seconds: float) -> str:
    minutes, hours = int(seconds) // 60, int(seconds) // 3600
    return f"{hours}:{minutes % 60:02}:{int(seconds) % 60:02}" if hours else f"{minutes}:{int(seconds) % 60:02}"


_open_views = set[LiveProgress]()


def _in_child() -> None:
    """Give a forked process the plain stderr: the lock of the view may be held by a thread that it does not have."""
    if _open_views:
        _open_views.clear()
        sys.stdout = getattr(sys.stdout, "rich_proxied_file", sys.stdout)
        sys.stderr = getattr(sys.stderr, "rich_proxied_file", sys.stderr)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
