"""Columns of a Parquet file: which one holds the images, which one the labels, and the labels of its rows."""

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hardpatch.data.classes import Labels, from_numbers, from_texts, no_labels, unique_names
from hardpatch.data.columns import find_bytes, find_label, find_path
from hardpatch.data.names import class_name
from hardpatch.data.parquet_file import column_values, readable, text_of
from hardpatch.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

ACCEPTED = "whole numbers, text, booleans, or categories of these"


class FileLabels(NamedTuple):
    """Labels of the rows of a file."""

    labels: Labels
    column: str | None
    reason: str = ""
    """why there are none, if there are columns that could have been labels"""
    note: str = ""
    """what was decided about them"""


def image_column(path: str, schema: "pa.Schema", wanted: str | None) -> str:
    """Return the name of the column that holds the images, as bytes or as paths.

    Raises:
        UserError: if there is none, if several could be it, or if the wanted one is of another type.
    """
    kinds = {field.name: _holds(field.type) for field in schema}
    if wanted is not None:
        if wanted not in kinds:
            raise UserError(f"--image_column: {path} has no column {wanted!r}; the columns are {_listed(schema)}")
        if kinds[wanted] is None:
            raise UserError(
                f"--image_column: {path}: expected bytes, a struct {{bytes, path}} or paths in column {wanted!r}, "
                f"got {schema.field(wanted).type}"
            )
        return wanted
    found = find_bytes([name for name, kind in kinds.items() if kind == "bytes"])
    if found.name is None and not found.reason:
        found = find_path([name for name, kind in kinds.items() if kind == "path"])
    if found.name is None:
        expected = "expected `image` as binary, as a struct {bytes, path} or as a path"
        raise UserError(f"{path}: {found.reason or f'no image column; {expected}'}; the columns are {_listed(schema)}")
    return found.name


def stored_as(schema: "pa.Schema", column: str) -> str | None:
    """Return what the footer calls the bytes in a column of images; None if the column holds paths only."""
    import pyarrow.types as kind

    dtype = schema.field(column).type
    if _holds(dtype) != "bytes":
        return None
    return f"{column}.bytes" if kind.is_struct(dtype) else column


def file_labels(path: str, file: Any, wanted: str | None, image: str) -> FileLabels:
    """Read the labels of all rows of an open Parquet file.

    Args:
        path: of the file, for messages.
        file: the `pyarrow.parquet.ParquetFile`.
        wanted: name of the column; None finds it.
        image: column of the images, which is no label.

    Raises:
        UserError: if the wanted column is missing or holds something else. Without a wanted one the reason is returned.
    """
    schema, rows = file.schema_arrow, file.metadata.num_rows
    if wanted is None:
        found = find_label([name for name in schema.names if name != image])
        if found.name is None:
            return FileLabels(no_labels(rows), None, f"{path}: {found.reason}" if found.reason else "")
        name = found.name
    elif wanted in schema.names:
        name = wanted
    else:
        raise UserError(f"--label_column: {path} has no column {wanted!r}; the columns are {_listed(schema)}")
    with readable(path, f"cannot read column {name!r}"):
        result = _labels(path, file, name)
    if isinstance(result, str):
        reason = f"{path}: column {name!r} {result}; expected {ACCEPTED}; the columns are {_listed(schema)}"
        if wanted is not None:
            raise UserError(f"--label_column: {reason}")
        return FileLabels(no_labels(rows), name, reason)
    labels, note = result
    return FileLabels(labels, name, note=f"{path}: {note}" if note else "")


def _holds(dtype: "pa.DataType") -> str | None:
    """Return "bytes" or "path" for a column that may hold images, None for another."""
    import pyarrow.types as kind

    def is_bytes(part: "pa.DataType") -> bool:
        return kind.is_binary(part) or kind.is_large_binary(part) or kind.is_binary_view(part)

    if kind.is_struct(dtype):
        fields = {dtype.field(k).name: dtype.field(k).type for k in range(dtype.num_fields)}
        if "bytes" in fields and (is_bytes(fields["bytes"]) or kind.is_null(fields["bytes"])):
            return "bytes"
        return "path" if "path" in fields and is_text(fields["path"]) else None
    if is_bytes(dtype):
        return "bytes"
    return "path" if is_text(dtype) else None


def is_text(dtype: "pa.DataType") -> bool:
    """Return whether a type is text, or categories of text."""
    import pyarrow.types as kind

    if kind.is_dictionary(dtype):
        dtype = dtype.value_type
    return kind.is_string(dtype) or kind.is_large_string(dtype) or kind.is_string_view(dtype)


def _labels(path: str, file: Any, name: str) -> tuple[Labels, str] | str:
    """Return the labels in a column and what was decided about them, or what the column holds that is no label."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.types as kind

    dtype, declared = file.schema_arrow.field(name).type, _declared(file.schema_arrow, name)
    if kind.is_dictionary(dtype):
        dtype = dtype.value_type
    if kind.is_null(dtype):
        return no_labels(file.metadata.num_rows), "all labels are null"
    if not (is_text(dtype) or kind.is_boolean(dtype) or kind.is_integer(dtype) or kind.is_floating(dtype)):
        several = kind.is_list(dtype) or kind.is_large_list(dtype)
        return f"is of type {dtype}" + (" (several labels an image: finetune --task multilabel)" if several else "")
    column = column_values(path, file, name)
    if is_text(dtype) or kind.is_boolean(dtype):
        if kind.is_boolean(dtype):
            column = pc.if_else(column, b"True", b"False").dictionary_encode()
        encoded = column.combine_chunks()
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        return from_texts(codes, [text_of(value) for value in encoded.dictionary.to_pylist()]), ""
    present = ~column.is_null(nan_is_null=True).to_numpy()
    numbers = column.cast(pa.float64()) if kind.is_floating(dtype) else column
    values: npt.NDArray[Any] = numbers.fill_null(0).to_numpy()
    if kind.is_floating(dtype):
        values = np.where(present, values, 0)
        odd = values[~(np.isfinite(values) & (np.floor(values) == values) & (np.abs(values) < 2**63))]
        if len(odd):
            return f"is of type {dtype} and holds {odd[0]:g}, which is no class"
        values = values.astype(np.int64)
    if declared is None:
        return from_numbers(values, present), ""
    present = present & (values >= 0)
    largest = int(values[present].max()) if present.any() else -1
    if largest >= len(declared):
        return from_numbers(values, present), f"{len(declared)} class names and a label {largest}: named by number"
    return Labels(np.where(present, values, -1).astype(np.int32), unique_names(declared), "declared"), ""


def _declared(schema: "pa.Schema", column: str) -> tuple[str, ...] | None:
    """Class names of a column in the Hugging Face metadata, if there are any."""
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    plain = isinstance(names, list) and all(isinstance(name, str | int | float) for name in names)
    return tuple(class_name(str(name)) for name in names) if plain else None


def _listed(schema: "pa.Schema") -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)
