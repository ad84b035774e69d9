"""Errors that the command line reports in one line, without a traceback."""

import difflib
import re
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


LONGEST = 120
"""Characters of a value in a message."""


def shown(value: object) -> str:
    """Return a value as a message shows it: on one line, and cut if it is long."""
    try:
        text = value if isinstance(value, str) else str(list(value) if isinstance(value, tuple) else value)
    except ValueError:  # Python refuses to write whole numbers of thousands of digits
        return "a number of thousands of digits"
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def one_line(error: Exception) -> str:
    """Shorten a complaint of the parser of settings to one line: name, what was expected, what came."""
    text = " ".join(str(error).split()).replace('Parser key "', "").replace('":', ":", 1)
    text = re.sub(r"<class '(\w+)'>", r"\1", text)
    text = re.sub(r"(\ba )?typing\.Literal", "one of ", text)
    # "name: Does not validate against any of the Union subtypes Subtypes: [...] Errors: ... Given value: x"
    text = re.sub(
        r": Does not validate.*?Subtypes: \[(.*)\] Errors:.*Given value: ", r": Expected \1. Got value: ", text
    )
    before, got, value = text.partition(". Got value: ")
    return f"{before}{got}{shown(value)}"
