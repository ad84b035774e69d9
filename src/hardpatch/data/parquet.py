"""Images in Parquet files, in the layout of Hugging Face."""

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hardpatch.data.classes import Codes, Labels, brought_together
from hardpatch.data.columns import AUTO, IMAGES, Columns
from hardpatch.data.decode import decode, named_errors
from hardpatch.data.folders import read_file
from hardpatch.data.left_out import LeftOut
from hardpatch.data.parquet_columns import file_labels, image_column, is_text, stored_as
from hardpatch.data.parquet_file import column_batches, null_count, open_parquet, readable, text_of
from hardpatch.data.reading import RGB, Pixels, Reading, UndecodableImage
from hardpatch.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

RESIDENT_BYTES = 2 << 30
"""Files that together are smaller than this are kept in memory; of larger ones row groups are read on demand."""
CACHED_ROW_GROUPS, CACHED_BYTES = 8, 2 << 30
"""Row groups in memory when they are read on demand, at most, and bytes that more than one may take."""


class RowGroupsOnDisk(NamedTuple):
    """Row groups of the images of a source."""

    ends: npt.NDArray[np.int64]
    """last image of each, plus one"""
    on_disk: bool
    """read again and again, since they are not all kept in memory"""
    most_bytes: int
    """of a row group"""


class ParquetSource:
    """Images of Parquet files; see :class:`~hardpatch.data.sources.Source`.

    The images are in a column of bytes, of structs {bytes, path}, or of paths relative to the file. The labels are in a
    column of whole numbers, text or booleans, or absent. Small files are kept in memory as they are stored, undecoded.
    Of large ones only the last few row groups are, so that random access reads a row group for an image: write them
    with small row groups, as ``hardpatch shrink`` does.

    The images of a row group that cannot be read are undecodable.

    Raises UserError if a file cannot be read or its columns cannot be told apart.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        columns: Columns = AUTO,
        skipped: tuple[LeftOut, ...] = (),
        notes: Sequence[str] = (),
    ) -> None:
        self._paths = [str(path) for path in paths]
        self._metadata: list[Any] = []  # the footer of each file, None until it is read
        self._groups: list[tuple[int, int]] = []  # (file, row group within it)
        self._columns: list[str] = []
        self._stored: list[str | None] = []  # what the footer calls the bytes of the images, None for a column of paths
        self.skipped, self.notes, self.unlabeled = skipped, list(notes), ""
        self._most_bytes, self._kept_groups = 0, CACHED_ROW_GROUPS
        rows: list[int] = []
        labels: list[Labels] = []
        for k, path in enumerate(self._paths):
            with readable(path, "not a readable Parquet file"), open_parquet(path) as file:
                self._metadata.append(file.metadata)
                self._columns.append(image_column(path, file.schema_arrow, columns.image))
                self._stored.append(stored_as(file.schema_arrow, self._columns[-1]))
                for group in range(file.num_row_groups):
                    self._groups.append((k, group))
                    rows.append(file.metadata.row_group(group).num_rows)
                    self._most_bytes = max(self._most_bytes, file.metadata.row_group(group).total_byte_size)
                found = file_labels(path, file, columns.label, self._columns[-1])
            labels.append(found.labels)
            self.unlabeled = self.unlabeled or found.reason
            self.notes += [found.note] if found.note else []
            self.notes += [] if self._columns[-1] in IMAGES else [f"images in column {self._columns[-1]!r}"]
            if found.column not in (None, "label") and not found.reason:
                self.notes.append(f"labels in column {found.column!r}")
        self.notes = list(dict.fromkeys(self.notes))
        self._ends = np.cumsum(rows, dtype=np.int64)
        if not len(self):
            raise UserError(f"{self._paths[0]}: the Parquet file has no rows")
        self._set_labels(labels)
        self._cache: OrderedDict[int, _Column] = OrderedDict()
        self._rotten: dict[int, str] = {}  # why a row group cannot be read
        self._bytes = 0  # that were read
        self._resident = sum(os.path.getsize(path) for path in self._paths) < RESIDENT_BYTES
        for group in range(len(self._groups)):  # read before workers are forked, so that they share the memory
            if self._resident:  # until there turns out to be more than in the files
                with suppress(UndecodableImage):  # so are its images, one by one
                    self._row_group(group)

    @property
    def row_groups(self) -> RowGroupsOnDisk:
        """Row groups of all files, in order; those without rows are left out."""
        return RowGroupsOnDisk(np.unique(self._ends[self._ends > 0]), not self._resident, self._most_bytes)

    def keep_row_groups(self, count: int) -> None:
        """Keep at least so many row groups in memory."""
        self._kept_groups = max(self._kept_groups, count)

    def _set_labels(self, parts: Sequence[Labels]) -> None:
        together = brought_together(parts, self._paths)
        if isinstance(together, str):
            self.unlabeled = self.unlabeled or together
        self._labels: Codes | None = None
        self.classes: tuple[str, ...] | None = None
        if not isinstance(together, str) and not self.unlabeled and (together.codes >= 0).any():
            self._labels, self.classes = together.codes, together.names

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the file contents: a spawned worker reads them again instead of getting them through a pipe."""
        return {**self.__dict__, "_cache": OrderedDict(), "_bytes": 0, "_metadata": [None] * len(self._paths)}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def name(self, i: int) -> str:
        """Return the Parquet file, the row and the stored path of image i."""
        group, row = self._locate(i)
        file, group_in_file = self._groups[group]
        first = group - group_in_file
        row_in_file = i - (int(self._ends[first - 1]) if first else 0)
        try:
            path = self._row_group(group).path(row)
        except UndecodableImage:
            path = None
        return f"{self._paths[file]} row {row_in_file}" + (f" ({path})" if path else "")

    def image(self, i: int, reading: Reading = RGB) -> Pixels:
        """Decode image i to [H, W, channels]."""
        data = self.encoded(i)
        with named_errors(self.name, i):
            return decode(data, reading)

    def encoded(self, i: int) -> bytes:
        """Return the bytes stored for image i, or those of the file at its path."""
        group, row = self._locate(i)
        with named_errors(self.name, i):
            column = self._row_group(group)
            data = column.data(row)
            if data is not None:
                return data
            path = column.path(row)
            if not path:
                raise UndecodableImage("no bytes in the image column")
            file = self._beside(group, path)
            if column.stored is not None and not os.path.isfile(file):
                raise UndecodableImage(f"no bytes in the image column, and no file {file}")
            return read_file(file)

    def label(self, i: int) -> int | None:
        """Return the index of the class of image i; None if it has no label."""
        label = -1 if self._labels is None else int(self._labels[i])
        return None if label < 0 else label

    def files(self) -> Iterator[str]:
        """Yield the Parquet files, and the images that they only give the paths of."""
        yield from self._paths
        for group, (file, group_in_file) in enumerate(self._groups):
            if self._stores_all(file, group_in_file):
                continue
            with suppress(UndecodableImage):
                for path in self._row_group(group).paths_alone():
                    yield self._beside(group, path)

    def files_of_images(self) -> Sequence[str]:
        """Return the Parquet files, in the order of their images."""
        return self._paths

    def _stores_all(self, file: int, group: int) -> bool:
        """Return whether the footer says that all images of a row group are in the file; assumed of large files."""
        stored = self._stored[file]
        if stored is None or self._resident:  # the row group itself says so
            return False
        return self._metadata[file] is None or not null_count(self._metadata[file], group, stored)

    def _beside(self, group: int, path: str) -> str:
        """Path of an image that is given relative to its Parquet file."""
        return os.path.join(os.path.dirname(self._paths[self._groups[group][0]]), path)

    def _locate(self, i: int) -> tuple[int, int]:
        """Row group of image i, and the row within it."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        group = int(np.searchsorted(self._ends, i, side="right"))
        return group, i - (int(self._ends[group - 1]) if group else 0)

    def _row_group(self, group: int) -> "_Column":
        """Read the images of one row group. Raises UndecodableImage if the file is damaged there."""
        cached = self._cache.get(group)
        if cached is not None:
            with suppress(KeyError):  # another thread has just dropped it
                self._cache.move_to_end(group)
            return cached
        if group in self._rotten:
            raise UndecodableImage(self._rotten[group])
        file, group_in_file = self._groups[group]
        path = self._paths[file]
        try:
            # The file is opened each time, so that no handle crosses a fork. Its footer is kept: reading that costs
            # more than reading a row group.
            with open_parquet(path, self._metadata[file]) as table:
                self._metadata[file] = table.metadata
                cached = _Column(column_batches(table, self._columns[file], group_in_file, path))
        except (UndecodableImage, UserError) as error:
            reason = str(error).removeprefix(f"{path}: ")
            if getattr(error.__context__, "errno", None) is None:  # a disk may answer the next time
                self._rotten[group] = reason
            raise UndecodableImage(reason) from None
        self._cache[group] = cached
        self._trim(cached.nbytes)
        return cached

    def _trim(self, read: int) -> None:
        """Drop the row groups that were read first, where not all stay in memory, after `read` bytes more."""
        self._bytes += read
        self._resident = self._resident and self._bytes <= RESIDENT_BYTES
        while not self._resident and (
            len(self._cache) > self._kept_groups
            or (len(self._cache) > 1 and sum(column.nbytes for column in [*self._cache.values()]) > CACHED_BYTES)
        ):
            with suppress(KeyError):
                self._cache.popitem(last=False)


class _Column:
    """Images of a row group: bytes, structs {bytes, path}, or paths, in batches of rows as they were read."""

    def __init__(self, batches: "Sequence[pa.Array]") -> None:
        parts = [_bytes_and_paths(batch) for batch in batches]
        self._ends = np.cumsum([len(batch) for batch in batches], dtype=np.int64)
        self.stored = None if not parts or parts[0][0] is None else [stored for stored, _ in parts]
        self._paths = None if not parts or parts[0][1] is None else [paths for _, paths in parts]
        self.rows = int(self._ends[-1]) if len(self._ends) else 0
        self.nbytes = sum(batch.nbytes for batch in batches)

    def data(self, row: int) -> bytes | None:
        """Bytes of the image in a row; None if there are none."""
        value = self._value(self.stored, row)
        return None if value is None else value.to_pybytes()

    def path(self, row: int) -> str | None:
        """Path of the image in a row; None if there is none."""
        value = self._value(self._paths, row)
        return None if value is None else text_of(value.to_pybytes())

    def paths_alone(self) -> Iterator[str]:
        """Yield the paths in rows without bytes."""
        if self._paths is None or (
            self.stored is not None and not any(part is not None and part.null_count for part in self.stored)
        ):
            return
        for row in range(self.rows):
            path = self.path(row)
            if path is not None and self._value(self.stored, row) is None:
                yield path

    def _value(self, arrays: Any, row: int) -> Any:
        if arrays is None:
            return None
        part = int(np.searchsorted(self._ends, row, side="right"))
        value = arrays[part][row - (int(self._ends[part - 1]) if part else 0)]
        return value.as_buffer() if value.is_valid else None


def _bytes_and_paths(array: "pa.Array") -> "tuple[pa.Array | None, pa.Array | None]":
    """Take apart a column of structs {bytes, path}, of bytes, or of paths."""
    import pyarrow as pa
    import pyarrow.types as kind

    if kind.is_struct(array.type):
        names = [array.type.field(k).name for k in range(array.type.num_fields)]
        parts = [array.field(name) if name in names else None for name in ("bytes", "path")]
        return parts[0], parts[1]
    if is_text(array.type):
        return None, array.cast(pa.string())
    return array, None
