"""The page of a run that the training itself writes, on its way and at its end; it never ends a training."""

import logging
import time
from pathlib import Path
from typing import TypeVar

from hardpatch.choices import ReportName
from hardpatch.printable import printable
from hardpatch.processes import is_first

PAGE = "report.html"
"""File of the page in the folder of a run."""
LEAST_SECONDS, SHARE = 60.0, 0.01
"""Seconds between two pages during a training, and the largest share of its time that they may take."""

T = TypeVar("T")

log = logging.getLogger("hardpatch")


class RunReport:
    """Writer of ``report.html`` in a run folder, in the first of several processes only.

    Args:
        folder: of the run.
        when: ``checks`` is at evaluations and at the end, ``end`` at the end only, ``no`` never.
    """

    def __init__(self, folder: Path, when: ReportName) -> None:
        self.folder, self.when = folder, when
        self._failed = False
        self._next = time.monotonic() + LEAST_SECONDS

    def after_evaluation(self) -> None:
        """Write the page if it is time: at most every minute, and in at most a hundredth of the training's time."""
        started = time.monotonic()
        if self.when != "checks" or started < self._next or not is_first():
            return
        self._write()
        ended = time.monotonic()
        self._next = ended + max(LEAST_SECONDS, (ended - started) / SHARE)

    def at_end(self, result: T) -> T:
        """Write the page of a run that is finished or interrupted, and return its ``result``."""
        if self.when != "no" and is_first():
            self._write()
        return result

    def _write(self) -> None:
        from hardpatch.page.write import write_report

        try:
            write_report([self.folder], self.folder / PAGE)
        except Exception as error:  # whatever it is, the training is worth more than its page
            if not self._failed:
                told = printable(f"{type(error).__name__}: {error}")
                log.warning("cannot write %s: %s; the run goes on without it", self.folder / PAGE, told)
            self._failed = True
