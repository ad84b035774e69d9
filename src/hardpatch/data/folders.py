"""Image files in folders."""

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hardpatch.data.current_file import reading_file
from hardpatch.data.decode import decode, named_errors
from hardpatch.data.formats import EXTENSIONS
from hardpatch.data.left_out import LeftOut
from hardpatch.data.limits import MAX_FILE_BYTES
from hardpatch.data.names import PackedNames, class_name, some
from hardpatch.data.network import was_read
from hardpatch.data.reading import RGB, Pixels, Reading, UndecodableImage
from hardpatch.errors import UserError


class FileSource:
    """Image files, given by their paths relative to a folder; see :class:`~hardpatch.data.sources.Source`.

    Args:
        root: the folder.
        paths: of the images, relative to it or absolute.
        skipped: what was left out.
        classes: names of the classes.
        labels: index of the class of each image, -1 for none. Without it the first part of each path is the class.
        unlabeled: why there are no classes, if there could have been.
        listed_in: file that lists the images.
    """

    def __init__(
        self,
        root: str,
        paths: Sequence[str],
        skipped: tuple[LeftOut, ...] = (),
        classes: Sequence[str] | None = None,
        labels: npt.NDArray[np.int32] | None = None,
        *,
        unlabeled: str = "",
        listed_in: str | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self._root, self._paths, self.listed_in = root, PackedNames(paths), listed_in
        self.skipped, self.notes, self.unlabeled = skipped, list(notes), unlabeled
        self.classes = None if classes is None else tuple(classes)
        if classes is not None and labels is None:
            number = {name: k for k, name in enumerate(classes)}
            labels = np.array([number[class_name(path.split(os.sep, 1)[0])] for path in paths], dtype=np.int32)
        self._labels = labels

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, i: int) -> str:
        """Return the path of image i."""
        return os.path.join(self._root, self._paths[i])

    def image(self, i: int, reading: Reading = RGB) -> Pixels:
        """Decode image i to [H, W, channels]."""
        data = self.encoded(i)
        with named_errors(self.name, i):
            return decode(data, reading)

    def encoded(self, i: int) -> bytes:
        """Read the file of image i."""
        name = self.name(i)
        reading_file(name)
        try:
            return read_file(name)
        except UndecodableImage as error:
            raise UndecodableImage(f"{name}: {error}") from None

    def label(self, i: int) -> int | None:
        """Return the index of the class of image i; None if it has none."""
        label = -1 if self._labels is None else int(self._labels[i])
        return None if label < 0 else label

    def files(self) -> Iterator[str]:
        """Yield the files of the images, and the one that lists them."""
        if self.listed_in is not None:
            yield self.listed_in
        yield from (self.name(i) for i in range(len(self)))


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe without a writer would keep the process waiting."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Read the file of an image. Raises UndecodableImage with the reason."""
    try:
        with open(path, "rb", buffering=0, opener=_without_waiting) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise UndecodableImage("no regular file")
            if found.st_size > MAX_FILE_BYTES:
                raise UndecodableImage(f"takes {found.st_size:,} bytes; expected at most {MAX_FILE_BYTES:,}")
            data = file.read()
            was_read(len(data))
            return data
    except MemoryError:
        raise UndecodableImage("there is not enough memory to read it") from None
    except OSError as error:
        raise UndecodableImage(error.strerror or str(error)) from None
    except ValueError as error:  # a null character in the path
        raise UndecodableImage(str(error)) from None


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
    return sorted({class_name(path.split(os.sep, 1)[0]) for path in paths})


def without_images(classes: Sequence[str], others: Iterable[str], separator: str) -> list[str]:
    """Name in a line the folders that look like those of classes and hold none of the images.

    Args:
        classes: names of the folders with images.
        others: paths of other entries beside them.
        separator: between the parts of a path.
    """
    folders = {class_name(path.split(separator, 1)[0]) for path in others if separator in path}
    empty = sorted(folders - {*classes})
    return [f"{len(empty)} folders hold no image: {some(empty)}"] if empty else []


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
