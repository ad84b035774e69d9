"""Image files in folders."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hardpatch.data.decode import decode, named_errors
from hardpatch.data.formats import EXTENSIONS
from hardpatch.data.reading import RGB, Pixels, Reading, UndecodableImage
from hardpatch.errors import UserError


class FileSource:
    """Image files below one folder, given by their paths relative to it; see :class:`~hardpatch.data.sources.Source`.

    With `classes`, the first part of each path is the class of the image.
    """

    def __init__(
        self, root: str, paths: Sequence[str], skipped: Sequence[str] = (), classes: Sequence[str] | None = None
    ) -> None:
        encoded = [os.fsencode(path) for path in paths]
        # One bytes object and one array: a million str take ten times the memory, and forked workers would copy them
        # page by page, since reading a Python object writes its reference count.
        self._root = root
        self._paths = b"".join(encoded)
        self._ends = np.cumsum([len(path) for path in encoded], dtype=np.int64)
        self.skipped = tuple(skipped)
        self.classes = None if classes is None else tuple(classes)
        self._labels: npt.NDArray[np.int32] | None = None
        if classes is not None:
            number = {name: k for k, name in enumerate(classes)}
            self._labels = np.array([number[path.split(os.sep, 1)[0]] for path in paths], dtype=np.int32)

    def __len__(self) -> int:
        return len(self._ends)

    def name(self, i: int) -> str:
        """Return the path of image i."""
        start = self._ends[i - 1] if i else 0
        return os.path.join(self._root, os.fsdecode(self._paths[start : self._ends[i]]))

    def image(self, i: int, reading: Reading = RGB) -> Pixels:
        """Decode image i to [H, W, channels]."""
        data = self.encoded(i)
        with named_errors(self.name, i):
            return decode(data, reading)

    def encoded(self, i: int) -> bytes:
        """Read the file of image i."""
        name = self.name(i)
        try:
            with open(name, "rb", buffering=0) as file:
                return file.read()
        except OSError as error:
            raise UndecodableImage(f"{name}: {error.strerror or error}") from None

    def label(self, i: int) -> int | None:
        """Return the index of the class of image i; None if there are no classes."""
        return None if self._labels is None else int(self._labels[i])


@dataclass
class PassedBy:
    """Entries that :func:`list_images` meets and does not list, as relative paths."""

    dangling: list[str] = field(default_factory=list)
    """links that lead nowhere"""
    hidden: list[str] = field(default_factory=list)
    """hidden files and folders"""
    folders: list[str] = field(default_factory=list)
    """all folders below the first"""

    def dangling_links(self, folder: Path) -> str:
        """Return one line on the links that lead nowhere, empty if there are none."""
        if not self.dangling:
            return ""
        first = folder / min(self.dangling)
        return f"{len(self.dangling)} links lead nowhere (the first: {first} -> {os.readlink(first)})"


def list_images(folder: Path, passed: PassedBy | None = None) -> tuple[list[str], list[str]]:
    """List the image files at any depth below a folder, and the files that are skipped, as sorted relative paths.

    Hidden files and folders and links that lead nowhere are in neither list; `passed` gets them.

    Raises UserError if a folder cannot be read.
    """
    paths: list[str] = []
    skipped: list[str] = []
    try:
        for path in _walk(folder, PassedBy() if passed is None else passed):
            (paths if path.lower().endswith(EXTENSIONS) else skipped).append(path)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot list this folder ({error.strerror})") from None
    return sorted(paths), sorted(skipped)


def class_names(paths: Sequence[str]) -> list[str] | None:
    """Sorted names of the top-level folders, if every path lies in one; otherwise None."""
    if not all(os.sep in path for path in paths):
        return None
    return sorted({path.split(os.sep, 1)[0] for path in paths})


def _walk(folder: Path, passed: PassedBy) -> Iterator[str]:
    """Yield the files below a folder as relative paths. Links are followed, except to a folder that contains them."""
    stack: list[tuple[str, tuple[str, ...]]] = [("", (os.path.realpath(folder),))]
    while stack:
        prefix, parents = stack.pop()
        with os.scandir(os.path.join(folder, prefix)) as entries:
            for entry in entries:
                path = os.path.join(prefix, entry.name)
                if entry.name.startswith("."):
                    passed.hidden.append(path)
                elif entry.is_dir():
                    real = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(parents[-1], entry.name)
                    if real not in parents:
                        passed.folders.append(path)
                        stack.append((path, (*parents, real)))
                elif entry.is_file():
                    yield path
                elif entry.is_symlink():
                    passed.dangling.append(path)
