"""Images in the chunks of the package litdata, in a folder or an object store; an extra.

Nothing in them is deserialized but bytes, numbers and text: other fields, pickled ones among them, stay as they are
stored. The order of a training is ours, by row groups that are the chunks, so that each chunk is fetched once an epoch
and a run resumes exactly.
"""

import json
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from hardpatch.data.columns import AUTO, Columns, find_bytes
from hardpatch.data.decode import decode, named_errors
from hardpatch.data.left_out import LeftOut
from hardpatch.data.network import was_read
from hardpatch.data.parquet import RowGroupsOnDisk
from hardpatch.data.parquet_file import reason_of
from hardpatch.data.reading import RGB, Pixels, Reading, UndecodableImage
from hardpatch.errors import UserError

STORES = ("s3://", "gs://", "r2://", "azure://", "hf://", "local:")
"""Beginnings of the places that litdata reads from; the last is a folder that is treated as a store."""
READ = ("bytes", "int", "float", "bool", "str", "text")
"""Serializers of litdata that are used; those of other fields give the stored bytes."""
IMAGE_FORMATS = ("bytes", "jpeg", "file", "image")
"""Formats of fields that hold the file of an image."""


def is_litdata(path: str) -> bool:
    """Return whether a path is a place of litdata's: an object store, or a folder with its index."""
    if path.startswith(STORES):
        return True
    file = Path(path, "index.json")
    try:
        return file.is_file() and {"chunks", "config"} <= {*json.loads(file.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError):
        return False


class LitdataSource:
    """Images in litdata's chunks; see :class:`~hardpatch.data.sources.Source`. They have no labels here.

    Args:
        path: a folder, or a place in an object store.
        columns: `image` is the field that holds the files of the images.

    Raises:
        UserError: if litdata is not installed, or the chunks cannot be read or hold no files of images.
    """

    classes: tuple[str, ...] | None = None
    skipped: tuple[LeftOut, ...] = ()

    def __init__(self, path: str, columns: Columns = AUTO) -> None:
        if find_spec("litdata") is None:
            raise UserError(f"{path}: reading this needs the package litdata: pip install 'hardpatch[litdata]'")
        self.path = path
        self._opened: tuple[int, Any] = 0, None
        try:
            dataset = self._dataset()
            self._length = len(dataset)
            first = dataset[0]
            config = dataset.cache._reader.config  # litdata has no public name for it
            ends = [interval.roi_end_idx for interval in config.intervals]
            most = max(chunk["chunk_bytes"] for chunk in config._chunks)
            formats = config.data_format
        except Exception as error:  # of many kinds, from many stores
            raise UserError(f"{path}: litdata cannot read this ({reason_of(error)})") from None
        self._field = _image_field(path, first, formats, columns.image)
        self.notes, self.unlabeled = (
            [f"chunks of litdata, {len(ends)} of them"],
            f"{path}: labels in chunks are not read",
        )
        self.row_groups = RowGroupsOnDisk(np.array(ends, np.int64), path.startswith(STORES), most)

    def _dataset(self) -> Any:
        """Open the chunks, once in each process: litdata has threads, which do not survive a fork."""
        process, dataset = self._opened
        if dataset is None or process != os.getpid():
            import litdata
            from litdata.streaming import serializers

            kept = {name: serializers.BytesSerializer() for name in serializers._SERIALIZERS if name not in READ}
            dataset = litdata.StreamingDataset(self.path, serializers=kept)
            _ = dataset[0:0]  # after any slice, whole chunks are fetched and not single images
            self._opened = os.getpid(), dataset
        return dataset

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is open."""
        return {**self.__dict__, "_opened": (0, None)}

    def __len__(self) -> int:
        return self._length

    def keep_row_groups(self, count: int) -> None:
        """Do nothing: litdata keeps chunks on the disk."""

    def name(self, i: int) -> str:
        """Return the place and the number of image i."""
        return f"{self.path} item {i}"

    def image(self, i: int, reading: Reading = RGB) -> Pixels:
        """Decode image i to [H, W, channels]."""
        data = self.encoded(i)
        with named_errors(self.name, i):
            return decode(data, reading)

    def encoded(self, i: int) -> bytes:
        """Return the file of image i."""
        if not 0 <= i < self._length:
            raise IndexError(i)
        with named_errors(self.name, i):
            try:
                item = self._dataset()[i]
                data = item if self._field is None else item[self._field]
            except Exception as error:
                raise UndecodableImage(f"litdata cannot read it ({reason_of(error)})") from None
            if not isinstance(data, bytes | bytearray | memoryview):
                raise UndecodableImage(f"expected the bytes of a file, got {type(data).__name__}")
            was_read(len(data))
            return bytes(data)

    def label(self, i: int) -> int | None:
        """Return None."""
        return None

    def files(self) -> Iterator[str]:
        """Yield the index and the chunks of a folder; a store is not looked into."""
        if not self.path.startswith(STORES):
            yield from sorted(str(file) for file in Path(self.path).iterdir() if file.is_file())


def _image_field(path: str, item: Any, formats: list[str], wanted: str | None) -> Any:
    """Return the key of the field with the files of images, None if an item is nothing else."""
    if not isinstance(item, dict | list | tuple):
        found: list[Any] = [None] if formats[0] in IMAGE_FORMATS else []
    else:
        keys = [*item] if isinstance(item, dict) else [*range(len(item))]
        found = [key for key, kind in zip(keys, formats, strict=True) if kind in IMAGE_FORMATS]
        if wanted is not None:
            found = [key for key in found if str(key) == wanted]
        elif isinstance(item, dict) and len(found) > 1:
            name = find_bytes(found).name
            found = found if name is None else [name]
    if len(found) != 1:
        raise UserError(
            f"{path}: expected one field with files of images ({', '.join(IMAGE_FORMATS)}), got {len(found)} in fields "
            f"of {', '.join(formats)}; choose one with --image_column, or pack the images with hardpatch shard"
        )
    return found[0]
