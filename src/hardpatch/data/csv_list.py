"""Images listed in a text table: a `.csv` or `.tsv` with a path and a label in each line."""

import csv
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hardpatch.data.classes import from_values
from hardpatch.data.columns import AUTO, Columns, find_label, find_path
from hardpatch.data.folders import FileSource
from hardpatch.data.formats import EXTENSIONS
from hardpatch.data.left_out import NOT_IMAGES, left_out
from hardpatch.data.names import some
from hardpatch.errors import UserError

LISTS = (".csv", ".tsv")
URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


class Table(NamedTuple):
    """Lines of a table, and the positions of its columns."""

    header: list[str]
    rows: list[list[str]]
    """without the header"""
    numbers: list[int]
    """line of each row in the file, from 1"""
    image: int
    label: int | None
    reason: str
    """why there is no column of labels"""
    note: str


def open_list(path: Path, columns: Columns = AUTO) -> FileSource:
    """Open the images that a table lists, by paths relative to its folder or absolute ones.

    The first line is a header unless it holds the path of an image. Without a header the columns are called 1, 2 and so
    on. Every image stays in the source, even if its file is missing; it then counts as one that cannot be decoded.

    Raises:
        UserError: if the table cannot be read, its columns cannot be told apart, or none of its files exists.
    """
    table = _read(path, columns)
    names: list[str] = []
    labels: list[str | None] = []
    others: list[str] = []
    pathless: list[str] = []
    unread: list[str | None] = []
    for number, row in zip(table.numbers, table.rows, strict=True):
        name = row[table.image].strip()
        label = None if table.label is None else row[table.label].strip()
        if "/" not in name and os.sep == "/":
            name = name.replace("\\", "/")  # as Windows writes it
        if not name:
            pathless.append(f"{path} line {number}")
            unread.append(label)
        elif not name.lower().endswith(EXTENSIONS):
            others.append(name)
            unread.append(label)
        else:
            names.append(name)
            labels.append(label)
    skipped = (*left_out(NOT_IMAGES, others, kinds=True), *left_out("lines without a path", pathless))
    if not names:
        kinds = "; ".join(map(str, skipped)) or "none"
        raise UserError(f"{path}: expected paths of images ({', '.join(EXTENSIONS)}) in this table, got {kinds}")
    found = from_values(labels)
    lost = sorted({*from_values(unread).names} - {*found.names})
    empty = f"{len(lost)} classes have no image: {some(lost)}" if lost else ""
    notes = [note for note in (table.note, _missing(path, names), empty) if note]
    labeled = bool((found.codes >= 0).any())
    return FileSource(
        str(path.parent),
        names,
        skipped,
        found.names if labeled else None,
        found.codes if labeled else np.full(len(names), -1, dtype=np.int32),
        unlabeled=table.reason,
        listed_in=str(path),
        notes=notes,
    )


def list_columns(path: Path, columns: Columns, names: Sequence[str]) -> dict[str, list[str]]:
    """Read columns of a table for the images that :func:`open_list` opens, as text.

    Args:
        path: the table.
        columns: names of the columns of the images and the labels.
        names: of the columns to read; empty for the column of the labels.

    Raises:
        UserError: if there is no such column.
    """
    table = _read(path, columns)
    if not names and table.label is None:
        raise UserError(f"{table.reason or f'{path}: no column of labels'}; name it with --target_columns")
    chosen = {name: _wanted(path, table.header, name, "--target_columns") for name in names}
    if not chosen and table.label is not None:
        chosen = {table.header[table.label]: table.label}
    rows = [row for row in table.rows if row[table.image].strip().lower().endswith(EXTENSIONS)]
    return {name: [row[k].strip() for row in rows] for name, k in chosen.items()}


def values_beside_images(path: Path, columns: Columns = AUTO) -> list[list[str]]:
    """Return the fields of each line but for the path of its image, and first their names: all that may be a label.

    Raises:
        UserError: as :func:`open_list`.
    """
    table = _read(path, columns)
    lines = [table.header, *table.rows]
    return [[field.strip() for k, field in enumerate(line) if k != table.image] for line in lines]


def _read(path: Path, columns: Columns) -> Table:
    """Read all lines, and find the columns."""
    rows: list[list[str]] = []
    numbers: list[int] = []
    for number, row in _lines(path):
        if any(field.strip() for field in row):
            rows.append(row)
            numbers.append(number)
            if len(row) != len(rows[0]):
                raise UserError(
                    f"{path} line {number}: expected {len(rows[0])} columns as in the first line, got {len(row)}; a "
                    "path with a comma stands in quotes"
                )
    if not rows:
        raise UserError(f"{path}: expected lines with the path of an image and its label, the table is empty")
    headless = any(_is_image(field) for field in rows[0])
    header = [str(k + 1) for k in range(len(rows[0]))] if headless else [field.strip() for field in rows[0]]
    if not headless:
        del rows[0], numbers[0]
    image = _image(path, header, rows, columns.image)
    label, reason = _label(path, header, image, columns.label)
    note = "no header" if headless else ""
    if label is not None:
        note = ", ".join(filter(None, (note, f"labels in column {header[label]!r}")))
    return Table(header, rows, numbers, image, label, reason, note)


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the fields of each line."""
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            first = file.readline()
            file.seek(0)
            if "\0" in first:
                raise UserError(f"{path}: expected text in UTF-8, got UTF-16 or a binary file; save it as CSV UTF-8")
            reader = csv.reader(file, delimiter=_delimiter(path, first), strict=True)
            for row in reader:
                yield reader.line_num, row
    except OSError as error:
        raise UserError(f"{path}: cannot read this table ({error.strerror})") from None
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num}: no readable CSV ({error})") from None


def _delimiter(path: Path, line: str) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    outside = re.sub(r'"[^"]*"', "", line)
    return next((mark for mark in (",", ";", "\t") if mark in outside), ",")


def _image(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]], wanted: str | None) -> int:
    """Position of the column with the paths."""
    if wanted is not None:
        return _wanted(path, header, wanted, "--image_column")
    found = find_path(header)
    if found.name is not None:
        return header.index(found.name)
    # no known name: the only column with paths of images
    with_images = [k for k in range(len(header)) if any(_is_image(row[k]) for row in rows[:100])]
    if len(with_images) == 1 and not found.reason:
        return with_images[0]
    reason = found.reason
    if not reason and with_images:
        reason = f"{len(with_images)} columns hold paths of images: {', '.join(header[k] for k in with_images)}"
        reason += "; choose one with --image_column"
    reason = reason or f"no column with paths of images ({', '.join(EXTENSIONS)})"
    raise UserError(f"{path}: {reason}; the columns are {', '.join(header)}")


def _label(path: Path, header: Sequence[str], image: int, wanted: str | None) -> tuple[int | None, str]:
    """Position of the column with the labels, or why there is none."""
    if wanted is not None:
        return _wanted(path, header, wanted, "--label_column"), ""
    others = [name for k, name in enumerate(header) if k != image]
    found = find_label(others)
    if found.name is not None:
        return header.index(found.name), ""
    if found.reason or not others:
        return None, f"{path}: {found.reason}" if found.reason else ""
    if len(others) == 1:
        return header.index(others[0]), ""
    listed = ", ".join(others)
    return None, f"{path}: no column is called label, the others are {listed}; choose one with --label_column"


def _wanted(path: Path, header: Sequence[str], wanted: str, option: str) -> int:
    if wanted not in header:
        raise UserError(f"{option}: {path} has no column {wanted!r}; the columns are {', '.join(header)}")
    return list(header).index(wanted)


def _is_image(field: str) -> bool:
    return field.strip().lower().endswith(EXTENSIONS)


def _missing(path: Path, names: Sequence[str]) -> str:
    """Count the files that do not exist, by one listing of each folder.

    Raises:
        UserError: if none exists.
    """
    folders: dict[str, set[str]] = {}
    missing: list[str] = []
    for name in names:
        folder, file = os.path.split(os.path.join(path.parent, name))
        if folder not in folders:
            try:
                folders[folder] = set() if "\0" in folder else set(os.listdir(folder or "."))
            except OSError:
                folders[folder] = set()
        if file not in folders[folder]:
            missing.append(name)
    if len(missing) == len(names):
        remote = URL.match(names[0])
        hint = "download the images first" if remote else "expected paths relative to the folder of the table"
        raise UserError(f"{path}: none of the {len(names)} listed files exists, the first: {names[0]}; {hint}")
    if not missing:
        return ""
    return f"{len(missing)} of the listed files do not exist (the first: {missing[0]})"
