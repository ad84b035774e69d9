"""Transcript of a command: all that it says, kept until there is a log file of its run to write it to.

Lines of the log, lines that are printed, warnings of Python and messages of other libraries go through three loggers:
``hardpatch``, :data:`SAID` and the root.
"""

import logging
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SAID = "hardpatch.said"
"""Logger of lines that are printed without a logger; it writes to log files only."""
LOGGERS = ("hardpatch", SAID, "")
"""Loggers whose lines a log file holds; the empty name is the root's, for other libraries."""
KEPT = 1000
"""Lines that are kept at most while there is no log file."""

logging.getLogger(SAID).propagate = False
logging.getLogger(SAID).addHandler(logging.NullHandler())


class Early(logging.Handler):
    """Handler that keeps records until there is a log file."""

    def __init__(self) -> None:
        super().__init__()
        self.records = deque[logging.LogRecord](maxlen=KEPT)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self.records.append(record)


def note(text: str, level: int = logging.INFO) -> None:
    """Write a line that is said elsewhere into the log file of the run, or keep it until there is one."""
    logger = logging.getLogger(SAID)
    logger.setLevel(logging.INFO)
    logger.log(level, "%s", text)


@contextmanager
def transcript() -> Iterator[None]:
    """Keep what is said in the block for the log file of a run, and close that at the end.

    Warnings of Python and of libraries are also printed as they are without this.
    """
    early, root, terminal = Early(), logging.getLogger(), logging.lastResort
    own = [] if terminal is None or root.handlers else [terminal]  # which Python uses if a logger has no handler
    for handler in own:
        root.addHandler(handler)
    for name in LOGGERS:
        logging.getLogger(name).addHandler(early)
    before = warnings.showwarning
    warnings.showwarning = _show_warning
    try:
        yield
    except Exception:
        logging.getLogger(SAID).error("ended by a fault", exc_info=True)
        raise
    finally:
        warnings.showwarning = before
        close_files()
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(early)
        for handler in own:
            root.removeHandler(handler)


def kept() -> list[logging.LogRecord]:
    """Return the records so far for which there was no log file, once."""
    found: list[logging.LogRecord] = []
    for handler in logging.getLogger(SAID).handlers:
        if isinstance(handler, Early):
            found += handler.records
            handler.records.clear()
    return found


def add_file(handler: logging.FileHandler) -> None:
    """Let a log file hold what is said from here on."""
    close_files()
    for name in LOGGERS:
        logging.getLogger(name).addHandler(handler)


def close_files() -> None:
    """Close the log file of an earlier run."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        for handler in [each for each in logger.handlers if isinstance(each, logging.FileHandler)]:
            logger.removeHandler(handler)
            handler.close()


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    text = warnings.formatwarning(message, category, filename, lineno, line).rstrip("\n")
    if file is not None:
        file.write(f"{text}\n")
    else:
        logging.getLogger("py.warnings").warning("%s", text)
