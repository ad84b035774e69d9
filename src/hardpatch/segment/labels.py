"""Classes of a segmentation set: from a number, a text file with or without colors, or ADE20K's own table."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from hardpatch.errors import UserError, shown

IGNORED = 255
"""Class of a pixel that takes no part in training or evaluation, in label maps once they are read."""
MAX_VALUE = 65535
ADE20K_CLASSES = 150
COLOR_TABLE = "a line of classes.txt for each class: R G B name, such as '128 0 0 road'"

_RGB = r"(?P<r>\d+)[\s,]+(?P<g>\d+)[\s,]+(?P<b>\d+)"
_INDEX, _NAME = r"(?:(?P<index>\d+)[\s:,]+)?", r"(?P<name>[^\s\d].*?)"
_COLORED = tuple(
    re.compile(pattern)
    for pattern in (
        rf"{_INDEX}{_RGB}[\s:,]+{_NAME}",
        rf"{_INDEX}{_NAME}[\s:,]+{_RGB}[\s:,]*",
        rf"{_INDEX}#(?P<hex>[0-9a-fA-F]{{6}})[\s:,]+{_NAME}",
        rf"{_INDEX}{_NAME}[\s:,]+#(?P<hex>[0-9a-fA-F]{{6}})",
    )
)
_IGNORED = re.compile(r"\(ignored?\)$", re.IGNORECASE)
_COMMENT = re.compile(r"#(?![0-9a-fA-F]{6}\b).*|name[\s,]+r[\s,]+g[\s,]+b", re.IGNORECASE)


@dataclass(frozen=True)
class Labels:
    """Meaning of the values in label files, as the user declares it.

    Args:
        names: class names, 2 to 255 of them.
        values: value of each class in the files.
        ignored: other values that may occur; their pixels are :data:`IGNORED`.
        colors: color of each class, 0xRRGGBB; empty without a color table.
        ignored_colors: other colors that may occur.
        chosen: True if the user chose the ignored values, or says what 255 is.
        threshold: value from which on a pixel is of the second of two classes, whatever ``values`` are.
        said: lines for the user: what was guessed.

    Raises:
        UserError: for another number of classes.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    ignored: tuple[int, ...] = (IGNORED,)
    colors: tuple[int, ...] = ()
    ignored_colors: tuple[int, ...] = ()
    chosen: bool = False
    threshold: int | None = None
    said: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 2 <= len(self.names) <= IGNORED:
            raise UserError(f"--classes: expected 2 to {IGNORED} classes, got {len(self.names)}")


class _Class(NamedTuple):
    value: int
    name: str
    color: int | None


def find_labels(
    folder: str | PathLike[str],
    classes: str | None = None,
    ignore: Sequence[int] | None = None,
    reduce_zero_label: bool | None = None,
    threshold: int | None = None,
) -> Labels:
    """Find the classes of a set: from ``classes``, or from the ``classes.txt`` of the folder or the one above it.

    A line of ``classes.txt`` is a name, or an index and a name, or one of these with a color. A name that ends in
    ``(ignore)`` is not a class. ADE20K is recognized by its folders where there is no ``classes.txt``: 150 classes,
    value 0 ignored, names from ``objectInfo150.txt`` if it is there.

    Args:
        folder: of the training set.
        classes: a number of classes, whose values are 0 to N - 1, or a file like ``classes.txt``.
        ignore: values whose pixels are ignored. A class among them is removed from the classes. None is 255, unless
            that is a class.
        reduce_zero_label: value 0 is ignored and value 1 is the first class; None is True for ADE20K alone.
        threshold: read masks of two classes by this threshold.

    Raises:
        UserError: if the classes cannot be found or are invalid.
    """
    root = Path(folder)
    if ignore is not None and not all(0 <= value <= MAX_VALUE for value in ignore):
        raise UserError(f"--ignore: expected values from 0 to {MAX_VALUE}, got {', '.join(map(str, ignore))}")
    said = []
    ade20k = _is_ade20k(root, classes)
    if ade20k:
        what = "0 is ignored, 1 the first class" if reduce_zero_label in (None, True) else "0 is a class of its own"
        said.append(f"--train: ADE20K by the names of its folders: value {what}")
    shift = int(ade20k if reduce_zero_label is None else reduce_zero_label)
    if classes is not None and classes.isdecimal():
        found = [_Class(index, f"class {index}", None) for index in range(int(classes))]
    elif ade20k and classes is None and _has_classes_file(root) is None:
        names = _ade20k_names(root)
        found = [_Class(index, name, None) for index, name in enumerate(names if shift else ["other", *names])]
    else:
        found = _read_classes(_classes_file(root) if classes is None else Path(classes))
    found = [entry._replace(value=entry.value + shift) for entry in found]
    highest = max((entry.value for entry in found), default=0)
    if highest > MAX_VALUE:
        raise UserError(f"--classes: expected indices up to {MAX_VALUE - shift}, got {highest - shift}")
    if shift and ignore is not None and 0 in ignore:
        said.append("--ignore 0: 0 is ignored by --reduce_zero_label already; --ignore names values of the files")
    labels = _without_ignored(found, ignore, shift, threshold, tuple(said))
    if threshold is not None:
        _check_threshold(labels, ignore, shift)
    return labels


def _without_ignored(
    found: Sequence[_Class], ignore: Sequence[int] | None, shift: int, threshold: int | None, said: tuple[str, ...]
) -> Labels:
    """Tell classes from what is ignored."""
    marked = [entry for entry in found if _IGNORED.search(entry.name)]
    classes = [entry for entry in sorted(found) if entry not in marked]
    default = {IGNORED} - {entry.value for entry in classes}
    ignored = (
        {entry.value for entry in marked} | (default if ignore is None else set(ignore)) | ({0} if shift else set())
    )
    eaten = [entry for entry in classes if entry.value in ignored]
    classes = [entry for entry in classes if entry.value not in ignored]
    if eaten and len(classes) < 2:
        raise UserError(
            f"--ignore: {', '.join(f'{entry.value} is the class {entry.name}' for entry in eaten)}; without it "
            f"{' and '.join(entry.name for entry in classes) or 'no class'} is left, expected two classes or more"
        )
    if eaten:
        said += (f"--ignore: no class any more: {', '.join(entry.name for entry in eaten)}",)
    return Labels(
        tuple(entry.name for entry in classes),
        tuple(entry.value for entry in classes),
        tuple(sorted(ignored)),
        tuple(entry.color for entry in classes if entry.color is not None),
        tuple(entry.color for entry in (*marked, *eaten) if entry.color is not None),
        ignore is not None or any(entry.value == IGNORED for entry in marked),
        threshold,
        said,
    )


def _check_threshold(labels: Labels, ignore: Sequence[int] | None, shift: int) -> None:
    if not 1 <= (labels.threshold or 0) <= MAX_VALUE:
        raise UserError(f"--threshold: expected a value from 1 to {MAX_VALUE}, got {labels.threshold}")
    if len(labels.names) != 2:
        raise UserError(f"--threshold: expected two classes, below and from the threshold on, got {len(labels.names)}")
    for name, given in (("--ignore", ignore is not None), ("--reduce_zero_label", shift)):
        if given:
            raise UserError(f"--threshold: gives every pixel one of the two classes; leave {name} out")


def _is_ade20k(root: Path, classes: str | None) -> bool:
    """Return whether a folder is ADE20K's; other sets call their folders so, too, but have classes of their own."""
    named = any((root / "annotations" / part).is_dir() for part in ("training", "validation"))
    own = classes is not None or _has_classes_file(root) is not None
    return named and ((root / "objectInfo150.txt").is_file() or not own)


def _ade20k_names(root: Path) -> list[str]:
    """Read the class names from the table that comes with the set: the first of the names in the last column."""
    table = root / "objectInfo150.txt"
    lines = table.read_text(encoding="utf-8", errors="replace").splitlines() if table.is_file() else []
    names = [line.split("\t")[-1].split(",")[0].strip() for line in lines if line[:1].isdecimal()]
    return names if len(names) == ADE20K_CLASSES else [f"class {k + 1}" for k in range(ADE20K_CLASSES)]


def _has_classes_file(root: Path) -> Path | None:
    candidates = (folder / "classes.txt" for folder in (root, root.resolve().parent))
    return next((file for file in candidates if file.is_file()), None)


def _classes_file(root: Path) -> Path:
    file = _has_classes_file(root)
    if file is None:
        raise UserError(f"--classes: expected a number of classes or a file that names them; {root} has no classes.txt")
    return file


def _read_classes(path: Path) -> list[_Class]:
    """Read index, name and color of each class; where a line has no index, all lines are counted from 0."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--classes: expected a number or a text file of class names, got {path}: {error}") from None
    lines = [line for line in lines if not _COMMENT.fullmatch(line)]
    colored = [next(filter(None, (form.fullmatch(line) for form in _COLORED)), None) for line in lines]
    if any(colored):
        classes = [_colored_class(path, line, entry) for line, entry in zip(lines, colored, strict=True)]
    else:
        matches = [re.fullmatch(r"(\d+)[\s:,]+(.+)", line) for line in lines]
        classes = [(int(entry[1]), entry[2], None) if entry else (None, "", None) for entry in matches]
        if any(index is None for index, _, _ in classes):
            classes = [(None, line, None) for line in lines]
    if any(index is None for index, _, _ in classes):
        classes = [(number, name, color) for number, (_, name, color) in enumerate(classes)]
    entries = [_Class(index or 0, name, color) for index, name, color in classes]
    for what, values in (("an index", [e.value for e in entries]), ("a color", [e.color for e in entries])):
        if len(set(values) - {None}) != len([value for value in values if value is not None]):
            raise UserError(f"--classes: {path} names {what} twice")
    names = Counter(entry.name for entry in entries if not _IGNORED.search(entry.name))
    name, count = max(names.items(), key=lambda item: item[1], default=("", 0))
    if count > 1:
        raise UserError(
            f"--classes: {path} has the name {name!r} {count} times; expected a name of its own for each class: to "
            "make one class of several, write one value or color in the label maps"
        )
    return entries


def _colored_class(path: Path, line: str, entry: re.Match[str] | None) -> tuple[int | None, str, int | None]:
    if entry is None:
        raise UserError(
            f"--classes: {path}: expected a color in each line or in none, got {shown(repr(line))}; {COLOR_TABLE}"
        )
    parts = entry.groupdict()
    rgb = [int(parts[part]) for part in "rgb"] if "r" in parts else [*bytes.fromhex(parts["hex"])]
    if max(rgb) > 255:
        raise UserError(f"--classes: {path}: expected colors from 0 to 255, got {shown(repr(line))}")
    index = None if parts["index"] is None else int(parts["index"])
    return index, parts["name"], rgb[0] << 16 | rgb[1] << 8 | rgb[2]
