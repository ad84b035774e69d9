"""One pass over all images of a set, in worker processes: what each file is, and the values of its pixels."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from hardpatch.check.histogram import Counts, Histogram, count_values
from hardpatch.data.decode import decode, named_errors
from hardpatch.data.header import Header
from hardpatch.data.loader import batch_loader
from hardpatch.data.reading import RGB, Pixels, Reading, UndecodableImage
from hardpatch.data.sources import Source
from hardpatch.data.survey import Survey, header_of

CHUNK = 8
"""Images that a worker looks at before it reports."""


class Look(NamedTuple):
    """Result of looking at one image."""

    digest: bytes
    """hash of the file, empty if it cannot be decoded"""
    header: Header | None
    reason: str = ""
    """"name: reason" if the image cannot be decoded; then there is nothing below"""
    low: float = 0.0
    high: float = 0.0
    missing: int = 0
    """values that are NaN or infinite"""
    negative: int = 0
    infinite: npt.NDArray[np.float64] | None = None
    """values above all, of each channel"""
    counts: Counts | None = None


@dataclass
class Extent:
    """Values of all images of one type."""

    images: int = 0
    low: float = np.inf
    high: float = -np.inf
    highest: str = ""
    """name of the image with the greatest value"""


@dataclass
class Collected:
    """Results of looking at all images."""

    total: int = 0
    survey: Survey = field(default_factory=Survey)
    """of the images that can be decoded"""
    histograms: dict[tuple[str, int], Histogram] = field(default_factory=dict)
    """by type and number of channels"""
    extents: dict[str, Extent] = field(default_factory=dict)
    """by type"""
    heights: list[int] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    """of the upright pictures"""
    formats: dict[str, int] = field(default_factory=dict)
    paged: dict[str, int] = field(default_factory=dict)
    """pages of the files that have several"""
    turned: str = ""
    transparent: str = ""
    cut: str = ""
    """name of the first of each"""
    broken: dict[int, str] = field(default_factory=dict)
    """"name: reason" of those that cannot be decoded, by index"""
    missing: int = 0
    """values that are NaN or infinite"""
    negative: int = 0
    not_finite: str = ""
    """name of the first image with NaN or infinity"""
    digests: list[bytes] = field(default_factory=list)
    """hash of the content of each image, empty if it cannot be decoded"""


def collect(
    source: Source,
    workers: int = 0,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
    reading: Reading = RGB,
    channels: int | tuple[int, ...] | None = None,
) -> Collected:
    """Read and decode every image once, in its own type.

    Args:
        source: the images.
        reading: pages, background and size of the images.
        channels: those that are read; None takes the image's own.
        workers: processes that decode.
        progress: called with the number of images done and of all images.
    """
    found = Collected(len(source))
    i = 0
    for chunk in batch_loader(_Looks(source, reading, channels), None, workers):
        for look in chunk:
            _add(found, i, source.name(i), look)
            i += 1
        progress(i, len(source))
    return found


class _Looks(Dataset[list[Look]]):
    """Chunk k of a source."""

    def __init__(self, source: Source, reading: Reading, channels: int | tuple[int, ...] | None) -> None:
        self.source, self.reading, self.channels = source, reading, channels

    def __len__(self) -> int:
        return -(-len(self.source) // CHUNK)

    def __getitem__(self, k: int) -> list[Look]:
        indices = range(k * CHUNK, min((k + 1) * CHUNK, len(self.source)))
        return [look_at(self.source, i, self.reading, self.channels) for i in indices]


def look_at(source: Source, i: int, reading: Reading = RGB, channels: int | tuple[int, ...] | None = None) -> Look:
    """Look at one image; see :func:`collect`."""
    look = Look(b"", None)
    try:
        data = source.encoded(i)
        look = look._replace(digest=b"" if data is None else blake2b(data, digest_size=16).digest())
        header = header_of(source, i, reading)
        look = look._replace(header=header)
        own = own_reading(header, reading if channels is None else reading.with_channels(channels), channels is None)
        if data is None:
            pixels = source.image(i, own)
            look = look._replace(digest=blake2b(pixels.tobytes(), digest_size=16).digest())
        else:
            with named_errors(source.name, i):
                pixels = decode(data, own)
    except UndecodableImage as error:
        return look._replace(reason=str(error))
    return _values(look._replace(header=header._replace(channels=own.number)), pixels)


def own_reading(header: Header, reading: Reading, own_channels: bool) -> Reading:
    """Return the reading that leaves an image as it is stored; with floating point NaN and infinity stay as well."""
    channels = header.channels if own_channels else reading.channels
    low, high = ((np.nan,), (np.inf,)) if header.dtype == "float32" else (RGB.low, RGB.high)
    return replace(reading, channels=channels, dtype=header.dtype, low=low, high=high)


def _values(look: Look, pixels: Pixels) -> Look:
    counts = count_values(pixels)
    if pixels.dtype.kind != "f":
        negative = int((pixels < 0).sum()) if pixels.dtype.kind == "i" else 0
        return look._replace(low=float(pixels.min()), high=float(pixels.max()), negative=negative, counts=counts)
    known = pixels[np.isfinite(pixels)]
    low, high = (float(known.min()), float(known.max())) if known.size else (np.nan, np.nan)
    return look._replace(
        low=low,
        high=high,
        missing=pixels.size - known.size,
        negative=int((known < 0).sum()),
        infinite=np.isposinf(pixels).sum((0, 1)).astype(np.float64),
        counts=counts,
    )


def _add(found: Collected, i: int, name: str, look: Look) -> None:
    """Count an image."""
    found.digests.append(b"" if look.reason else look.digest)
    header = look.header
    if header is not None and header.pages > 1:
        found.paged[name] = header.pages
    if header is None or look.reason:
        found.broken[i] = look.reason
        return
    assert look.counts is not None
    found.survey.add(i, name, header)
    found.heights.append(header.height)
    found.widths.append(header.width)
    found.formats[header.format] = found.formats.get(header.format, 0) + 1
    found.turned = found.turned or (name if header.orientation != 1 else "")
    found.transparent = found.transparent or (name if header.transparent else "")
    found.cut = found.cut or (name if header.lost_bits else "")
    infinite: Any = np.zeros(header.channels) if look.infinite is None else look.infinite
    found.not_finite = found.not_finite or (name if look.missing else "")
    found.missing += look.missing
    found.negative += look.negative
    extent = found.extents.setdefault(header.dtype, Extent())
    extent.images += 1
    if look.high > extent.high:
        extent.high, extent.highest = look.high, name
    extent.low = min(extent.low, look.low) if look.low == look.low else extent.low
    histogram = found.histograms.setdefault((header.dtype, header.channels), Histogram(header.channels))
    histogram.add(look.counts, header.height * header.width, infinite)
