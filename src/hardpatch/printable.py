"""Text for terminals that may be gone, and file names as text, which need not be valid UTF-8 or of one line."""

import errno
import logging
import os
import re
import sys

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_CONTROL_BUT_LINES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(name: str) -> str:
    r"""Return a file name as a line of valid Unicode: bytes that are not UTF-8 as ``\xe9``, a line break as ``\n``."""
    return _CONTROL.sub(_escaped, _valid(name))


class PrintableFormatter(logging.Formatter):
    """Formatter whose lines any terminal and any file can take, whatever names they hold."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record; line breaks stay."""
        return _CONTROL_BUT_LINES.sub(_escaped, _valid(super().format(record)))


def _valid(text: str) -> str:
    """Escape the bytes that Python keeps of a name that is not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return text


def _escaped(match: re.Match[str]) -> str:
    return match.group().encode("unicode_escape").decode()


def say(text: str, *, error: bool = False) -> None:
    """Print a line while work goes on, to stdout or stderr; a terminal or reader that is gone does not end the work."""
    try:
        print(text, file=sys.stderr if error else sys.stdout, flush=True)
    except OSError as reason:
        if reason.errno not in (errno.EPIPE, errno.EIO):
            raise
        nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - all that follows is written to it
        if error:
            sys.stderr = nowhere
        else:
            sys.stdout = nowhere
