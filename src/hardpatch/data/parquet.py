"""Images in Parquet files, in the layout of Hugging Face."""

import json
import os
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hardpatch.data.decode import decode, named_errors
from hardpatch.data.reading import RGB, Pixels, Reading, UndecodableImage
from hardpatch.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMN = "label"
RESIDENT_BYTES = 2 << 30
"""Files that together are smaller than this are kept in memory; of larger ones row groups are read on demand."""
CACHED_ROW_GROUPS = 8
"""Row groups in memory when they are read on demand."""


class ParquetSource:
    """Images of Parquet files; see :class:`~hardpatch.data.sources.Source`.

    The column `image` is a struct {bytes, path} or plain binary, the column `label` an integer or absent. Small files
    are kept in memory as they are stored, undecoded. Of large ones only the last few row groups are, so that random
    access reads a row group for an image: write them with small row groups, as ``hardpatch shrink`` does.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = [str(path) for path in paths]
        self._metadata: list[Any] = []  # the footer of each file, None until it is read
        self._groups: list[tuple[int, int]] = []  # (file, row group within it)
        self._columns: list[str] = []
        rows: list[int] = []
        labels: list[npt.NDArray[np.int64]] = []
        names: tuple[str, ...] | None = None
        for k, path in enumerate(self._paths):
            with _open_file(path) as file:
                self._metadata.append(file.metadata)
                self._columns.append(_image_column(path, file.schema_arrow))
                for group in range(file.num_row_groups):
                    self._groups.append((k, group))
                    rows.append(file.metadata.row_group(group).num_rows)
                labels.append(_read_labels(file))
                names = names or _class_names(file.schema_arrow)
        self._ends = np.cumsum(rows, dtype=np.int64)
        self._labels = np.concatenate(labels)
        if not len(self):
            raise UserError(f"{self._paths[0]}: the Parquet file has no rows")
        self.skipped: tuple[str, ...] = ()
        largest = int(self._labels.max())
        if largest < 0:
            self.classes = None
        else:
            self.classes = names if names and largest < len(names) else tuple(str(k) for k in range(largest + 1))
        self._cache: OrderedDict[int, tuple[pa.Array, pa.Array | None]] = OrderedDict()
        self._resident = sum(os.path.getsize(path) for path in self._paths) < RESIDENT_BYTES
        if self._resident:  # read before workers are forked, so that they share the memory
            for group in range(len(self._groups)):
                self._row_group(group)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the file contents: a spawned worker reads them again instead of getting them through a pipe."""
        return {**self.__dict__, "_cache": OrderedDict(), "_metadata": [None] * len(self._paths)}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def name(self, i: int) -> str:
        """Return the Parquet file, the row and the stored path of image i."""
        group, row = self._locate(i)
        file, group_in_file = self._groups[group]
        first = group - group_in_file
        row_in_file = i - (int(self._ends[first - 1]) if first else 0)
        paths = self._row_group(group)[1]
        path = None if paths is None else paths[row].as_py()
        return f"{self._paths[file]} row {row_in_file}" + (f" ({path})" if path else "")

    def image(self, i: int, reading: Reading = RGB) -> Pixels:
        """Decode image i to [H, W, channels]."""
        data = self.encoded(i)
        with named_errors(self.name, i):
            return decode(data, reading)

    def encoded(self, i: int) -> bytes:
        """Return the bytes stored for image i."""
        group, row = self._locate(i)
        data: bytes | None = self._row_group(group)[0][row].as_py()
        if data is None:
            raise UndecodableImage(f"{self.name(i)}: no bytes in the image column")
        return data

    def label(self, i: int) -> int | None:
        """Return the index of the class of image i; None if it has no label."""
        label = int(self._labels[i])
        return None if label < 0 else label

    def _locate(self, i: int) -> tuple[int, int]:
        """Row group of image i, and the row within it."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        group = int(np.searchsorted(self._ends, i, side="right"))
        return group, i - (int(self._ends[group - 1]) if group else 0)

    def _row_group(self, group: int) -> "tuple[pa.Array, pa.Array | None]":
        """Read the bytes and, if there are any, the stored paths of one row group."""
        cached = self._cache.get(group)
        if cached is not None:
            with suppress(KeyError):  # another thread has just dropped it
                self._cache.move_to_end(group)
            return cached
        file, group_in_file = self._groups[group]
        # The file is opened each time, so that no handle crosses a fork. Its footer is kept: reading that costs more
        # than reading a row group.
        with _open_file(self._paths[file], self._metadata[file]) as table:
            self._metadata[file] = table.metadata
            column = table.read_row_group(group_in_file, columns=[self._columns[file]], use_threads=False)
        array = column.column(0).combine_chunks()
        is_struct = hasattr(array, "field")
        data = array.field("bytes") if is_struct else array
        has_path = is_struct and array.type.get_field_index("path") >= 0
        cached = (data, array.field("path") if has_path else None)
        self._cache[group] = cached
        if not self._resident and len(self._cache) > CACHED_ROW_GROUPS:
            self._cache.popitem(last=False)
        return cached


def _open_file(path: str, metadata: Any = None) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, metadata=metadata)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from None


def _image_column(path: str, schema: "pa.Schema") -> str:
    """Name of the column that holds the images."""
    import pyarrow.types as kind

    for name in IMAGE_COLUMNS:
        if name in schema.names:
            dtype = schema.field(name).type
            if kind.is_struct(dtype) and dtype.get_field_index("bytes") >= 0:
                dtype = dtype.field("bytes").type
            if kind.is_binary(dtype) or kind.is_large_binary(dtype):
                return name
    columns = ", ".join(f"{field.name}: {field.type}" for field in schema)
    raise UserError(
        f"{path}: no image column; expected `image` as binary or as a struct {{bytes, path}}, the columns are {columns}"
    )


def _read_labels(file: Any) -> npt.NDArray[np.int64]:
    """Read the labels, int64 [rows], -1 where there is none; a label column of another type is ignored."""
    import pyarrow as pa
    import pyarrow.types as kind

    schema = file.schema_arrow
    if LABEL_COLUMN not in schema.names or not kind.is_integer(schema.field(LABEL_COLUMN).type):
        return np.full(file.metadata.num_rows, -1, dtype=np.int64)
    column = file.read(columns=[LABEL_COLUMN]).column(0)
    return column.cast(pa.int64()).fill_null(-1).to_numpy()


def _class_names(schema: "pa.Schema") -> tuple[str, ...] | None:
    """Class names in the Hugging Face metadata, if there are any."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[LABEL_COLUMN]["names"])
    except (KeyError, TypeError, ValueError):
        return None
