"""Log of ``hardpatch``, on the terminal and in the folder of a run."""

import logging
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from hardpatch import __version__
from hardpatch.files import reason_of
from hardpatch.printable import PrintableFormatter
from hardpatch.processes import is_first
from hardpatch.transcript import Early, add_file, close_files, kept


def show_log(handler: logging.Handler | None = None, level: int = logging.INFO) -> None:
    """Write the log to the terminal; of several processes only the first does.

    Args:
        handler: what shows it; lines on stderr by default.
        level: lines below it are not shown.
    """
    logger = _logger()
    close_files()
    for old in logger.handlers[:]:
        if not isinstance(old, Early):
            logger.removeHandler(old)
            old.close()
    handler = (handler or _TerminalHandler()) if is_first() else logging.NullHandler()
    handler.setFormatter(PrintableFormatter("%(message)s"))
    handler.setLevel(level)
    logger.addHandler(handler)


def log_to(file: Path, arguments: Sequence[str] = ()) -> None:
    """Write all that is said to ``file`` too; replaces the file of an earlier call.

    What was said since the command began stands there as well. A warning says if the file cannot be written.

    Args:
        file: it is appended to.
        arguments: command line of the run, verb first, for the first line; a resumed run adds another.
    """
    logger = _logger()
    before = kept()
    try:
        resumed = file.is_file() and file.stat().st_size > 0
        handler = _LogFile(file, encoding="utf-8")
    except OSError as error:
        close_files()
        logger.warning("cannot write %s: %s; the run goes on without it", file, reason_of(error))
        return
    handler.setFormatter(PrintableFormatter("%(asctime)s %(levelname)s %(message)s"))
    command = shlex.join(["hardpatch", *arguments]) if arguments else "called from Python"
    line = f"{'resumed' if resumed else 'begun'} with hardpatch {__version__}: {command}"
    first = logging.LogRecord(logger.name, logging.INFO, __file__, 0, line, None, None)
    first.created, first.msecs = (before[0].created, before[0].msecs) if before else (first.created, first.msecs)
    for record in (first, *before):
        handler.handle(record)
    add_file(handler)


class _TerminalHandler(logging.StreamHandler[TextIO]):
    """Handler of a terminal that may be closed, and of whatever stderr is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record; a progress bar that is shown replaces stderr, to print above itself."""
        self.stream = sys.stderr
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - a name of logging
        """Say nothing where nobody reads."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class _LogFile(logging.FileHandler):
    """Log file on a disk that may be full."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - a name of logging
        """Say once on the terminal that lines are missing."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._failed:
            self._failed = True
            _logger().warning("cannot write %s: %s; lines are missing there", self.baseFilename, reason_of(error))

    def close(self) -> None:
        """Close the file; what it cannot take any more is lost."""
        with suppress(OSError):
            super().close()


def _logger() -> logging.Logger:
    logger = logging.getLogger("hardpatch")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return logger
