"""Sources of images: folders, files, Parquet files, lists, archives, the embedded demo set, and combinations of them.

A source is a numbered list of images that are decoded on demand. Sources are picklable and keep no file open, so they
work in forked and in spawned workers.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from typing import Protocol

import numpy as np

from hardpatch.data.columns import AUTO, Columns
from hardpatch.data.header import Header
from hardpatch.data.left_out import LeftOut, joined
from hardpatch.data.opening import open_path, unused_columns
from hardpatch.data.parquet import RowGroupsOnDisk
from hardpatch.data.reading import RGB, Pixels, Reading
from hardpatch.data.splits import Role
from hardpatch.errors import UserError

AnyPath = str | os.PathLike[str]
Paths = AnyPath | Sequence[AnyPath]
"""One path of images, or several."""


class Source(Protocol):
    """A numbered list of images with or without labels."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names, in the order of the labels; None if the images are unlabeled."""

    @property
    def skipped(self) -> tuple[LeftOut, ...]:
        """Entries that were left out when the source was listed, by reason."""

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """Name of image i in messages: the path of the file, or the Parquet file, the row and the stored path."""

    def image(self, i: int, reading: Reading = RGB) -> Pixels:
        """Decode image i to [H, W, channels]. Raises UndecodableImage with the name and the reason."""

    def encoded(self, i: int) -> bytes | None:
        """Read the encoded file of image i; None if the source holds pixels. Raises UndecodableImage, too."""

    def label(self, i: int) -> int | None:
        """Index of the class of image i; None if it is unlabeled."""


class OpenedSource(Source, Protocol):
    """A source as :func:`open_source` returns it, with what is known about its origin."""

    @property
    def notes(self) -> Sequence[str]:
        """Decisions that were taken when the source was opened, such as that for a split."""

    @property
    def unlabeled(self) -> str:
        """Why the images have no labels, if there is something that could have been labels; else empty."""

    def files(self) -> Iterator[str]:
        """Yield the files that the images are read from; none for the embedded set."""


def open_source(path: Paths | None, columns: Columns = AUTO, role: Role = "train") -> OpenedSource:
    """Open a folder, a file, a pattern, several of them, or the embedded demo set.

    - a folder or tree of images. If every image lies in a subfolder, the top-level subfolders are the classes;
      otherwise the images are unlabeled. Hidden files and folders are ignored.
    - a Parquet file, or a folder that holds some and no images;
    - a .csv or .tsv with the path and the label of an image in each line;
    - a .zip or .tar, or a folder that holds some and no images;
    - one image;
    - a pattern such as ``shards/train-*.tar`` or ``photos/*/*.jpg``, if no file has that name;
    - ``demo:train``, which is also None, or ``demo:test``, the other half of the embedded set.

    Args:
        path: one of these, or a list of them, whose classes are brought together by name.
        columns: names of the columns of tables.
        role: what the images are for; it decides which files of a folder are read if their names tell splits apart.

    Raises:
        UserError: if there is nothing to read, or something that cannot be told apart.
    """
    if isinstance(path, Sequence) and not isinstance(path, str):
        return open_images(path, columns, role)
    return open_images(["demo:train" if path is None else path], columns, role)


def open_images(paths: Sequence[AnyPath], columns: Columns = AUTO, role: Role = "train") -> OpenedSource:
    """Open several paths, each as :func:`open_source` does, as one source."""
    if not paths:
        raise UserError("no images given; expected files, folders, Parquet files, demo:train or demo:test")
    sources = [open_path(path, columns, role) for path in paths]
    unused = set.intersection(*(set(unused_columns(source, columns)) for source in sources))
    opened = sources[0] if len(sources) == 1 else ConcatSource(sources, [os.fspath(path) for path in paths])
    if unused:
        opened = copy(opened)  # the embedded set is one object for all
        opened.notes = [*opened.notes, f"{', '.join(sorted(unused))} not used, as there are no columns"]
    return opened


class ConcatSource:
    """Several sources, one after the other. Classes are brought together by name if all sources have some."""

    def __init__(self, sources: Sequence[OpenedSource], paths: Sequence[str]) -> None:
        self.skipped = joined(entry for source in sources for entry in source.skipped)
        self._sources = list(sources)
        self._ends = np.cumsum([len(source) for source in sources], dtype=np.int64)
        self.notes = list(dict.fromkeys(note for source in sources for note in source.notes))
        self.classes, self.unlabeled = _classes(sources, paths)
        self._labels: list[dict[int, int]] = []
        if self.classes is not None:
            number = {name: k for k, name in enumerate(self.classes)}
            self._labels = [{k: number[name] for k, name in enumerate(source.classes or ())} for source in sources]
            self.notes.append(f"classes of {len(sources)} paths brought together by name")

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def parts(self) -> Sequence[OpenedSource]:
        """The sources, in order."""
        return self._sources

    def name(self, i: int) -> str:
        """Name of image i in its source."""
        source, k = self._locate(i)
        return self._sources[source].name(k)

    def image(self, i: int, reading: Reading = RGB) -> Pixels:
        """Decode image i to [H, W, channels]."""
        source, k = self._locate(i)
        return self._sources[source].image(k, reading)

    def encoded(self, i: int) -> bytes | None:
        """Read the encoded file of image i; None if its source holds pixels."""
        source, k = self._locate(i)
        return self._sources[source].encoded(k)

    def label(self, i: int) -> int | None:
        """Index of the class of image i; None if it is unlabeled."""
        if not self._labels:
            return None
        source, k = self._locate(i)
        label = self._sources[source].label(k)
        return None if label is None else self._labels[source][label]

    def files(self) -> Iterator[str]:
        """Yield the files of all sources."""
        for source in self._sources:
            yield from source.files()

    @property
    def row_groups(self) -> RowGroupsOnDisk | None:
        """Row groups of all sources; None if one has none."""
        found: list[RowGroupsOnDisk | None] = [getattr(source, "row_groups", None) for source in self._sources]
        parts = [part for part in found if part is not None]
        if len(parts) < len(found):
            return None
        starts = [0, *self._ends[:-1].tolist()]
        ends = np.concatenate([part.ends + start for part, start in zip(parts, starts, strict=True)])
        return RowGroupsOnDisk(ends, any(part.on_disk for part in parts), max(part.most_bytes for part in parts))

    def keep_row_groups(self, count: int) -> None:
        """Keep at least so many row groups of each source in memory."""
        for source in self._sources:
            source.keep_row_groups(count)  # type: ignore[attr-defined]

    def _locate(self, i: int) -> tuple[int, int]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        k = int(np.searchsorted(self._ends, i, side="right"))
        return k, i - (int(self._ends[k - 1]) if k else 0)


def _classes(sources: Sequence[OpenedSource], paths: Sequence[str]) -> tuple[tuple[str, ...] | None, str]:
    """Return the classes of several sources, or None and why there are none."""
    labeled = [source.classes for source in sources if source.classes is not None]
    if not labeled:
        return None, next((source.unlabeled for source in sources if source.unlabeled), "")
    if len(labeled) < len(sources):
        k = next(k for k, source in enumerate(sources) if source.classes is None)
        return None, f"{paths[k]}: no labels" + (f" ({sources[k].unlabeled})" if sources[k].unlabeled else "")
    if all(classes == labeled[0] for classes in labeled):
        return labeled[0], ""
    numbers = [all(name.isdecimal() for name in classes) for classes in labeled]
    if len(set(numbers)) > 1:
        one, other = paths[numbers.index(True)], paths[numbers.index(False)]
        return None, f"the classes of {one} are numbers and those of {other} names"
    union = {name for classes in labeled for name in classes}
    return tuple(sorted(union, key=int) if numbers[0] else sorted(union)), ""


def hold_out(source: Source, count: int) -> tuple[Source, Source | None]:
    """Split `count` images off, drawn at random but always the same ones. Returns the others and those, or None for 0.

    Raises:
        UserError: if none would be left.
    """
    if not count:
        return source, None
    if count >= len(source):
        raise UserError(
            f"data.hold_out: expected fewer than the {len(source)} images of --data, got {count}; a tenth is usual"
        )
    order = np.random.default_rng(0).permutation(len(source))
    held, others = np.sort(order[:count]), np.sort(order[count:])
    return Subset(source, others.tolist()), Subset(source, held.tolist())


class Subset:
    """Images of another source at `indices`, in this order."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self.source, self.indices = source, indices
        self.classes, self.skipped = source.classes, source.skipped

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def header(self) -> Callable[[int], Header] | None:
        """Function that reads the header of image i, if the other source has one."""
        own = getattr(self.source, "header", None)
        return None if own is None else lambda i: own(self.indices[i])

    @property
    def row_groups(self) -> RowGroupsOnDisk | None:
        """Row groups of the other source, without the images that are left out; None if it has none."""
        own: RowGroupsOnDisk | None = getattr(self.source, "row_groups", None)
        indices = np.asarray(self.indices)
        if own is None or (np.diff(indices) < 0).any():
            return None
        ends = np.unique(np.searchsorted(indices, own.ends))
        return own._replace(ends=ends[ends > 0])

    def keep_row_groups(self, count: int) -> None:
        """Keep at least so many row groups in memory."""
        self.source.keep_row_groups(count)  # type: ignore[attr-defined]

    def name(self, i: int) -> str:
        """Name of image i in the other source."""
        return self.source.name(self.indices[i])

    def image(self, i: int, reading: Reading = RGB) -> Pixels:
        """Decode image i to [H, W, channels]."""
        return self.source.image(self.indices[i], reading)

    def encoded(self, i: int) -> bytes | None:
        """Read the encoded file of image i; None if the other source holds pixels."""
        return self.source.encoded(self.indices[i])

    def label(self, i: int) -> int | None:
        """Index of the class of image i; None if it is unlabeled."""
        return self.source.label(self.indices[i])
