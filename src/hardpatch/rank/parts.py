"""Parts of a long pass over images: each is a Parquet file, written completely or not at all, so that a pass resumes.

A part holds the rows of :data:`BATCHES` batches. Its borders depend on the batch size alone: what is computed from the
parts is the same to the bit, however often a pass was killed.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from hardpatch.errors import UserError, shown
from hardpatch.files import atomic_path, write_text_atomically

BATCHES = 32
"""Batches in a part."""
SETTINGS = "settings.json"
BAD = b"undecodable"

Columns = Mapping[str, npt.NDArray[Any]]
"""Values of some images by name: one row for each image, of any number of dimensions."""


class Parts:
    """Rows of images in a folder of Parquet files.

    Args:
        folder: of the files; created when the first one is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __len__(self) -> int:
        """Return the number of parts that are there, from the first one on."""
        count = 0
        while self._path(count).is_file():
            count += 1
        return count

    def write(self, columns: Columns, bad: Sequence[str]) -> None:
        """Add a part: the rows of its images, and a line for each of those that could not be decoded."""
        arrays = {name: _arrow(values) for name, values in columns.items()}
        table = pa.table(arrays).replace_schema_metadata({BAD: json.dumps(list(bad))})
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(self._path(len(self))) as partial:
            pq.write_table(table, partial)

    def read(self, names: Sequence[str]) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """Yield some columns, part by part; parts without images are left out."""
        for number in range(len(self)):
            if pq.read_metadata(self._path(number)).num_rows:
                table = pq.read_table(self._path(number), columns=list(names))
                yield {name: _numpy(table[name]) for name in names}

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return one column of all parts."""
        parts: list[npt.NDArray[Any]] = [part[name] for part in self.read([name])]
        return np.concatenate(parts)

    def names(self) -> set[str]:
        """Return the names of the columns; none if there is no image."""
        return {name for number in range(len(self)) for name in pq.read_schema(self._path(number)).names}

    def bad(self) -> list[str]:
        """Return a line for each image that could not be decoded."""
        metadata = (pq.read_schema(self._path(number)).metadata[BAD] for number in range(len(self)))
        return [line for text in metadata for line in json.loads(text)]

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.parquet"


def _arrow(values: npt.NDArray[Any]) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    width = int(np.prod(values.shape[1:]))
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width)


def _numpy(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    array = column.combine_chunks()
    if not pa.types.is_fixed_size_list(array.type):
        return array.to_numpy(zero_copy_only=False)
    return array.flatten().to_numpy().reshape(-1, array.type.list_size)


def check_settings(folder: Path, settings: Mapping[str, Any], finished: str) -> None:
    """Begin a pass in ``folder``, or make sure that it is the one which was begun there.

    Args:
        folder: of the results.
        settings: plain values that the rows depend on, kept in :data:`SETTINGS`.
        finished: name of the file that is there when all is done.

    Raises:
        UserError: if the folder holds something else, a finished pass, or one that was begun with other settings.
    """
    path, again = folder / SETTINGS, "choose another --out"
    if (folder / finished).exists():
        raise UserError(f"--out: expected a folder without a result, {folder} has a {finished}; {again}, or remove it")
    if path.is_file():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        for name, value in json.loads(json.dumps(settings)).items():
            if earlier.get(name) != value:
                raise UserError(
                    f"--out: {folder} was begun with {name} {shown(earlier.get(name))}, and this is "
                    f"{shown(value)}; {again}, or remove it"
                )
        return
    others = sorted(entry.name for entry in folder.iterdir() if not _own(entry.name)) if folder.is_dir() else []
    if others:
        raise UserError(f"--out: expected a new or empty folder, {folder} holds {others[0]}; {again}")
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, json.dumps(settings, indent=2) + "\n")


def _own(name: str) -> bool:
    """Return whether an entry of a folder is the lock, or a file that was being written."""
    return name == "run.lock" or ".partial" in name
