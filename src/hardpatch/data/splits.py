"""Splits of a data set by the names of its files: `train-00000-of-00002.parquet`, `val/0.tar`."""

import re
from collections.abc import Sequence
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
        raise UserError(
            f"{where}: expected {kind} of one split, got {names}; say which with a pattern, such as "
            f"'{where}/{PurePath(groups[next(iter(groups))][0]).parent / '*'}'"
        )
    rest = [
        entry
        for name, group in groups.items()
        if name != chosen
        for entry in left_out(f"{kind} of {f'the split {name}' if name else 'no split'}", group)
    ]
    return Split(groups[chosen], f"split {chosen}" if chosen else "no split", tuple(rest))
