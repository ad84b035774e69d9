"""Paths that a user typed: what is no path is refused, and ``~`` is the home folder."""

import os
from pathlib import Path

from hardpatch.errors import UserError


def typed(path: str, option: str = "") -> str:
    """Return a path as text, with the home folder for ``~`` and ``~name``, as a shell writes it.

    A quoted ``~``, and the one of ``--option=~/images``, reach a program as they are.

    Raises:
        UserError: for an empty text, which would mean the current folder.
    """
    named = f"{option}: " if option else ""
    if not path.strip():
        raise UserError(f"{named}expected a path, got an empty text; is a shell variable unset?")
    if "\0" in path:
        raise UserError(f"{named}expected a path, got one with a null character")
    return os.path.expanduser(path) if path.startswith("~") else path


def user_path(path: str | os.PathLike[str], option: str) -> Path:
    """Return a path of the user; see :func:`typed`.

    Raises:
        UserError: for an empty text.
    """
    return Path(typed(os.fspath(path), option))
