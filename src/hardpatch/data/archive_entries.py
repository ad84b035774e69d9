"""Images of one archive in columns, a few bytes each, so that ten million of them take little memory."""

from array import array
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hardpatch.data.columns import may_be_label
from hardpatch.data.formats import EXTENSIONS
from hardpatch.data.left_out import HIDDEN, NOT_IMAGES, LeftOut, most_frequent
from hardpatch.data.sidecars import SIDECARS, parsed, sidecars_of

NOTES_BYTES = 1 << 20
"""A .cls or .json larger than this is no label of one image."""
TEXT_BYTES = 2 << 30
"""Bytes of different labels together: entries of a few bytes can stand for gigabytes."""
MAX_KEYS = 1000
"""Keys of `.json` files that are remembered, for messages."""
REPLACED = "files that a later one of the same name replaces"
IMAGE_ENDINGS = frozenset(EXTENSIONS)


@dataclass
class Entries:
    """Images of an archive, sorted by name: a row each in all columns."""

    ends: npt.NDArray[np.int64]
    """of the names in `names`"""
    names: npt.NDArray[np.uint8]
    """all names, one after the other"""
    offsets: npt.NDArray[np.int64]
    """of the data in a tar, of the entry's header in a zip"""
    sizes: npt.NDArray[np.uint32]
    """stored bytes; 2^32 - 1 for more than that"""
    folder_of: npt.NDArray[np.int32]
    """index in `folders`"""
    zipped: npt.NDArray[np.uint32]
    """bytes of the file, method and checksum ``[n, 3]``; ``[0, 3]`` for a tar"""
    codes: dict[str, npt.NDArray[np.int32]]
    """by key, index in `values`, -1 for none; the key of `.cls` files is empty"""
    folders: list[str]
    """with a slash at the end, as they stand in the names; empty for none"""
    other_folders: list[str]
    """of files that are no images"""
    values: dict[str, list[str]]
    """texts of labels by key"""
    keys: list[str]
    """keys that occur in `.json` files"""
    asked: list[str]
    """keys whose values were to be kept, whatever their name"""
    left_out: list[LeftOut]
    files: int
    """all files in the archive"""

    def __len__(self) -> int:
        return len(self.offsets)

    def name(self, k: int) -> str:
        """Return the name of image k."""
        start = int(self.ends[k - 1]) if k else 0
        return self.names[start : int(self.ends[k])].tobytes().decode("utf-8", "surrogateescape")


@dataclass
class _Group:
    """Neighbors in an archive that belong together: an image, or several, and the labels beside them."""

    key: str = ""
    rows: list[tuple[int, str]] = field(default_factory=list)
    """number and name of each image"""
    texts: dict[str, bytes] = field(default_factory=dict)


class EntriesBuilder:
    """Collects the files of an archive in their order in it; :meth:`entries` returns the images.

    Labels are read as they come by. Where they lie next to their image, as WebDataset has them, nothing but a code is
    kept of them.

    Args:
        archive: its path, for messages.
        keys: of `.json` files whose values are kept, beside those that may be labels by their names.
    """

    def __init__(self, archive: str, keys: Collection[str] = ()) -> None:
        self.archive, self.files, self._asked = archive, 0, sorted(keys)
        self._offsets, self._sizes, self._folder_of = array("q"), array("I"), array("i")
        self._ends, self._names, self._zipped = array("q"), bytearray(), array("I")
        self._folders: dict[str, int] = {}
        self._other_folders: dict[str, None] = {}
        self._codes: dict[str, array[int]] = {}
        self._values: dict[str, dict[str, int]] = {}
        self._keys: dict[str, None] = {}
        self._left_out: dict[str, tuple[int, str]] = {}
        self._kinds: Counter[str] = Counter()
        self._group = _Group()
        self._far: dict[str, dict[str, bytes]] = {}  # labels that are no neighbors of their image, by group
        self._text_bytes = 0
        self._sorted, self._last = True, ""

    def add(
        self, name: str, offset: int, size: int, read: Callable[[], bytes], zipped: tuple[int, int, int] | None = None
    ) -> None:
        """Add a file; `zipped` is its length, method and checksum in a zip."""
        self.files += 1
        if is_hidden(name):
            self._count(HIDDEN, name)
            return
        slash = name.rfind("/") + 1
        point = name.rfind(".", slash)
        ending = name[point:].lower() if point >= 0 else ""
        if ending in IMAGE_ENDINGS:
            self._begin(name, slash)
            self._group.rows.append((len(self._offsets), name))
            self._add_image(name, slash, offset, size)
            if zipped is not None:
                self._zipped.extend((min(zipped[0], 2**32 - 1), *zipped[1:]))
            return
        self._other_folders[name[:slash]] = None
        if ending in SIDECARS and (size if zipped is None else zipped[0]) <= NOTES_BYTES:
            self._begin(name, slash)
            self._group.texts[name] = read()
        else:
            self._count(NOT_IMAGES, name, ending)

    def leave_out(self, reason: str, name: str) -> None:
        """Note an entry that cannot be read."""
        self._count(reason, name)
        if not is_hidden(name):
            self._other_folders[name[: name.rfind("/") + 1]] = None

    def entries(self) -> Entries:
        """Return the images, sorted by name; of those with one name the last."""
        self._end_group()
        self._add_far_labels()
        n = len(self._offsets)
        zipped = np.frombuffer(self._zipped, np.uint32).reshape(-1, 3)
        columns = [np.frombuffer(part, part.typecode) for part in (self._offsets, self._sizes, self._folder_of)]
        codes = {key: np.frombuffer(self._padded(key, n), np.int32) for key in self._codes}
        ends, names = np.frombuffer(self._ends, np.int64), np.frombuffer(self._names, np.uint8)
        if not self._sorted:
            order, ends, names = _sorted_by_name(ends, names)
            columns = [part[order] for part in columns]
            codes = {key: part[order] for key, part in codes.items()}
            zipped = zipped[order] if len(zipped) else zipped
            if len(order) < n:
                self._left_out[REPLACED] = n - len(order), f"in {self.archive}"
        offsets, sizes, folder_of = columns
        return Entries(
            ends,
            names,
            offsets,
            sizes,
            folder_of,
            zipped,
            codes,
            [*self._folders],
            [*self._other_folders],
            {key: [*values] for key, values in self._values.items()},
            [*self._keys],
            self._asked,
            [*self._reasons()],
            self.files,
        )

    def _add_image(self, name: str, slash: int, offset: int, size: int) -> None:
        self._sorted = self._sorted and (name > self._last or not self._offsets)
        self._last = name
        self._names += name.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._names))
        self._offsets.append(offset)
        self._sizes.append(min(size, 2**32 - 1))
        self._folder_of.append(self._folders.setdefault(name[:slash], len(self._folders)))

    def _begin(self, name: str, slash: int) -> None:
        """Go on with the group of a file: its name up to the first point."""
        point = name.find(".", slash)
        key = name if point < 0 else name[:point]
        if key != self._group.key:
            self._end_group()
            self._group.key = key

    def _end_group(self) -> None:
        group = self._group
        for row, name in group.rows if group.texts else ():
            for text in sidecars_of(name, group.texts):
                self._add_labels(row, text, group.texts[text])
        unused = {name: text for name, text in group.texts.items() if not self._belongs(name, group)}
        if unused:
            self._text_bytes += sum(map(len, unused.values()))
            self._far.setdefault(group.key, {}).update(unused)
            for name in unused:
                self._kinds[_ending(name)] += 0  # in the order of the archive
            self._check_texts()
        self._group = _Group()

    @staticmethod
    def _belongs(text: str, group: _Group) -> bool:
        return any(text in sidecars_of(name, group.texts) for _, name in group.rows)

    def _add_far_labels(self) -> None:
        """Look up the labels that are no neighbors of their image, as in archives of a folder of images and labels."""
        used: set[str] = set()
        for row in range(len(self._offsets) if self._far else 0):
            start = self._ends[row - 1] if row else 0
            name = self._names[start : self._ends[row]].decode("utf-8", "surrogateescape")
            slash = name.rfind("/") + 1
            texts = self._far.get(name[: name.find(".", slash)], {})
            for text in sidecars_of(name, texts):
                used.add(text)
                self._add_labels(row, text, texts[text])
        for texts in self._far.values():
            for name in texts.keys() - used:
                self._count(NOT_IMAGES, name, _ending(name))
        self._far = {}

    def _add_labels(self, row: int, name: str, text: bytes) -> None:
        """Keep the labels in a file that may be such by their key, where the image has none of that key."""
        for key, value in parsed(name, text).items():
            if key not in self._keys and len(self._keys) < MAX_KEYS:
                self._keys[key] = None
            if key and not may_be_label(key) and key not in self._asked:
                continue
            values = self._values.setdefault(key, {})
            if value not in values:
                self._text_bytes += len(value)
                self._check_texts()
            codes = self._padded(key, row)
            code = values.setdefault(value, len(values))
            if len(codes) == row:
                codes.append(code)
            elif codes[row] < 0:
                codes[row] = code

    def _padded(self, key: str, rows: int) -> "array[int]":
        codes = self._codes.setdefault(key, array("i"))
        if len(codes) < rows:
            codes.extend(array("i", [-1]) * (rows - len(codes)))
        return codes

    def _check_texts(self) -> None:
        if self._text_bytes > TEXT_BYTES:
            raise ValueError(f"more than {TEXT_BYTES:,} bytes of labels")

    def _count(self, reason: str, name: str, ending: str = "") -> None:
        count, first = self._left_out.get(reason, (0, f"{self.archive}/{name}"))
        self._left_out[reason] = count + 1, first
        if reason == NOT_IMAGES:
            self._kinds[ending or "no suffix"] += 1

    def _reasons(self) -> list[LeftOut]:
        first = [reason for reason in (HIDDEN, NOT_IMAGES) if reason in self._left_out]
        last = [reason for reason in self._left_out if reason not in (HIDDEN, NOT_IMAGES)]
        kinds = {NOT_IMAGES: most_frequent(self._kinds)}
        return [LeftOut(reason, *self._left_out[reason], kinds.get(reason, "")) for reason in (*first, *last)]


def _sorted_by_name(
    ends: npt.NDArray[np.int64], names: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Return the order of the rows by name, the last of each name alone, and the ends and names in this order."""
    import pyarrow as pa
    import pyarrow.compute as pc

    buffers: list[Any] = [None, pa.py_buffer(np.concatenate([np.zeros(1, np.int64), ends])), pa.py_buffer(names)]
    texts = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(ends), buffers)
    order = pc.array_sort_indices(texts)  # stable
    texts = texts.take(order)
    last = np.ones(len(ends), bool)
    last[:-1] = pc.not_equal(texts[:-1], texts[1:]).to_numpy(zero_copy_only=False)
    texts = texts.filter(pa.array(last))
    _, new_ends, new_names = texts.buffers()
    offsets = np.frombuffer(new_ends, np.int64)[: len(texts) + 1]
    return order.to_numpy()[last].astype(np.int64), offsets[1:], np.frombuffer(new_names, np.uint8)[: offsets[-1]]


def is_hidden(name: str) -> bool:
    """Return whether an entry is one that file managers hide, or macOS's copy of metadata."""
    if not name.startswith(".") and "/." not in name and "__MACOSX" not in name:
        return False
    return any(part == "__MACOSX" or (part.startswith(".") and part not in (".", "..")) for part in name.split("/"))


def _ending(name: str) -> str:
    return name[name.rfind(".") :].lower()
