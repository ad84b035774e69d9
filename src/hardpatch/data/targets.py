"""Several labels or numbers for each image, from columns of Parquet and CSV files: multi-label sets and regression."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hardpatch.choices import TaskName
from hardpatch.data.columns import Columns, find_label
from hardpatch.data.csv_list import list_columns
from hardpatch.data.folders import FileSource
from hardpatch.data.names import some
from hardpatch.data.parquet import ParquetSource
from hardpatch.data.parquet_file import open_parquet, readable
from hardpatch.data.reading import RGB, Pixels, Reading
from hardpatch.data.sources import ConcatSource, OpenedSource, Source
from hardpatch.errors import UserError, shown

SEPARATOR = ";"
"""Mark between the labels of an image where a column holds text."""
INDICATORS = {"0": 0.0, "1": 1.0, "false": 0.0, "true": 1.0, "0.0": 0.0, "1.0": 1.0}
"""Values of an indicator column as text, in lower case."""


class TargetTable(NamedTuple):
    """Targets of a set of images."""

    names: tuple[str, ...]
    """of the classes, or of the numbers"""
    values: Tensor
    """float32 ``[images, names]``: 1 for each class of an image, or the numbers in the units of the data"""


class Numbered:
    """A source whose labels are the numbers of its images, by which a table is read."""

    def __init__(self, source: Source) -> None:
        self.source, self.classes, self.skipped = source, None, source.skipped

    def __len__(self) -> int:
        return len(self.source)

    def name(self, i: int) -> str:
        """Name of image i."""
        return self.source.name(i)

    def image(self, i: int, reading: Reading = RGB) -> Pixels:
        """Decode image i to [H, W, channels]."""
        return self.source.image(i, reading)

    def encoded(self, i: int) -> bytes | None:
        """Read the encoded file of image i."""
        return self.source.encoded(i)

    def label(self, i: int) -> int:
        """Return the number of image i."""
        return i


def read_targets(
    source: OpenedSource, task: TaskName, columns: Columns, names: Sequence[str] = (), known: Sequence[str] = ()
) -> TargetTable:
    """Read the targets of all images of a set.

    A multi-label set has one column of lists (or of text, separated by ``;``), or several indicator columns of 0 and 1.

    Args:
        source: as it was opened, from Parquet or CSV files.
        task: ``multilabel`` or ``regression``.
        columns: names of the columns of images and labels.
        names: columns of the targets; empty for the column of the labels.
        known: names of the classes of the training set, which this set may not exceed; empty for the training set.

    Raises:
        UserError: if there are no such columns, or a value cannot be a target; it names the image.
    """
    table = _columns(source, columns, list(dict.fromkeys(names)))
    if task == "regression":
        return TargetTable(tuple(table), _matrix(source, table, _number))
    if len(table) > 1:
        return TargetTable(tuple(table), _matrix(source, table, _indicator))
    (column, values), *_ = table.items()
    labels = [_labels(source, i, column, value) for i, value in enumerate(values)]
    found = set().union(*labels)
    order = list(known) or _sorted(found)
    if not order:
        raise UserError(f"column {column!r}: expected labels of some image, all {len(values)} have none")
    if not found <= set(order):
        lost = some(sorted(found - set(order)), repr, 5)
        raise UserError(f"column {column!r}: expected only classes that --train has, got {lost}")
    number = {name: k for k, name in enumerate(order)}
    matrix = torch.zeros(len(values), len(order))
    for i, of_image in enumerate(labels):
        matrix[i, [number[name] for name in of_image]] = 1.0
    return TargetTable(tuple(order), matrix)


def _columns(source: OpenedSource, columns: Columns, names: list[str]) -> dict[str, list[Any]]:
    """Read the columns of targets: one value for each image."""
    if isinstance(source, ConcatSource):
        parts = [_columns(part, columns, names) for part in source.parts]
        first = list(parts[0])
        other = next((list(part) for part in parts if list(part) != first), None)
        if other is not None:
            raise UserError(f"expected targets in the same columns of all paths, got {first} and {other}")
        return {name: [value for part in parts for value in part[name]] for name in first}
    if isinstance(source, ParquetSource):
        found = [_of_parquet(path, columns, names) for path in source.files_of_images()]
        return {name: [value for part in found for value in part.get(name, [])] for name in found[0]}
    if isinstance(source, FileSource) and source.listed_in is not None:
        return list_columns(Path(source.listed_in), columns, names)
    raise UserError("expected targets in columns of a Parquet or CSV file, got images without such a table")


def _of_parquet(path: str, columns: Columns, names: list[str]) -> dict[str, list[Any]]:
    with readable(path, "not a readable Parquet file"), open_parquet(path) as file:
        existing = list(file.schema_arrow.names)
        chosen = names or [columns.label or _label_column(path, existing)]
        unknown = next((name for name in chosen if name not in existing), None)
        if unknown is not None:
            raise UserError(f"--target_columns: {path} has no column {unknown!r}; the columns are {some(existing)}")
        table = file.read(columns=chosen)
        return {name: table.column(name).to_pylist() for name in chosen}


def _label_column(path: str, existing: Sequence[str]) -> str:
    found = find_label(existing)
    if found.name is None:
        raise UserError(f"{path}: {found.reason or 'no column of labels'}; name it with --target_columns")
    return found.name


def _matrix(
    source: OpenedSource, table: dict[str, list[Any]], parse: Callable[[OpenedSource, int, str, Any], float]
) -> Tensor:
    rows = [[parse(source, i, name, value) for i, value in enumerate(values)] for name, values in table.items()]
    return torch.tensor(rows, dtype=torch.float64).T.float().contiguous()


def _number(source: OpenedSource, i: int, column: str, value: Any) -> float:
    try:
        number = math.nan if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or abs(number) > 1e30:
        raise _refused(source, i, column, "a finite number", value)
    return number


def _indicator(source: OpenedSource, i: int, column: str, value: Any) -> float:
    number = INDICATORS.get(str(value).strip().lower())
    if number is None:
        raise _refused(source, i, column, "0 or 1", value)
    return number


def _labels(source: OpenedSource, i: int, column: str, value: Any) -> set[str]:
    """Return the labels of an image; an empty list and an empty text are none."""
    if isinstance(value, str):
        value = value.split(SEPARATOR)
    elif isinstance(value, int) and not isinstance(value, bool):
        value = [value]
    if not isinstance(value, list) or any(isinstance(item, bool) or not isinstance(item, str | int) for item in value):
        raise _refused(source, i, column, f"a list of names or numbers, or text with {SEPARATOR!r} between them", value)
    return {name for item in value if (name := str(item).strip())}


def _refused(source: OpenedSource, i: int, column: str, expected: str, value: Any) -> UserError:
    return UserError(f"{source.name(i)}: column {column!r}: expected {expected}, got {shown(value)}")


def _sorted(names: Iterable[str]) -> list[str]:
    names = list(names)
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)
