"""Each page of stacks, and each frame of animations, as an image of its own."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from hardpatch.data.decode import decode, named_errors
from hardpatch.data.header import Header
from hardpatch.data.memory import run_in_threads
from hardpatch.data.reading import RGB, Pixels, Reading
from hardpatch.data.sources import OpenedSource
from hardpatch.data.survey import header_of


class PageSource:
    """The pages of the images of another source, in order; see :class:`~hardpatch.data.sources.Source`.

    The headers of all files are read once. A page has the label of its file.
    """

    def __init__(self, source: OpenedSource, max_pixels: int = RGB.max_pixels) -> None:
        self.source, self.classes, self.skipped = source, source.classes, source.skipped
        self.notes, self.unlabeled = [*source.notes, f"the pages of {len(source)} files"], source.unlabeled
        self._headers_by = replace(RGB, max_pixels=max_pixels)
        pages = np.ones(len(source), np.int64)

        def count(i: int) -> None:
            pages[i] = header_of(source, i, self._headers_by).pages

        run_in_threads(count, range(len(source)), {})
        self._ends = np.cumsum(pages)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def name(self, i: int) -> str:
        """Name of the file, and the page counted from 1."""
        k, page = self._locate(i)
        return f"{self.source.name(k)} page {page + 1}"

    def image(self, i: int, reading: Reading = RGB) -> Pixels:
        """Decode page i to [H, W, channels]."""
        k, page = self._locate(i)
        data = self.source.encoded(k)
        if data is None:
            return self.source.image(k, reading)
        with named_errors(self.name, i):
            return decode(data, reading, page)

    def header(self, i: int) -> Header:
        """Return the header of the file, as one page."""
        return header_of(self.source, self._locate(i)[0], self._headers_by)._replace(pages=1)

    def files(self) -> Iterator[str]:
        """Yield the files."""
        return self.source.files()

    def encoded(self, i: int) -> None:
        """Return None: a page is no file."""
        return

    def label(self, i: int) -> int | None:
        """Index of the class of the file; None if it is unlabeled."""
        return self.source.label(self._locate(i)[0])

    def _locate(self, i: int) -> tuple[int, int]:
        """File and page of image i."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        k = int(np.searchsorted(self._ends, i, side="right"))
        return k, i - (int(self._ends[k - 1]) if k else 0)
