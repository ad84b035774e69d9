"""Log of ``hardpatch``, on the terminal and in the folder of a run."""

import logging
import sys
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

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
        handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter("%(message)s"))
    logger.addHandler(handler)


def log_to(file: Path) -> None:
    """Write the log to ``file`` too; replaces the file of an earlier call."""
    logger = _logger()
    for handler in logger.handlers[:]:
        if isinstance(handler, logging.FileHandler):
            logger.removeHandler(handler)
            handler.close()
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(PrintableFormatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)


def _logger() -> logging.Logger:
    logger = logging.getLogger("hardpatch")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return logger
