"""Rotten and hostile Parquet files: whatever is wrong with one is an error of its name, and no column takes all memory.

A few kilobytes can stand for terabytes: a dictionary of one long value, and a run of a million indices of it. The sizes
in the footer do not tell. So a column is read in batches of few rows, and what comes out is counted.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hardpatch.data.network import was_read
from hardpatch.data.reading import UndecodableImage
from hardpatch.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

GROUP_BYTES, EXPANSION = 512 << 20, 16
"""Bytes that a column of a row group may take in memory, or this many times the size of its file if that is more."""
BATCH_ROWS = 128
"""Rows that are unpacked before what came out is counted."""
FEW_ROWS = 10_000_000
"""Rows that a file may have, however small it is; a larger one may have one for each byte."""


def open_parquet(path: str, metadata: Any = None) -> Any:
    """Open a file as a `pyarrow.parquet.ParquetFile`, given its footer if that was read before.

    Raises:
        UserError: if it cannot be read, or its footer contradicts itself.
    """
    import pyarrow.parquet as pq

    with readable(path, "not a readable Parquet file"):
        file = pq.ParquetFile(path, metadata=metadata, page_checksum_verification=True)
        if metadata is None:
            _check_rows(path, file.metadata)
        return file


@contextmanager
def readable(path: str, what: str) -> Iterator[None]:
    """Turn whatever pyarrow raises about a file, which is nearly anything on broken bytes, into a UserError."""
    try:
        yield
    except (UserError, UndecodableImage):
        raise
    except Exception as error:
        raise UserError(f"{path}: {what} ({reason_of(error)}); copy it again") from None


def reason_of(error: Exception) -> str:
    """Return the first line of an error, or its kind if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def column_batches(file: Any, column: str, group: int, path: str) -> "list[pa.Array]":
    """Read a column of a row group, few rows at a time.

    Args:
        file: the open file.
        column: name of the column.
        group: number of the row group.
        path: of the file.

    Raises:
        UndecodableImage: if the column cannot be read, or takes more memory than images do.
    """
    try:
        limit = max(GROUP_BYTES, EXPANSION * os.path.getsize(path))
        footer = file.metadata.row_group(group)
        chunks = [footer.column(k) for k in range(footer.num_columns)]
        of_column = [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] == column]
        if sum(max(0, chunk.total_uncompressed_size) for chunk in of_column) > limit:
            raise UndecodableImage(_too_large(group, limit))
        arrays: list[pa.Array] = []
        rows = size = 0
        for batch in file.iter_batches(BATCH_ROWS, [group], [column], use_threads=False):
            arrays.append(batch.column(0))
            rows, size = rows + len(batch), size + batch.nbytes
            if size > limit or rows > footer.num_rows:
                break
    except UndecodableImage:
        raise
    except Exception as error:  # pyarrow raises nearly anything on broken bytes
        raise UndecodableImage(f"cannot read row group {group} ({reason_of(error)})") from None
    was_read(sum(max(0, chunk.total_compressed_size) for chunk in of_column))
    if size > limit:
        raise UndecodableImage(_too_large(group, limit))
    if rows != footer.num_rows:
        raise UndecodableImage(f"cannot read row group {group} (it has other rows than the footer says)")
    return arrays


def null_count(footer: Any, group: int, column: str) -> int | None:
    """Return how many rows of a row group have no value in a column, None if the footer does not say so.

    Asked of large files only: pyarrow ends the process where one part of the statistics is damaged.
    """
    try:
        columns = footer.row_group(group)
        chunks = [columns.column(k) for k in range(columns.num_columns)]
        found = next((chunk.statistics for chunk in chunks if chunk.path_in_schema == column), None)
        return None if found is None or not found.has_null_count else int(found.null_count)
    except Exception:  # pyarrow raises nearly anything on broken bytes
        return None


def _too_large(group: int, limit: int) -> str:
    return (
        f"row group {group} takes more than {limit:,} bytes unpacked; write the file with smaller row groups "
        "(pyarrow's row_group_size)"
    )


def _check_rows(path: str, footer: Any) -> None:
    """Refuse a number of rows that cannot be: lists of a number for each row would take all memory."""
    rows = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
    if min(rows, default=0) < 0 or sum(rows) != footer.num_rows:
        raise UserError(f"{path}: not a readable Parquet file (its footer contradicts itself); copy it again")
    most = max(FEW_ROWS, os.path.getsize(path))
    if footer.num_rows > most:
        raise UserError(
            f"{path}: expected at most {most:,} rows in a Parquet file of this size, its footer says "
            f"{footer.num_rows:,}; split it into several files"
        )


def text_of(value: bytes) -> str:
    """Return stored text, which need not be UTF-8, as Python keeps the names of files."""
    return value.decode("utf-8", "surrogateescape")


def column_values(path: str, file: Any, column: str) -> "pa.ChunkedArray":
    """Read a column of numbers, truth values or text from all rows of an open file; text as categories of bytes.

    Raises:
        UserError: if it cannot be read, or its different texts take more than :data:`GROUP_BYTES`.
    """
    import pyarrow as pa
    import pyarrow.types as kind

    with readable(path, f"cannot read column {column!r}"):
        parts: list[pa.Array] = []
        text = size = 0
        for batch in file.iter_batches(BATCH_ROWS, columns=[column], use_threads=False):
            part = batch.column(0)
            if kind.is_dictionary(part.type):
                part = part.dictionary_decode()
            if not kind.is_primitive(part.type) and not kind.is_null(part.type):
                part = part.cast(pa.binary()).dictionary_encode()
                text += part.dictionary.nbytes
            parts.append(part)
            size += len(part)
            if text > GROUP_BYTES or size > file.metadata.num_rows:
                break
        if text > GROUP_BYTES:
            raise UserError(f"{path}: column {column!r}: the labels take more than {GROUP_BYTES:,} bytes")
        if size != file.metadata.num_rows:
            raise UserError(f"{path}: cannot read column {column!r} (it has other rows than the footer says)")
        if not parts:
            return file.schema_arrow.empty_table().column(column)
        return pa.chunked_array(parts).unify_dictionaries()
