"""Where images come from: folders, single files, Parquet in the Hugging Face layout, the embedded demo set.

A source is a numbered list of images that are decoded on demand. Sources are picklable and keep no file open, so that
forked and spawned workers alike can use them.
"""

import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from hardpatch.data.decode import UndecodableImage, decode
from hardpatch.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMN = "label"
# Parquet files that together stay below this are held in memory; above it, row groups are read as they are needed.
RESIDENT_BYTES = 2 << 30
ROW_GROUPS_HELD = 8


class Source(Protocol):
    """A numbered list of images with or without labels."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names, in the order of the labels; None where the images are unlabeled."""

    @property
    def skipped(self) -> tuple[str, ...]:
        """Files that were passed over when the source was listed, because their extension is not an image's."""

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """What a log line calls image i: the file's path, or the Parquet file, its row and the stored path."""

    def image(self, i: int, channels: int) -> npt.NDArray[np.uint8]:
        """uint8 [H, W, channels]; raises UndecodableImage with the name and the reason."""

    def encoded(self, i: int) -> bytes | None:
        """The file that image i is stored as, None where its pixels are; raises UndecodableImage likewise."""

    def label(self, i: int) -> int | None:
        """Index into classes; None for an unlabeled image."""


def open_source(path: str | os.PathLike[str] | None) -> Source:
    """Open a folder or tree of images, one image, a Parquet file, a folder of *.parquet, or the embedded set.

    In a tree whose every image lies in a subfolder, the top-level subfolders are the classes; otherwise the images are
    unlabeled. Hidden files and folders are not looked at. None stands for "demo:train"; "demo:test" is its other half.
    Raises UserError if there is nothing to read.
    """
    if path is None:
        path = "demo:train"
    if isinstance(path, str) and path.startswith("demo:"):
        from hardpatch.data.demo import demo_source

        return demo_source(path.removeprefix("demo:"))
    place = Path(path)
    if place.is_dir():
        return _open_folder(place)
    if not place.exists():
        raise UserError(f"{place}: no such file or folder; expected images, a Parquet file, demo:train or demo:test")
    if place.suffix.lower() == ".parquet":
        return ParquetSource([place])
    if not place.name.lower().endswith(EXTENSIONS):
        raise UserError(f"{place}: expected an image ({_extensions()}), a .parquet file or a folder of them")
    return FileSource(str(place.parent), [place.name])


def open_images(paths: Sequence[str | os.PathLike[str]]) -> Source:
    """Open several paths, each as `open_source` takes it, as one source; unlabeled unless there is only one."""
    if not paths:
        raise UserError("no images given; expected files, folders, Parquet files, demo:train or demo:test")
    sources = [open_source(path) for path in paths]
    return sources[0] if len(sources) == 1 else ConcatSource(sources)


class FileSource:
    """Image files below one root, given by their paths relative to it."""

    def __init__(
        self, root: str, paths: Sequence[str], skipped: Sequence[str] = (), classes: Sequence[str] | None = None
    ) -> None:
        encoded = [os.fsencode(path) for path in paths]
        # One bytes object and one array: a million str take ten times the room, and forked workers would copy them
        # page by page, since looking at a Python object writes its reference count.
        self._root = root
        self._paths = b"".join(encoded)
        self._ends = np.cumsum([len(path) for path in encoded], dtype=np.int64)
        self.skipped = tuple(skipped)
        self.classes = None if classes is None else tuple(classes)
        self._labels: npt.NDArray[np.int32] | None = None
        if classes is not None:
            number = {name: k for k, name in enumerate(classes)}
            self._labels = np.array([number[path.split(os.sep, 1)[0]] for path in paths], dtype=np.int32)

    def __len__(self) -> int:
        return len(self._ends)

    def name(self, i: int) -> str:
        start = self._ends[i - 1] if i else 0
        return os.path.join(self._root, os.fsdecode(self._paths[start : self._ends[i]]))

    def image(self, i: int, channels: int) -> npt.NDArray[np.uint8]:
        return _decoded(self, i, channels)

    def encoded(self, i: int) -> bytes:
        name = self.name(i)
        try:
            with open(name, "rb", buffering=0) as file:
                return file.read()
        except OSError as error:
            raise UndecodableImage(f"{name}: {error.strerror or error}") from None

    def label(self, i: int) -> int | None:
        return None if self._labels is None else int(self._labels[i])


def _decoded(source: "FileSource | ParquetSource", i: int, channels: int) -> npt.NDArray[np.uint8]:
    """What the bytes of image i are; a complaint begins with its name."""
    data = source.encoded(i)
    try:
        return decode(data, channels)
    except UndecodableImage as error:
        raise UndecodableImage(f"{source.name(i)}: {error}") from None


def _open_folder(folder: Path) -> Source:
    paths: list[str] = []
    skipped: list[str] = []
    try:
        for path in _walk(folder):
            (paths if path.lower().endswith(EXTENSIONS) else skipped).append(path)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot list this folder ({error.strerror})") from None
    if not paths:
        tables = sorted(folder / path for path in skipped if os.sep not in path and path.lower().endswith(".parquet"))
        if tables:
            return ParquetSource(tables)
        raise UserError(f"{folder}: no images in this folder; looked for {_extensions()} at any depth, or *.parquet")
    paths.sort()
    skipped.sort()
    labeled = all(os.sep in path for path in paths)
    classes = sorted({path.split(os.sep, 1)[0] for path in paths}) if labeled else None
    return FileSource(str(folder), paths, [str(folder / path) for path in skipped], classes)


def _walk(folder: Path) -> Iterator[str]:
    """The files below the folder as relative paths; links are followed, but not to a folder that they lie in."""
    stack: list[tuple[str, tuple[str, ...]]] = [("", (os.path.realpath(folder),))]
    while stack:
        prefix, above = stack.pop()
        with os.scandir(os.path.join(folder, prefix)) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    real = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(above[-1], entry.name)
                    if real not in above:
                        stack.append((os.path.join(prefix, entry.name), (*above, real)))
                elif entry.is_file():
                    yield os.path.join(prefix, entry.name)


def _extensions() -> str:
    return ", ".join(EXTENSIONS)


class ParquetSource:
    """Parquet files in the Hugging Face layout: `image` is {bytes, path} or plain binary, `label` an integer or absent.

    Small files are held in memory as they are stored (undecoded); of large ones the last few row groups are, so that
    there random access costs the reading of a row group: best written with small ones, as ``hardpatch shrink`` does.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = [str(path) for path in paths]
        self._metadata: list[Any] = []  # the files' footers, None before they are read
        self._groups: list[tuple[int, int]] = []  # (file, row group within it)
        self._columns: list[str] = []
        rows: list[int] = []
        labels: list[npt.NDArray[np.int64]] = []
        names: tuple[str, ...] | None = None
        for k, path in enumerate(self._paths):
            with _open_parquet(path) as file:
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
        top = int(self._labels.max())
        if top < 0:
            self.classes = None
        else:
            self.classes = names if names and top < len(names) else tuple(str(k) for k in range(top + 1))
        self._held: OrderedDict[int, tuple[pa.Array, pa.Array | None]] = OrderedDict()
        self._resident = sum(os.path.getsize(path) for path in self._paths) < RESIDENT_BYTES
        if self._resident:  # now, so that forked workers share it
            for group in range(len(self._groups)):
                self._row_group(group)

    def __getstate__(self) -> dict[str, Any]:
        """A spawned worker reads the files again instead of having them sent through a pipe."""
        return {**self.__dict__, "_held": OrderedDict(), "_metadata": [None] * len(self._paths)}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def name(self, i: int) -> str:
        group, row = self._locate(i)
        file, group_in_file = self._groups[group]
        first = group - group_in_file
        in_file = i - (int(self._ends[first - 1]) if first else 0)
        stored = self._row_group(group)[1]
        path = None if stored is None else stored[row].as_py()
        return f"{self._paths[file]} row {in_file}" + (f" ({path})" if path else "")

    def image(self, i: int, channels: int) -> npt.NDArray[np.uint8]:
        return _decoded(self, i, channels)

    def encoded(self, i: int) -> bytes:
        group, row = self._locate(i)
        data: bytes | None = self._row_group(group)[0][row].as_py()
        if data is None:
            raise UndecodableImage(f"{self.name(i)}: no bytes in the image column")
        return data

    def label(self, i: int) -> int | None:
        label = int(self._labels[i])
        return None if label < 0 else label

    def _locate(self, i: int) -> tuple[int, int]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        group = int(np.searchsorted(self._ends, i, side="right"))
        return group, i - (int(self._ends[group - 1]) if group else 0)

    def _row_group(self, group: int) -> "tuple[pa.Array, pa.Array | None]":
        """The bytes and, where there are any, the stored paths of one row group."""
        held = self._held.get(group)
        if held is not None:
            with suppress(KeyError):  # another thread has just let go of it
                self._held.move_to_end(group)
            return held
        file, group_in_file = self._groups[group]
        # Opened anew each time, so that no handle crosses a fork; but reading the footer costs more than a row group.
        with _open_parquet(self._paths[file], self._metadata[file]) as table:
            self._metadata[file] = table.metadata
            column = table.read_row_group(group_in_file, columns=[self._columns[file]], use_threads=False)
        array = column.column(0).combine_chunks()
        is_struct = hasattr(array, "field")
        data = array.field("bytes") if is_struct else array
        has_path = is_struct and array.type.get_field_index("path") >= 0
        held = (data, array.field("path") if has_path else None)
        self._held[group] = held
        if not self._resident and len(self._held) > ROW_GROUPS_HELD:
            self._held.popitem(last=False)
        return held


def _open_parquet(path: str, metadata: Any = None) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, metadata=metadata)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from None


def _image_column(path: str, schema: "pa.Schema") -> str:
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
    """int64 [rows], -1 where there is no label; a label column that is not of integers is left alone."""
    import pyarrow as pa
    import pyarrow.types as kind

    schema = file.schema_arrow
    if LABEL_COLUMN not in schema.names or not kind.is_integer(schema.field(LABEL_COLUMN).type):
        return np.full(file.metadata.num_rows, -1, dtype=np.int64)
    column = file.read(columns=[LABEL_COLUMN]).column(0)
    return column.cast(pa.int64()).fill_null(-1).to_numpy()


def _class_names(schema: "pa.Schema") -> tuple[str, ...] | None:
    """What the Hugging Face metadata calls the labels, if there is any."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[LABEL_COLUMN]["names"])
    except (KeyError, TypeError, ValueError):
        return None


class ConcatSource:
    """Several sources, one after the other, without labels: their classes need not mean the same."""

    def __init__(self, parts: Sequence[Source]) -> None:
        self.classes: tuple[str, ...] | None = None
        self._parts = list(parts)
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        self.skipped = tuple(name for part in parts for name in part.skipped)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def name(self, i: int) -> str:
        part, k = self._locate(i)
        return part.name(k)

    def image(self, i: int, channels: int) -> npt.NDArray[np.uint8]:
        part, k = self._locate(i)
        return part.image(k, channels)

    def encoded(self, i: int) -> bytes | None:
        part, k = self._locate(i)
        return part.encoded(k)

    def label(self, i: int) -> int | None:
        return None

    def _locate(self, i: int) -> tuple[Source, int]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        part = int(np.searchsorted(self._ends, i, side="right"))
        return self._parts[part], i - (int(self._ends[part - 1]) if part else 0)


class Subset:
    """Some of the images of another source, in the order of `indices`."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self.source, self.indices = source, indices
        self.classes, self.skipped = source.classes, source.skipped

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, i: int) -> str:
        return self.source.name(self.indices[i])

    def image(self, i: int, channels: int) -> npt.NDArray[np.uint8]:
        return self.source.image(self.indices[i], channels)

    def encoded(self, i: int) -> bytes | None:
        return self.source.encoded(self.indices[i])

    def label(self, i: int) -> int | None:
        return self.source.label(self.indices[i])
