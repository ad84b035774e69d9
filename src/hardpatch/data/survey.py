"""A look at the headers of some images: which channels, types and pages a set has, before its pixels are read."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from hardpatch.data.bad_files import nothing_decodable
from hardpatch.data.decode import named_errors, read_header
from hardpatch.data.header import Header
from hardpatch.data.reading import RGB, Reading, UndecodableImage, type_range
from hardpatch.data.sources import Source
from hardpatch.errors import UserError

SAMPLE = 256
"""Images whose headers are read."""
MEASURED = 256
"""Images, at most, whose pixels are read for the range of values."""
VALUES = 4096
"""Pixels of each of those that are looked at."""
PERCENTILES = (0.1, 99.9)
"""Percentiles of all values that become 0 and 1."""
SIGNED = frozenset(("float32", "int16"))
"""Types whose values may be negative, and which are measured for that whatever the range."""

log = logging.getLogger("hardpatch")


@dataclass
class Survey:
    """Counts of what the headers of some images say. Each counter has the first example of each value in `examples`."""

    images: int = 0
    channels: Counter[int] = field(default_factory=Counter)
    dtypes: Counter[str] = field(default_factory=Counter)
    pages: Counter[int] = field(default_factory=Counter)
    turned: int = 0
    """images that are stored turned, by their EXIF orientation"""
    transparent: int = 0
    cut: int = 0
    """images of more than 8 bits of which the decoder gives 8"""
    examples: dict[tuple[str, int | str], str] = field(default_factory=dict)
    of_type: dict[str, list[int]] = field(default_factory=dict)
    """indices of the images of each type"""

    def add(self, index: int, name: str, header: Header) -> None:
        """Count an image."""
        self.images += 1
        self.channels[header.channels] += 1
        self.dtypes[header.dtype] += 1
        self.pages[header.pages] += 1
        self.turned += header.orientation != 1
        self.transparent += header.transparent
        self.cut += header.lost_bits > 0
        for key in (("channels", header.channels), ("dtype", header.dtype), ("pages", header.pages)):
            self.examples.setdefault(key, name)
        self.of_type.setdefault(header.dtype, []).append(index)

    def describe(self) -> str:
        """Return one line: channels, types, and what is unusual."""
        parts = [
            ", ".join(f"{count} of {channels} channels" for channels, count in self.channels.most_common()),
            ", ".join(f"{count} {dtype}" for dtype, count in self.dtypes.most_common()),
        ]
        if set(self.pages) - {1}:
            parts.append(f"{sum(count for pages, count in self.pages.items() if pages > 1)} of several pages")
        if self.turned:
            parts.append(f"{self.turned} stored turned and read upright (EXIF)")
        if self.transparent:
            parts.append(f"{self.transparent} with transparency")
        if self.cut:
            parts.append(f"{self.cut} of more than 8 bits that can be read in 8 only (color in HEIC, AVIF, JPEG XL)")
        return "; ".join(parts)


def survey(source: Source, reading: Reading = RGB, at_most: int = SAMPLE) -> Survey:
    """Read the headers of at most `at_most` images, drawn at random; what cannot be read is not counted."""
    found = Survey()
    for i in np.random.default_rng(0).permutation(len(source))[:at_most].tolist():
        try:
            found.add(i, source.name(i), header_of(source, i, reading))
        except UndecodableImage:
            continue
    return found


def check_decodable(source: Source, reading: Reading) -> None:
    """Decode one image, which may take several tries, so that a set without any is refused before a training begins.

    Raises:
        UserError: with the reason of the last, if none of at most :data:`SAMPLE` images can be decoded.
    """
    bad: list[str] = []
    for i in np.random.default_rng(0).permutation(len(source))[:SAMPLE].tolist():
        try:
            source.image(i, reading)
        except UndecodableImage as error:
            bad.append(str(error))
        else:
            return
    raise nothing_decodable(len(bad), bad)


def header_of(source: Source, i: int, reading: Reading = RGB) -> Header:
    """Read the header of an image, with as many channels as its pages have together if the reading says so.

    Sources of pixels are 8-bit RGB unless they say otherwise.
    """
    own = getattr(source, "header", None)
    if own is not None:
        header: Header = own(i)
        return header
    data = source.encoded(i)
    if data is None:
        height, width = source.image(i).shape[:2]
        return Header(height, width, 3, "uint8", "pixels")
    with named_errors(source.name, i):
        header = read_header(data, reading.max_pixels)
    return header._replace(channels=header.channels * header.pages) if reading.pages == "channels" else header


def resolve_channels(channels: str | int | Sequence[int], found: Survey) -> int | tuple[int, ...]:
    """Return the channels that the setting ``data.channels`` stands for; gray and RGB together are read as RGB.

    Raises:
        UserError: for ``auto`` if the images have different numbers of channels.
    """
    if isinstance(channels, int):
        return channels
    if not isinstance(channels, str):
        return tuple(channels)
    counts = set(found.channels)
    if counts <= {1, 3}:
        return 3 if 3 in counts or not counts else 1
    if len(counts) == 1:
        return counts.pop()
    named = "; ".join(f"{count} channels as {found.examples['channels', count]}" for count in sorted(counts))
    raise UserError(
        f"data.channels: the images have different channels ({named}); set the number that is meant, or the indices of "
        "those to use"
    )


def resolve_range(
    setting: str | Sequence[float] | Sequence[Sequence[float]], source: Source, found: Survey, reading: Reading
) -> tuple[Reading, list[str]]:
    """Return a reading with the type of the images and the range that ``data.range`` means, and notes, one a line.

    Args:
        setting: ``auto``, ``type``, ``[low, high]``, or such a pair for each channel.
        source: the images; the pixels of some are read for ``auto``, and where values may be no numbers or negative.
        found: their survey.
        reading: how they are read otherwise.

    Raises:
        UserError: if a range is empty or the number of ranges is not that of the channels.
    """
    reading = with_types(found, reading)
    dtype, mixed, wide = reading.dtype, reading.mixed, {*found.dtypes} - {"uint8"}
    if not isinstance(setting, str):
        reading = _with_range(reading, setting)
    if not wide or (setting != "auto" and not SIGNED & wide):
        return reading, []
    measured = sorted(i for name in wide for i in found.of_type[name])[:MEASURED]
    values = measured_range(source, measured, reading, found.of_type.get("float32", ()))
    notes = []
    if setting == "auto":
        reading = replace(reading, low=(values.low,), high=(values.high,))
        note = (
            f"data.range auto: values of {dtype} from {values.low:g} to {values.high:g} become 0 to 1, others are cut "
            f"off; {len(measured)} images have values between {values.least:g} and {values.most:g}"
        )
        if mixed:
            note += f"; values of {', '.join(mixed)} are first divided by the greatest value of their type"
        notes.append(note)
    if values.odd:
        notes.append(f"data.range: {len(measured)} images looked at: {values.odd}")
    return reading, notes


def with_types(found: Survey, reading: Reading) -> Reading:
    """Return a reading with the type that holds the values of the images, and the range of this type."""
    wide = sorted(set(found.dtypes) - {"uint8"})
    dtype = wide[0] if len(wide) == 1 else "float32" if wide else "uint8"
    low, high = type_range(dtype)
    return replace(reading, dtype=dtype, low=(low,), high=(high,), mixed=tuple(wide) if len(wide) > 1 else ())


def _with_range(reading: Reading, setting: Sequence[float] | Sequence[Sequence[float]]) -> Reading:
    """Return a reading with the range that was set. Raises UserError as :func:`resolve_range` does."""
    pairs = [setting] if not isinstance(setting[0], Sequence) else list(setting)
    lows, highs = (tuple(float(pair[k]) for pair in pairs if isinstance(pair, Sequence)) for k in (0, 1))
    if len(pairs) not in (1, reading.number) or not all(a < b for a, b in zip(lows, highs, strict=True)):
        raise UserError(
            f"data.range: expected [low, high] with low < high, or such a pair for each of {reading.number} channels, "
            f"got {setting}"
        )
    return replace(reading, low=lows, high=highs)


class Values(NamedTuple):
    """Values of some images."""

    low: float
    high: float
    """percentiles, the range; above `low`"""
    least: float
    most: float
    odd: str
    """how many are NaN or infinite, or negative, in how many of the images; empty if none is"""


def measured_range(source: Source, indices: Sequence[int], reading: Reading, floats: Sequence[int] = ()) -> Values:
    """Measure values of some images, and count those that are NaN, infinite or negative.

    Args:
        source: the images.
        indices: those to measure.
        reading: how they are read.
        floats: images that are stored in floating point, in which NaN and infinity can be.

    Raises:
        UserError: if none can be decoded, or no value is a number.
    """
    rng, stored = np.random.default_rng(0), frozenset(floats)
    values: list[Any] = []
    bad: list[str] = []
    odd = np.zeros((2, 2), np.int64)
    kept = replace(reading, low=(np.nan,), high=(np.inf,))
    for i in indices:
        try:
            pixels = source.image(i, kept if i in stored else reading).reshape(-1, reading.number)
        except UndecodableImage as error:
            bad.append(str(error))
            continue
        finite = np.isfinite(pixels)
        counts = np.array([(~finite).sum(), (finite & (pixels < 0)).sum()])
        odd += np.stack([counts, counts > 0], 1)
        chosen = pixels[rng.integers(0, len(pixels), min(VALUES, len(pixels)))].astype(np.float64).ravel()
        values.append(chosen[np.isfinite(chosen)])
    if not values:
        raise nothing_decodable(len(indices), bad)
    together = np.concatenate(values)
    if not len(together):
        raise UserError(f"data.range: none of the values in {len(values)} images is a number")
    low, high = np.percentile(together, PERCENTILES).tolist()
    kinds = ("are NaN or infinite and become the ends of the range", "are negative")
    counted = zip(odd.tolist(), kinds, strict=True)
    lines = [f"{number} values in {images} of them {kind}" for (number, images), kind in counted if number]
    return Values(low, high if high > low else low + 1, float(together.min()), float(together.max()), "; ".join(lines))


def adapted(reading: Reading, source: Source, argument: str) -> Reading:
    """Return the reading of a model for images that may have another type than those it was trained on.

    What has more bits than the model's images keeps them, and is brought to its scale by the range of the type, with a
    warning that names the greatest value found.
    """
    found = survey(source, at_most=SAMPLE // 4)
    other = sorted(set(found.dtypes) - {reading.dtype, "uint8", *reading.mixed})
    if not other:
        return reading
    reading = replace(reading, dtype="float32")
    for dtype in other:
        raw = replace(reading, dtype=dtype, low=(0.0,), high=(1.0,))
        most = measured_range(source, found.of_type[dtype], raw).most
        log.warning(
            "%s: pixels of type %s, up to %g of %g in %d images; the model was trained on others, and they are brought "
            "to its scale by the range of the type. If the values fill a small part of it, rescale the files",
            argument,
            dtype,
            most,
            type_range(dtype)[1],
            len(found.of_type[dtype]),
        )
    return reading
