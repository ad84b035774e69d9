"""What the command line reports in one line, without a traceback, with exit code 2."""

import difflib
import re
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


def one_line(error: Exception) -> str:
    """Shorten a complaint of the parser of settings to one line: name, what was expected, what came."""
    text = " ".join(str(error).split()).replace('Parser key "', "").replace('":', ":", 1)
    text = re.sub(r"<class '(\w+)'>", r"\1", text).replace("typing.Literal", "one of ")
    # "name: Does not validate against any of the Union subtypes Subtypes: [...] Errors: ... Given value: x"
    return re.sub(
        r": Does not validate.*?Subtypes: \[(.*)\] Errors:.*Given value: ", r": Expected \1. Got value: ", text
    )
