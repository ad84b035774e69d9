"""Errors that the command line reports in one line, without a traceback."""

import difflib
from collections.abc import Sequence


class UserError(ValueError):
    """A mistake of the user. The message names the argument, what was expected, what came and what to do.

    The command line exits with code 2.
    """


class TrainingError(RuntimeError):
    """A training that cannot continue. The message says at which step, why, and what to do.

    The command line exits with code 1.
    """


def did_you_mean(name: str, choices: Sequence[str]) -> str:
    """Return ``; did you mean 'x'?`` for the closest of the choices, or an empty string if none is close."""
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
