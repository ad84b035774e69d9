"""What the command line reports in one line, without a traceback, with exit code 2."""

import difflib
from collections.abc import Sequence


class UserError(ValueError):
    """A mistake in what the user gave: the message names the argument, what was expected, what came and what to do."""


class TrainingError(RuntimeError):
    """A run that could not go on: the message says at which step, why, and what to do. Exit code 1, without a
    traceback."""


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """``; did you mean 'x'?``, or nothing where no known name is close."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
