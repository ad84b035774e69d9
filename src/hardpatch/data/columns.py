"""Columns of a table that hold the images and the labels: named by the user, or found by their names."""

from collections.abc import Sequence
from typing import NamedTuple

IMAGES = ("image", "img")
"""Names of columns with encoded images; a column of another name is taken if it is the only one with bytes."""
PATHS = (
    *IMAGES,
    *("path", "file", "filename", "file_name", "filepath", "file_path", "impath", "image_path", "img_path"),
    *("image_file", "image_file_path", "image_name", "image_filename"),
)
"""Names of columns with paths of images."""
LABELS = (
    ("label", "labels", "class", "classes", "target", "category", "cls"),
    ("class_name", "label_name", "category_name", "class_label", "class_id", "label_id", "category_id"),
)
"""Names of columns with labels. Those of the second tuple, and any that ends in `_label`, count if there is none of the
first."""


class Columns(NamedTuple):
    """Names of the columns that hold images and labels; None finds them."""

    image: str | None = None
    label: str | None = None


AUTO = Columns()
"""Columns that are found by their names."""


class Found(NamedTuple):
    """A column, or why there is none."""

    name: str | None
    reason: str = ""
    """empty if there is no candidate at all"""


def may_be_label(name: str) -> bool:
    """Return whether a column of this name can hold labels."""
    lower = name.lower()
    return lower in LABELS[0] or lower in LABELS[1] or lower.endswith("_label")


def find_label(names: Sequence[str], option: str = "--label_column") -> Found:
    """Return the column of the labels if only one can be it."""
    lower = {name: name.lower() for name in names}
    first = [name for name in names if lower[name] in LABELS[0]]
    candidates = first or [name for name in names if lower[name] in LABELS[1] or lower[name].endswith("_label")]
    return _only(candidates, "labels", option)


def find_path(names: Sequence[str], option: str = "--image_column") -> Found:
    """Return the column of the images' paths if only one can be it."""
    return _only([name for name in names if name.lower() in PATHS], "images", option)


def find_bytes(names: Sequence[str], option: str = "--image_column") -> Found:
    """Return the column of the images among columns that hold bytes, if only one can be it."""
    return _only([name for name in names if name.lower() in IMAGES] or names, "images", option)


def _only(candidates: Sequence[str], what: str, option: str) -> Found:
    if len(candidates) == 1:
        return Found(candidates[0])
    if not candidates:
        return Found(None)
    listed = ", ".join(candidates)
    return Found(None, f"{len(candidates)} columns could hold the {what}: {listed}; choose one with {option}")
