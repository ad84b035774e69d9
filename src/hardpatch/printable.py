"""File names as text: names need not be valid UTF-8, and may hold line breaks and other control characters."""

import logging
import re

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
