"""Splits of a data set by the names of its files: `train-00000-of-00002.parquet`, `val/0.tar`."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Literal, NamedTuple

from hardpatch.data.left_out import LeftOut, left_out
from hardpatch.errors import UserError

Role = Literal["train", "val"]
"""Purpose of images: evaluation is `val`, and training and whatever else works on one set is `train`."""

WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Words in names of files and folders, and the split that they stand for, as on the Hugging Face Hub."""
PREFERRED = {"train": ("train", None), "val": ("validation", "test")}
"""Splits that a role takes, the best first; None is that of files that name no split."""
FOLDERS = "folders"


class OneSplit(NamedTuple):
    """Images of one split among those below folders of several."""

    kept: list[int]
    """positions of the images"""
    folder: str
    """the folder that holds them; empty if there are several"""
    note: str
    left_out: tuple[LeftOut, ...]


class Split(NamedTuple):
    """Files of one split among those of a folder."""

    paths: list[str]
    note: str
    """which split was taken; empty if there was nothing to choose"""
    left_out: tuple[LeftOut, ...]


def split_of(path: str) -> str | None:
    """Return the split that a file's name stands for or, if it names none, that of the nearest folder that does."""
    for part in reversed(PurePath(path).parts):
        found = {WORDS[word] for word in re.findall("[a-z]+", part.lower()) if word in WORDS}
        if len(found) == 1:
            return found.pop()
    return None


def choose_split(paths: Sequence[str], role: Role | None, where: str, kind: str) -> Split:
    """Choose the files of one split, or all if they are of one split only.

    Args:
        paths: files relative to a folder.
        role: what the images are for; None takes all splits.
        where: the folder, for messages.
        kind: what the files are, in the plural.

    Raises:
        UserError: if the role fits none of several splits.
    """
    groups: dict[str | None, list[str]] = {}
    for path in paths:
        groups.setdefault(split_of(path), []).append(path)
    names = ", ".join(f"{len(group)} of {f'split {name}' if name else 'no split'}" for name, group in groups.items())
    if len(groups) < 2:
        return Split(list(paths), "", ())
    if role is None:
        return Split(list(paths), f"{kind} of several splits: {names}", ())
    chosen = next((name for name in PREFERRED[role] if name in groups), "")
    if chosen == "":
        first = groups[next(iter(groups))][0]
        pattern = f"say which with a pattern, such as '{where}/{PurePath(first).parent / '*'}'"
        which = f"name one, such as {where}/{first}" if kind == FOLDERS else pattern
        raise UserError(f"{where}: expected {kind} of one split, got {names}; {which}")
    rest = [
        entry
        for name, group in groups.items()
        if name != chosen
        for entry in left_out(f"{kind} of {f'the split {name}' if name else 'no split'}", group)
    ]
    return Split(groups[chosen], f"split {chosen}" if chosen else "no split", tuple(rest))


def of_one_split(
    paths: Sequence[str],
    separator: str,
    role: Role | None,
    where: str,
    names: Sequence[str] | None = None,
    counts: Sequence[int] | None = None,
) -> OneSplit | None:
    """Choose the images of one split if the folders at the top are those of several, as `train` and `val`.

    They are if all of them name splits, or if two are called exactly as such. What lies elsewhere is of no split.

    Args:
        paths: images relative to a folder or an archive.
        separator: between the parts of a path.
        role: what the images are for; None takes all splits.
        where: the folder or archive, for messages.
        names: of the images, for messages.
        counts: images that each path stands for; one if it is None.

    Raises:
        UserError: if the role fits none of the splits.
    """
    tops = [path.split(separator, 1)[0] if separator in path else "" for path in paths]
    folders = sorted({*tops} - {""})
    exact = {WORDS[folder.lower()] for folder in folders if folder.lower() in WORDS}
    named = {split_of(folder) for folder in folders}
    if len(exact) < 2 and (len(named) < 2 or None in named):
        return None
    split = choose_split(folders, role, where, FOLDERS)
    if role is None:
        return OneSplit(list(range(len(paths))), "", split.note, ())
    shown = names or [f"{where}{separator}{path}" for path in paths]
    others: dict[str | None, LeftOut] = {}
    for top, name, count in zip(tops, shown, counts or [1] * len(paths), strict=True):
        if top not in split.paths:
            other = split_of(top)
            reason = f"images of {f'the split {other}' if other else 'no split'}"
            before = others.get(other, LeftOut(reason, 0, name))
            others[other] = replace(before, count=before.count + count)
    kept = [k for k, top in enumerate(tops) if top in split.paths]
    return OneSplit(kept, split.paths[0] if len(split.paths) == 1 else "", split.note, tuple(others.values()))
