"""Many names in little memory."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from unicodedata import normalize

import numpy as np

from hardpatch.printable import printable

NAMED = 3
"""Names that a line shows."""


class PackedNames:
    """A list of names in one bytes object and one array.

    A million `str` take ten times the memory, and forked workers would copy them page by page, since reading a Python
    object writes its reference count. Names that are no UTF-8 survive, as in :func:`os.fsencode`.
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._bytes = b"".join(encoded)
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: int) -> str:
        start = self._ends[i - 1] if i else 0
        return os.fsdecode(self._bytes[start : self._ends[i]])

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))


def class_name(text: str) -> str:
    """Return a class name as a line of text in Unicode's composed form (NFC): systems write accents in two ways."""
    return printable(normalize("NFC", text))


def listed(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str | os.PathLike[str]]:
    """Return one path, or several, as a list."""
    return [paths] if isinstance(paths, str | os.PathLike) else list(paths)


def path_text(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> str:
    """Return one path, or several, as a line of text."""
    return " ".join(os.fspath(path) for path in listed(paths))


def some(names: Sequence[str], show: Callable[[str], str] = str, limit: int = NAMED) -> str:
    """Name the first few, as `show` writes them, and say how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(show(name) for name in names[:limit]) + more
