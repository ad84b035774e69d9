"""Text for terminals that may be gone, and file names as text, which need not be valid UTF-8 or of one line."""

import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from hardpatch.transcript import note

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
    """Print a line while work goes on, to stdout or stderr; a reader that is gone does not end the work.

    The log of the run holds it, too.
    """
    note(text, logging.ERROR if error else logging.INFO)
    _print(_CONTROL_BUT_LINES.sub(_escaped, _valid(text)), sys.stderr if error else sys.stdout)


def print_json(values: Mapping[str, Any]) -> None:
    """Print a JSON object as one line on stdout; a reader that is gone does not end the work."""
    _print(json.dumps(values, default=str), sys.stdout)


def _print(text: str, stream: Any) -> None:
    print(text, file=stream if isinstance(stream, Output) else Output(stream), flush=True)


class Output:
    """Output stream that may fail without an error: a terminal that was closed, a reader that is gone, a full disk.

    Args:
        stream: stdout or stderr; None if it was closed before the program began.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = open(os.devnull, "w", encoding="utf-8") if stream is None else stream  # noqa: SIM115
        self.error: OSError | None = None
        """the first error"""

    def write(self, text: str) -> int:
        """Write a text, or drop it."""
        with self._may_fail():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered, or drop it."""
        with self._may_fail():
            self.stream.flush()

    @contextmanager
    def _may_fail(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error
            with suppress(OSError, ValueError, AttributeError):  # all that follows, the buffer too, goes nowhere
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def lasting_output() -> Iterator[Output]:
    """Let no failed write to stdout or stderr end the work of the block. Yields stdout."""
    before = sys.stdout, sys.stderr
    out, err = (stream if isinstance(stream, Output) else Output(stream) for stream in before)
    sys.stdout, sys.stderr = out, err
    try:
        yield out
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before
