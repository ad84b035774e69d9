"""Images in .zip and .tar archives, read in place; labels by folders, or by files beside the images (WebDataset)."""

import os
import zlib
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hardpatch.data.archive_index import DEFLATED, MEMBER, Index, is_hidden, read_index, suffix
from hardpatch.data.columns import AUTO, Columns
from hardpatch.data.decode import decode, named_errors
from hardpatch.data.folders import without_images
from hardpatch.data.formats import EXTENSIONS
from hardpatch.data.left_out import HIDDEN, NOT_IMAGES, LeftOut, joined, left_out
from hardpatch.data.limits import MAX_FILE_BYTES
from hardpatch.data.names import PackedNames, class_name
from hardpatch.data.reading import RGB, Pixels, Reading, UndecodableImage
from hardpatch.data.sidecars import SIDECARS, Fields, Sidecars, sidecar_labels
from hardpatch.data.splits import Role, of_one_split
from hardpatch.errors import UserError

HEADER = 30
"""Bytes of a zip entry's header before its name."""


class Tree(NamedTuple):
    """Which entries of an archive are read, and the folder below which they lie."""

    kept: list[int]
    root: str
    """ends with a slash unless it is empty"""
    notes: list[str]
    left_out: tuple[LeftOut, ...]


class ArchiveSource:
    """Images in archives; see :class:`~hardpatch.data.sources.Source`.

    An index is read once. It says where the bytes of every image are, so that each can be read alone; no archive stays
    open. Labels come from a `.cls` or `.json` beside each image (``0001.jpg``, ``0001.cls``). Without these, the first
    folder of each image is its class, below the folders that all images share.

    Args:
        paths: the archives.
        columns: `label` is the key of the labels in the `.json` files.
        role: which split to take if the archives hold folders of several; None takes all.
        skipped: what was left out already.
        notes: what was decided already.

    Raises:
        UserError: if an archive cannot be read in place, or holds no images.
    """

    def __init__(
        self,
        paths: Sequence[str],
        columns: Columns = AUTO,
        role: Role | None = "train",
        skipped: tuple[LeftOut, ...] = (),
        notes: Sequence[str] = (),
    ) -> None:
        self._archives = list(paths)
        indices = [read_index(path, lambda name: suffix(name) in SIDECARS) for path in paths]
        chosen = [_images(index) for index in indices]
        sidecars = [Sidecars(index.texts) for index in indices]
        names: list[str] = []
        texts: list[Fields] = []
        for index, part, beside in zip(indices, chosen, sidecars, strict=True):
            names += [index.names[k] for k in part]
            texts += [beside.of(index.names[k]) for k in part]
        tree = _below(names, role, paths[0] if len(paths) == 1 else os.path.dirname(paths[0]))
        owner = np.repeat(np.arange(len(paths), dtype=np.int32), [len(part) for part in chosen])[tree.kept]
        names = [names[k] for k in tree.kept]
        labels = sidecar_labels([texts[k] for k in tree.kept], columns.label, paths[0])
        entries = [*skipped, *tree.left_out]
        for path, index, beside in zip(paths, indices, sidecars, strict=True):
            entries += _others(path, index, beside)
        self.skipped = joined(entries)
        if not names:
            kinds = "; ".join(str(entry) for entry in self.skipped) or "nothing"
            raise UserError(f"{paths[0]}: no images in this archive; expected {', '.join(EXTENSIONS)}, got {kinds}")
        self.notes, self.unlabeled = [*notes, *tree.notes], ""
        self._labels: npt.NDArray[np.int32] | None = None
        self.classes: tuple[str, ...] | None = None
        if isinstance(labels, str):
            self.unlabeled = labels
        elif labels is not None:
            self.notes.append(f"labels from {labels.where}")
            self.classes, self._labels = labels.labels.names, labels.labels.codes
        else:
            self._label_by_folder([name.removeprefix(tree.root) for name in map(_plain, names)])
            others = [_plain(name) for index in indices for name in _not_images(index)]
            others = [name.removeprefix(tree.root) for name in others if name.startswith(tree.root)]
            self.notes += without_images(self.classes, others, "/") if self.classes else []
        self._names, self._owner = PackedNames(names), owner
        rows = _table(indices, chosen)[tree.kept]
        self._offsets, self._sizes, self._lengths, self._methods, self._checksums = rows.T.copy()

    def _label_by_folder(self, paths: list[str]) -> None:
        alone = next((path for path in paths if "/" not in path), None)
        folders = [class_name(path.split("/", 1)[0]) for path in paths]
        if alone is None:
            self.classes = tuple(sorted(set(folders)))
            number = {name: k for k, name in enumerate(self.classes)}
            self._labels = np.array([number[folder] for folder in folders], dtype=np.int32)
        elif any("/" in path for path in paths):
            self.unlabeled = f"{alone} lies beside the folders of the classes"

    def __len__(self) -> int:
        return len(self._names)

    def name(self, i: int) -> str:
        """Return the path of the archive and, below it, of image i."""
        return f"{self._archives[self._owner[i]]}/{self._names[i]}"

    def image(self, i: int, reading: Reading = RGB) -> Pixels:
        """Decode image i to [H, W, channels]."""
        data = self.encoded(i)
        with named_errors(self.name, i):
            return decode(data, reading)

    def encoded(self, i: int) -> bytes:
        """Read the file of image i from its archive."""
        offset, size, length, method = (
            int(part[i]) for part in (self._offsets, self._sizes, self._lengths, self._methods)
        )
        with named_errors(self.name, i):
            if max(size, length) > MAX_FILE_BYTES:
                raise UndecodableImage(f"takes {max(size, length):,} bytes; expected at most {MAX_FILE_BYTES:,}")
            try:
                with open(self._archives[self._owner[i]], "rb", buffering=0) as file:
                    if method != MEMBER:
                        header = os.pread(file.fileno(), HEADER, offset)
                        if not header.startswith(b"PK\3\4") or len(header) < HEADER:
                            raise UndecodableImage("no header of an entry where the archive's index says")
                        offset += HEADER + int.from_bytes(header[26:28], "little")
                        offset += int.from_bytes(header[28:30], "little")
                    data = os.pread(file.fileno(), size, offset)
            except OSError as error:
                raise UndecodableImage(error.strerror or str(error)) from None
            return self._unpacked(data, size, length, method, int(self._checksums[i]))

    def _unpacked(self, data: bytes, size: int, length: int, method: int, checksum: int) -> bytes:
        """Return the bytes of a file from those that are stored, whole or not at all."""
        if len(data) != size:
            raise UndecodableImage("cut off: the archive ends within this file")
        if method == DEFLATED:
            try:
                data = zlib.decompressobj(-15).decompress(data, length + 1)
            except zlib.error as error:
                raise UndecodableImage(f"damaged in the archive ({error})") from None
        if len(data) != length or (method != MEMBER and zlib.crc32(data) != checksum):
            raise UndecodableImage("damaged in the archive (its checksum differs)")
        return data

    def label(self, i: int) -> int | None:
        """Return the index of the class of image i; None if it has none."""
        label = -1 if self._labels is None else int(self._labels[i])
        return None if label < 0 else label

    def files(self) -> Iterator[str]:
        """Yield the archives, and below them their images, as they may hold several splits."""
        yield from self._archives
        yield from (self.name(i) for i in range(len(self)))


def _images(index: Index) -> list[int]:
    """Positions of the images of an archive, sorted by name; of entries with one name the last."""
    last = {name: k for k, name in enumerate(index.names) if name.lower().endswith(EXTENSIONS) and not is_hidden(name)}
    return [last[name] for name in sorted(last)]


def _not_images(index: Index) -> Iterator[str]:
    """Yield the names of the files of an archive that are no images, and of those that cannot be read."""
    others = (name for name in index.names if not name.lower().endswith(EXTENSIONS))
    yield from (name for name in (*others, *chain(*index.left_out.values())) if not is_hidden(name))


def _others(path: str, index: Index, sidecars: Sidecars) -> list[LeftOut]:
    """Count what is neither an image nor a label of one."""
    hidden: list[str] = []
    images: list[str] = []
    others: list[str] = []
    for name in index.names:
        if is_hidden(name):
            hidden.append(name)
        elif name.lower().endswith(EXTENSIONS):
            images.append(name)
        elif not sidecars.used(name):
            others.append(name)
    entries = [*_counted(HIDDEN, path, hidden), *_counted(NOT_IMAGES, path, others)]
    for reason, names in index.left_out.items():
        entries += _counted(reason, path, names)
    replaced = len(images) - len(set(images))
    if replaced:
        entries.append(LeftOut("files that a later one of the same name replaces", replaced, f"in {path}"))
    return entries


def _counted(reason: str, archive: str, names: Sequence[str]) -> tuple[LeftOut, ...]:
    return left_out(reason, [f"{archive}/{name}" for name in names], kinds=reason == NOT_IMAGES)


def _plain(name: str) -> str:
    """Return a name without a leading ``./`` or ``/``."""
    while name.startswith(("./", "/")):
        name = name.removeprefix("/").removeprefix("./")
    return name


def _below(names: Sequence[str], role: Role | None, where: str) -> Tree:
    """Go down into the folder that holds all images, and into that of one split."""
    kept, root, notes, skipped = list(range(len(names))), "", list[str](), list[LeftOut]()
    plain = [_plain(name) for name in names]
    while kept:
        below = [plain[k].removeprefix(root) for k in kept]
        tops = {path.split("/", 1)[0] for path in below}
        if all(path.count("/") >= 2 for path in below) and len(tops) == 1:
            root += f"{tops.pop()}/"
            continue
        split = None if role is None else of_one_split(below, "/", role, where, [f"{where}/{names[k]}" for k in kept])
        if split is None:
            break
        skipped += split.left_out
        notes.append(split.note)
        kept = [kept[k] for k in split.kept]
        if not split.folder:
            break
        root += f"{split.folder}/"
    if root:
        notes.append(f"images below {root}")
    return Tree(kept, root, notes, tuple(skipped))


def _table(indices: Sequence[Index], chosen: Sequence[list[int]]) -> npt.NDArray[np.int64]:
    """Offsets, sizes, lengths, methods and checksums of the images, int64 [n, 5]."""
    tables = []
    for index, part in zip(indices, chosen, strict=True):
        columns = (index.offsets, index.sizes, index.lengths, index.methods, index.checksums)
        tables.append(np.stack([np.array(column, dtype=np.int64)[part] for column in columns], axis=1))
    return np.concatenate(tables)
