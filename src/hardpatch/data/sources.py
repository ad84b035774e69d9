"""Sources of images: folders, single files, Parquet files, the embedded demo set, and combinations of them.

A source is a numbered list of images that are decoded on demand. Sources are picklable and keep no file open, so they
work in forked and in spawned workers.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from hardpatch.data.folders import FileSource, PassedBy, class_names, list_images
from hardpatch.data.formats import EXTENSIONS
from hardpatch.data.parquet import ParquetSource
from hardpatch.data.reading import RGB, Pixels, Reading
from hardpatch.errors import UserError

log = logging.getLogger("hardpatch")


class Source(Protocol):
    """A numbered list of images with or without labels."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names, in the order of the labels; None if the images are unlabeled."""

    @property
    def skipped(self) -> tuple[str, ...]:
        """Files that were skipped when the source was listed, because of their extension."""

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """Name of image i in messages: the path of the file, or the Parquet file, the row and the stored path."""

    def image(self, i: int, reading: Reading = RGB) -> Pixels:
        """Decode image i to [H, W, channels]. Raises UndecodableImage with the name and the reason."""

    def encoded(self, i: int) -> bytes | None:
        """Read the encoded file of image i; None if the source holds pixels. Raises UndecodableImage, too."""

    def label(self, i: int) -> int | None:
        """Index of the class of image i; None if it is unlabeled."""


def open_source(path: str | os.PathLike[str] | None) -> Source:
    """Open a folder or tree of images, one image, a Parquet file, a folder of *.parquet, or the embedded demo set.

    If every image of a tree lies in a subfolder, the top-level subfolders are the classes; otherwise the images are
    unlabeled. Hidden files and folders are ignored. None is "demo:train"; "demo:test" is the other half of that set.

    Raises UserError if there is nothing to read.
    """
    if path is None:
        path = "demo:train"
    if isinstance(path, str) and path.startswith("demo:"):
        from hardpatch.data.demo import demo_source

        return demo_source(path.removeprefix("demo:"))
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; expected images, a Parquet file, demo:train or demo:test")
    if path.suffix.lower() == ".parquet":
        return ParquetSource([path])
    if not path.name.lower().endswith(EXTENSIONS):
        raise UserError(f"{path}: expected an image ({', '.join(EXTENSIONS)}), a .parquet file or a folder of them")
    return FileSource(str(path.parent), [path.name])


def open_images(paths: Sequence[str | os.PathLike[str]]) -> Source:
    """Open several paths, each as `open_source` does, as one source. It is unlabeled unless there is only one path."""
    if not paths:
        raise UserError("no images given; expected files, folders, Parquet files, demo:train or demo:test")
    sources = [open_source(path) for path in paths]
    return sources[0] if len(sources) == 1 else ConcatSource(sources)


def _open_folder(folder: Path) -> Source:
    passed = PassedBy()
    paths, skipped = list_images(folder, passed)
    dangling = passed.dangling_links(folder)
    tables = [folder / path for path in skipped if os.sep not in path and path.lower().endswith(".parquet")]
    if dangling and (paths or tables):
        log.warning("%s: left out: %s", folder, dangling)
    if paths:
        return FileSource(str(folder), paths, [str(folder / path) for path in skipped], class_names(paths))
    if tables:
        return ParquetSource(tables)
    extensions = ", ".join(EXTENSIONS)
    hint = f"; {dangling}" if dangling else ""
    raise UserError(f"{folder}: no images in this folder; expected {extensions} at any depth, or *.parquet{hint}")


class ConcatSource:
    """Several sources, one after the other, without labels: their classes may have different meanings."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.classes: tuple[str, ...] | None = None
        self.skipped = tuple(name for source in sources for name in source.skipped)
        self._sources = list(sources)
        self._ends = np.cumsum([len(source) for source in sources], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def name(self, i: int) -> str:
        """Name of image i in its source."""
        source, k = self._locate(i)
        return source.name(k)

    def image(self, i: int, reading: Reading = RGB) -> Pixels:
        """Decode image i to [H, W, channels]."""
        source, k = self._locate(i)
        return source.image(k, reading)

    def encoded(self, i: int) -> bytes | None:
        """Read the encoded file of image i; None if its source holds pixels."""
        source, k = self._locate(i)
        return source.encoded(k)

    def label(self, i: int) -> int | None:
        """Return None: the images are unlabeled."""
        return None

    def _locate(self, i: int) -> tuple[Source, int]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        k = int(np.searchsorted(self._ends, i, side="right"))
        return self._sources[k], i - (int(self._ends[k - 1]) if k else 0)


class Subset:
    """Images of another source at `indices`, in this order."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self.source, self.indices = source, indices
        self.classes, self.skipped = source.classes, source.skipped

    def __len__(self) -> int:
        return len(self.indices)

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
