"""Images in .zip and .tar archives, read in place; labels by folders, or by files beside the images (WebDataset)."""

import os
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np

from hardpatch.data.archive_folders import Folders, folders_of, plain
from hardpatch.data.archive_index import DEFLATED
from hardpatch.data.classes import Codes, Labels, from_texts
from hardpatch.data.columns import AUTO, Columns
from hardpatch.data.decode import decode, named_errors
from hardpatch.data.folders import without_images
from hardpatch.data.formats import EXTENSIONS
from hardpatch.data.index_file import read_indices
from hardpatch.data.left_out import LeftOut, joined
from hardpatch.data.limits import MAX_FILE_BYTES
from hardpatch.data.names import class_name
from hardpatch.data.network import was_read
from hardpatch.data.reading import RGB, Pixels, Reading, UndecodableImage
from hardpatch.data.sidecars import label_key
from hardpatch.data.splits import Role
from hardpatch.errors import UserError

HEADER = 30
"""Bytes of a zip entry's header before its name."""
LISTED = 100_000
"""Images up to which each one is among the files of a source."""
CLASS_NAME = "class_name"
"""Key of the name of a class whose number is in the `.cls`, as ``hardpatch shard`` writes it."""


class ArchiveSource:
    """Images in archives; see :class:`~hardpatch.data.sources.Source`.

    An index is read once, for tar archives from a file if there is one. It says where the bytes of every image are, so
    that each can be read alone; no archive stays open. Labels come from a `.cls` or `.json` beside each image
    (``0001.jpg``, ``0001.cls``). Without these, the first folder of each image is its class, below the folders that all
    images share.

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
        self._entries, said = read_indices(paths, [] if columns.label is None else [columns.label])
        folders = folders_of(paths, self._entries, role)
        entries = [*skipped, *folders.left_out, *(entry for part in self._entries for entry in part.left_out)]
        self.skipped = joined(entries)
        self._rows = folders.rows
        counts = [len(rows) if rows is not None else len(e) for rows, e in zip(self._rows, self._entries, strict=True)]
        self._ends = [*accumulate(counts)]
        if not len(self):
            kinds = "; ".join(str(entry) for entry in self.skipped) or "nothing"
            raise UserError(f"{paths[0]}: no images in this archive; expected {', '.join(EXTENSIONS)}, got {kinds}")
        self.notes, self.unlabeled = [*notes, *folders.notes, *said], ""
        self._kept = folders.kept
        self._labels: Codes | None = None
        self.classes: tuple[str, ...] | None = None
        used = [(key, self._codes(key)) for key in sorted({key for part in self._entries for key in part.codes})]
        keys = [key for key, (codes, _) in used if (codes >= 0).any()]
        listed = sorted({key for part in self._entries for key in part.keys} - {""})
        key, self.unlabeled = label_key(keys, listed, columns.label, paths[0])
        if key is not None:
            self._label_by_key(key, columns.label is None and CLASS_NAME in keys)
        elif not self.unlabeled:
            self._label_by_folder(folders)

    def _label_by_key(self, key: str, named: bool) -> None:
        """Take the labels beside the images; `named` says that names of numbered classes are beside them, too."""
        labels = from_texts(*self._codes(key))
        self.notes.append(f"labels from {f'the key {key!r} of the .json files' if key else '.cls files'}")
        self._labels, self.classes = labels.codes, labels.names
        if named and not key and labels.kind == "numbers":
            names = names_of_numbers(labels, *self._codes(CLASS_NAME))
            if names is not None:
                self.classes = names
                self.notes.append(f"classes named by the key {CLASS_NAME!r} of the .json files")

    def _label_by_folder(self, folders: Folders) -> None:
        below = {folder: plain(f"{folder}x").removeprefix(folders.root) for folder in folders.kept}
        alone = next((folder for folder in folders.kept if "/" not in below[folder]), None)
        if alone is not None:
            if any("/" in path for path in below.values()):
                name = plain(folders.kept[alone]).removeprefix(folders.root)
                self.unlabeled = f"{name} lies beside the folders of the classes"
            return
        class_of = {folder: class_name(path.split("/", 1)[0]) for folder, path in below.items()}
        self.classes = tuple(sorted(set(class_of.values())))
        number = {name: k for k, name in enumerate(self.classes)}
        parts = []
        for entries, rows in zip(self._entries, self._rows, strict=True):
            codes = np.array([number[class_of[f]] if f in class_of else -1 for f in entries.folders], np.int32)
            parts.append(codes[entries.folder_of if rows is None else entries.folder_of[rows]])
        self._labels = np.concatenate(parts)
        others = [plain(f"{folder}x") for part in self._entries for folder in part.other_folders]
        others = [name.removeprefix(folders.root) for name in others if name.startswith(folders.root)]
        self.notes += without_images(self.classes, others, "/")

    def _codes(self, key: str) -> tuple[Codes, list[str]]:
        """Return the values of a key, as codes of all images and the texts that they stand for."""
        texts: dict[str, int] = {}
        parts = []
        for entries, rows in zip(self._entries, self._rows, strict=True):
            count = len(entries) if rows is None else len(rows)
            codes = entries.codes.get(key)
            if codes is None:
                parts.append(np.full(count, -1, np.int32))
                continue
            known = [texts.setdefault(text, len(texts)) for text in entries.values[key]]
            parts.append(np.array([*known, -1], np.int32)[codes if rows is None else codes[rows]])
        return np.concatenate(parts), [*texts]

    def __len__(self) -> int:
        return self._ends[-1]

    def name(self, i: int) -> str:
        """Return the path of the archive and, below it, of image i."""
        archive, k = self._locate(i)
        return f"{self._archives[archive]}/{self._entries[archive].name(k)}"

    def image(self, i: int, reading: Reading = RGB) -> Pixels:
        """Decode image i to [H, W, channels]."""
        data = self.encoded(i)
        with named_errors(self.name, i):
            return decode(data, reading)

    def encoded(self, i: int) -> bytes:
        """Read the file of image i from its archive."""
        archive, k = self._locate(i)
        entries = self._entries[archive]
        offset, size = int(entries.offsets[k]), int(entries.sizes[k])
        length, method, checksum = entries.zipped[k].tolist() if len(entries.zipped) else (size, None, 0)
        with named_errors(self.name, i):
            if max(size, length) > MAX_FILE_BYTES:
                raise UndecodableImage(f"takes {max(size, length):,} bytes; expected at most {MAX_FILE_BYTES:,}")
            try:
                file = os.open(self._archives[archive], os.O_RDONLY)  # takes a quarter of the time of `open`
                try:
                    if method is not None:
                        offset += _header_bytes(file, offset)
                    data = os.pread(file, size, offset)
                finally:
                    os.close(file)
            except OSError as error:
                raise UndecodableImage(error.strerror or str(error)) from None
            was_read(len(data))
            return _unpacked(data, size, length, method, checksum)

    def label(self, i: int) -> int | None:
        """Return the index of the class of image i; None if it has none."""
        label = -1 if self._labels is None else int(self._labels[i])
        return None if label < 0 else label

    def files(self) -> Iterator[str]:
        """Yield the archives and, as they may hold several splits, their images, or their folders if there are many."""
        yield from self._archives
        if len(self) <= LISTED:
            yield from (self.name(i) for i in range(len(self)))
            return
        for archive, entries in zip(self._archives, self._entries, strict=True):
            yield from (f"{archive}/{folder}" for folder in entries.folders if folder in self._kept)

    def _locate(self, i: int) -> tuple[int, int]:
        """Archive of image i, and its row there."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        archive = bisect_right(self._ends, i)
        k = i - (self._ends[archive - 1] if archive else 0)
        rows = self._rows[archive]
        return archive, k if rows is None else int(rows[k])


def _header_bytes(file: int, offset: int) -> int:
    """Return the length of the header of an entry of a zip."""
    header = os.pread(file, HEADER, offset)
    if not header.startswith(b"PK\3\4") or len(header) < HEADER:
        raise UndecodableImage("no header of an entry where the archive's index says")
    return HEADER + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")


def _unpacked(data: bytes, size: int, length: int, method: int | None, checksum: int) -> bytes:
    """Return the bytes of a file from those that are stored, whole or not at all."""
    if len(data) != size:
        raise UndecodableImage("cut off: the archive ends within this file")
    if method == DEFLATED:
        try:
            data = zlib.decompressobj(-15).decompress(data, length + 1)
        except zlib.error as error:
            raise UndecodableImage(f"damaged in the archive ({error})") from None
    if len(data) != length or (method is not None and zlib.crc32(data) != checksum):
        raise UndecodableImage("damaged in the archive (its checksum differs)")
    return data


def names_of_numbers(labels: Labels, codes: Codes, texts: Sequence[str]) -> tuple[str, ...] | None:
    """Return the name of each class from texts beside the images, if each class has one of its own.

    Args:
        labels: classes that are numbers.
        codes: of the text beside each image, -1 for none.
        texts: those names.
    """
    pairs = np.unique(np.stack([labels.codes, codes], 1)[labels.codes >= 0], axis=0)
    numbers, names = pairs.T
    if (names < 0).any() or len(pairs) != len(labels.names) or len(np.unique(names)) != len(numbers):
        return None
    found = tuple(class_name(texts[name]) for name in names.tolist())
    return found if len({*found}) == len(found) and all(found) else None
