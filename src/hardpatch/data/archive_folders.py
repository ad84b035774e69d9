"""Folders within archives: the one that all images share, those of splits, and which images are read."""

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hardpatch.data.archive_entries import Entries
from hardpatch.data.left_out import LeftOut
from hardpatch.data.splits import Role, of_one_split


class Folders(NamedTuple):
    """Which folders of some archives are read, and the one below which they lie."""

    kept: dict[str, str]
    """folders as they stand in the names, and the name of the first image in each"""
    root: str
    """ends with a slash unless it is empty"""
    rows: list[npt.NDArray[np.int64] | None]
    """images that are read of each archive, None for all"""
    notes: list[str]
    left_out: tuple[LeftOut, ...]


def folders_of(archives: Sequence[str], entries: Sequence[Entries], role: Role | None) -> Folders:
    """Go down into the folder that holds all images of some archives, and into that of one split.

    Args:
        archives: their paths.
        entries: their images.
        role: which split to take if there are folders of several; None takes all.
    """
    counts: dict[str, int] = {}
    first: dict[str, tuple[str, str]] = {}
    for archive, part in zip(archives, entries, strict=True):
        codes, starts, numbers = np.unique(part.folder_of, return_index=True, return_counts=True)
        for code, start, number in sorted(
            zip(codes.tolist(), starts.tolist(), numbers.tolist(), strict=True), key=_start
        ):
            folder = part.folders[code]
            counts[folder] = counts.get(folder, 0) + number
            first.setdefault(folder, (archive, part.name(start)))
    where = archives[0] if len(archives) == 1 else os.path.dirname(archives[0])
    shown = {folder: "/".join((where, name)) for folder, (_, name) in first.items()}
    kept, root, notes, left_out = _below(counts, shown, role, where)
    rows: list[npt.NDArray[np.int64] | None] = []
    for part in entries:
        read = np.array([folder in kept for folder in part.folders], bool)
        rows.append(None if read.all() else np.flatnonzero(read[part.folder_of]))
    return Folders({folder: first[folder][1] for folder in kept}, root, rows, notes, left_out)


def _start(found: tuple[int, int, int]) -> int:
    return found[1]


def _below(
    counts: Mapping[str, int], shown: Mapping[str, str], role: Role | None, where: str
) -> tuple[list[str], str, list[str], tuple[LeftOut, ...]]:
    """Return the folders that are read, the one that they share, notes, and what is left out."""
    kept, root, notes, left_out = [*counts], "", list[str](), list[LeftOut]()
    while kept:
        below = [plain(f"{folder}x").removeprefix(root) for folder in kept]
        tops = {path.split("/", 1)[0] for path in below}
        if all(path.count("/") >= 2 for path in below) and len(tops) == 1:
            root += f"{tops.pop()}/"
            continue
        names, numbers = [shown[folder] for folder in kept], [counts[folder] for folder in kept]
        split = None if role is None else of_one_split(below, "/", role, where, names, numbers)
        if split is None:
            break
        left_out += split.left_out
        notes.append(split.note)
        kept = [kept[k] for k in split.kept]
        if not split.folder:
            break
        root += f"{split.folder}/"
    if root:
        notes.append(f"images below {root}")
    return kept, root, notes, tuple(left_out)


def plain(name: str) -> str:
    """Return a name without a leading ``./`` or ``/``."""
    while name.startswith(("./", "/")):
        name = name.removeprefix("/").removeprefix("./")
    return name
