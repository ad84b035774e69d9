"""Classes of a labeled set, brought together from the labels of its files: by name, or by value for numbers."""

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from hardpatch.data.names import class_name

Codes = npt.NDArray[np.int32]
WHOLE = re.compile(r"-?(0|[1-9]\d{0,99})(\.0+)?")
"""Text that is a whole number; with leading zeros and with more than a hundred digits it is a name."""


class Labels(NamedTuple):
    """Labels of the images of one file, or of a whole set."""

    codes: Codes
    """int32 ``[images]``, index in `names`, -1 where there is no label"""
    names: tuple[str, ...]
    """class names, unique"""
    kind: Literal["declared", "names", "numbers"]
    """`declared` if the names are a given list, in its order, that may hold classes without images"""


def no_labels(count: int) -> Labels:
    """Return labels of images that have none."""
    return Labels(np.full(count, -1, dtype=np.int32), (), "names")


def from_numbers(values: npt.NDArray[np.number], present: npt.NDArray[np.bool_]) -> Labels:
    """Return labels of whole numbers, their classes in numeric order; negative ones are no label."""
    present = present & (values >= 0)
    codes = np.full(len(values), -1, dtype=np.int32)
    classes, codes[present] = np.unique(values[present], return_inverse=True)
    return Labels(codes, tuple(str(int(value)) for value in classes), "numbers")


def from_texts(codes: npt.NDArray[np.integer], texts: Sequence[str]) -> Labels:
    """Return labels of texts, `texts[code]` for each image and -1 for none.

    An empty text is no label. Texts that are all whole numbers are numbers. The classes are sorted.
    """
    used = [texts[code] for code in np.unique(codes).tolist() if code >= 0]
    numbers = all(WHOLE.fullmatch(text) for text in used if text)
    names = [(text.split(".")[0] if numbers else class_name(text)) for text in texts]
    kept = {names[code] for code in np.unique(codes).tolist() if code >= 0 and names[code]}
    if numbers:
        kept = {name for name in kept if not name.startswith("-")}
    order = sorted(kept, key=int) if numbers else sorted(kept)
    number = {name: k for k, name in enumerate(order)}
    new = np.array([*(number.get(name, -1) for name in names), -1], dtype=np.int32)  # the last is the code -1
    return Labels(new[codes], tuple(order), "numbers" if numbers and order else "names")


def from_values(values: Iterable[str | None]) -> Labels:
    """Return labels of one text for each image, None for no label."""
    number: dict[str, int] = {}
    codes = [-1 if value is None else number.setdefault(value, len(number)) for value in values]
    return from_texts(np.array(codes, dtype=np.int32), list(number))


def unique_names(names: Sequence[str]) -> tuple[str, ...]:
    """Add its number to every class name that occurs more than once, as ImageNet's two cranes."""
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
    return tuple(name if seen[name] == 1 else f"{name} ({k})" for k, name in enumerate(names))


def brought_together(parts: Sequence[Labels], files: Sequence[str]) -> Labels | str:
    """Give the labels of several files common classes, or return why that cannot be.

    Equal lists of names stay as they are. Others are united by name and sorted, numbers by value.
    """
    named = [(part, file) for part, file in zip(parts, files, strict=True) if part.names]
    for (part, file), (other, other_file) in pairwise(named):
        if (part.kind == "numbers") != (other.kind == "numbers"):
            with_numbers, with_names = (file, other_file) if part.kind == "numbers" else (other_file, file)
            return f"the labels of {with_numbers} are numbers and those of {with_names} names"
    if not named:
        return no_labels(sum(len(part.codes) for part in parts))
    first = named[0][0]
    if all(part.names == first.names for part, _ in named):
        return Labels(np.concatenate([part.codes for part in parts]), first.names, first.kind)
    union = {name for part, _ in named for name in part.names}
    order = sorted(union, key=int) if first.kind == "numbers" else sorted(union)
    number = {name: k for k, name in enumerate(order)}
    codes = [np.array([*(number[name] for name in part.names), -1], dtype=np.int32)[part.codes] for part in parts]
    return Labels(np.concatenate(codes), tuple(order), first.kind if first.kind == "numbers" else "names")
