"""Images whose bands are files of their own, as satellites deliver them: ``T32_B02.tif``, ``T32_B03.tif``, ..."""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from hardpatch.data.crop import resize
from hardpatch.data.decode import named_errors
from hardpatch.data.header import Header
from hardpatch.data.limits import MAX_PIXELS
from hardpatch.data.pages import PageSource
from hardpatch.data.reading import RGB, Pixels, Reading, UndecodableImage
from hardpatch.data.sources import OpenedSource
from hardpatch.data.survey import header_of
from hardpatch.errors import UserError


class BandSource:
    """Images of one channel of another source, put together; see :class:`~hardpatch.data.sources.Source`.

    Each pattern, as ``*_B02.tif``, has one ``*``. Files for which it stands for the same text are one image, whose
    channels are in the order of the patterns. Bands of another size are resized to that of the first.

    Raises UserError if a pattern has no file, or an image lacks a band.
    """

    def __init__(self, source: OpenedSource, patterns: Sequence[str], max_pixels: int = MAX_PIXELS) -> None:
        self.source, self.patterns, self.classes = source, tuple(patterns), source.classes
        self._single = Reading(1, max_pixels=max_pixels)
        self.skipped, self.unlabeled = source.skipped, source.unlabeled
        self.notes = [*source.notes, f"{len(patterns)} bands each, of {len(source)} files"]
        found = [_matches(source, pattern) for pattern in patterns]
        for pattern, files in zip(patterns, found, strict=True):
            if not files:
                raise UserError(f"data.bands: no image matches {pattern}; the first is {source.name(0)}")
        names = sorted(set().union(*found))
        for pattern, files in zip(patterns, found, strict=True):
            missing = [name for name in names if name not in files]
            if missing:
                raise UserError(
                    f"data.bands: {len(missing)} of {len(names)} images lack {pattern}; the first is {missing[0]}"
                )
        self._files = np.array([[files[name] for files in found] for name in names], np.int64)

    def __len__(self) -> int:
        return len(self._files)

    def name(self, i: int) -> str:
        """Name of the file of the first band."""
        return self.source.name(int(self._files[i, 0]))

    def image(self, i: int, reading: Reading = RGB) -> Pixels:
        """Decode all bands of image i to [H, W, channels]."""
        bands: list[Pixels] = []
        chosen = self._files[i] if isinstance(reading.channels, int) else self._files[i, list(reading.channels)]
        for file in chosen.tolist():
            band = self.source.image(file, reading.with_channels(1))
            bands.append(resize(band, bands[0].shape[:2]) if bands else band)
        if len(bands) != reading.number:
            with named_errors(self.name, i):
                raise UndecodableImage(f"{len(bands)} bands; expected {reading.number} channels")
        return np.concatenate(bands, axis=2)

    def header(self, i: int) -> Header:
        """Return the header of the first band, with the number of bands."""
        return header_of(self.source, int(self._files[i, 0]), self._single)._replace(channels=len(self.patterns))

    def files(self) -> Iterator[str]:
        """Yield the files."""
        return self.source.files()

    def encoded(self, i: int) -> None:
        """Return None: an image has several files."""
        return

    def label(self, i: int) -> int | None:
        """Index of the class of image i; None if it is unlabeled."""
        return self.source.label(int(self._files[i, 0]))


def _matches(source: OpenedSource, pattern: str) -> dict[str, int]:
    """Return the images that match a pattern, by what its ``*`` stands for."""
    if pattern.count("*") != 1:
        raise UserError(f"data.bands: expected one * in each pattern, as in *_B02.tif, got {pattern}")
    before, after = pattern.split("*")
    # what stands for * may hold folders
    expression = re.compile(f"(.*/)?{re.escape(before)}(.*){re.escape(after)}", re.DOTALL)
    found = {}
    for i in range(len(source)):
        match = expression.fullmatch(source.name(i))
        if match:
            found[(match.group(1) or "") + match.group(2)] = i
    return found


def refuse_bands(reading: Reading) -> None:
    """Refuse weights of images of several files, for a task whose images are one file each.

    Raises:
        UserError: names the bands.
    """
    if reading.bands:
        raise UserError(
            f"RUN: was trained on a file for each band ({', '.join(reading.bands)}), and images with objects or label "
            "maps are one file each: write their bands into one TIFF, and pre-train on such files"
        )


def as_read(source: OpenedSource, reading: Reading) -> OpenedSource:
    """Return the images that a reading makes of the files of a source: bands put together, or pages apart."""
    if reading.bands:
        return BandSource(source, reading.bands, reading.max_pixels)
    return PageSource(source, reading.max_pixels) if reading.pages == "all" else source
