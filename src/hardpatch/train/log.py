"""Log of ``hardpatch``, on the terminal and in the folder of a run."""

import logging
import sys
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.logging import RichHandler

from hardpatch.files import reason_of
from hardpatch.printable import PrintableFormatter
from hardpatch.processes import is_first


def show_log(console: Console | None = None) -> None:
    """Write the log to the terminal, above the progress bar if ``console`` is a terminal.

    Of several processes only the first writes.
    """
    logger = _logger()
    for old in logger.handlers[:]:
        logger.removeHandler(old)
        old.close()
    if not is_first():
        handler: logging.Handler = logging.NullHandler()
    elif console is not None and console.is_terminal:
        handler = RichHandler(console=console, show_path=False, show_time=False, markup=False)
    else:
        handler = _TerminalHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter("%(message)s"))
    logger.addHandler(handler)


def log_to(file: Path) -> None:
    """Write the log to ``file`` too; replaces the file of an earlier call. A warning says if that cannot be written."""
    logger = _logger()
    for handler in logger.handlers[:]:
        if isinstance(handler, logging.FileHandler):
            logger.removeHandler(handler)
            handler.close()
    try:
        handler = _LogFile(file, encoding="utf-8")
    except OSError as error:
        logger.warning("cannot write %s: %s; the run goes on without it", file, reason_of(error))
        return
    handler.setFormatter(PrintableFormatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)


class _TerminalHandler(logging.StreamHandler[TextIO]):
    """Handler of a terminal that may be closed."""

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
