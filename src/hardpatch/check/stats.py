"""Mean and deviation of each channel over all images, and the range of their values."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hardpatch.check.collect import Collected, collect
from hardpatch.check.histogram import percentile
from hardpatch.check.reading import ReadingSettings, reading_settings
from hardpatch.data.reading import RGB, Reading, type_range
from hardpatch.data.sources import Paths, Source
from hardpatch.data.statistics import least_std
from hardpatch.data.survey import PERCENTILES, Survey, resolve_channels, with_types
from hardpatch.data.workers import resolve_workers
from hardpatch.errors import UserError


@dataclass(frozen=True)
class Statistics:
    """Statistics of all images that can be decoded, each with the same weight."""

    images: int
    channels: int
    dtype: str
    """type in which training keeps the pixels"""
    range: tuple[float, float]
    """values that become 0 and 1"""
    percentiles: dict[str, float]
    """of the values of images of more than 8 bits, by percent; empty if there are none"""
    mean: list[float]
    """of each channel, of pixels in [0, 1] after the range"""
    std: list[float]
    missing: int = 0
    """values that are NaN or infinite"""
    negative: int = 0
    broken: list[str] = field(default_factory=list)
    """"name: reason" of the images that cannot be decoded"""
    reading: Reading = RGB
    """with the settings that fit"""
    given: list[str] = field(default_factory=list)
    """settings of the reading that were given"""

    def settings(self) -> list[str]:
        """Return the settings of ``hardpatch pretrain`` that fit these images."""
        low, high = self.range
        channels = self.reading.channels
        return [
            f"--data.mean=[{','.join(f'{value:.5g}' for value in self.mean)}]",
            f"--data.std=[{','.join(f'{value:.5g}' for value in self.std)}]",
            f"--data.range=[{low:.9g},{high:.9g}]",
            f"--data.channels={channels if isinstance(channels, int) else json.dumps(channels, separators=(',', ':'))}",
            *self.given,
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the values of the JSON file."""
        plain = {name: value for name, value in self.__dict__.items() if name not in ("reading", "given")}
        return {**plain, "range": list(self.range), "settings": self.settings()}


def stats(
    path: Paths,
    *,
    workers: int | str = "auto",
    progress: Callable[[int, int | None], None] = lambda done, total: None,
    **settings: Any,
) -> Statistics:
    """Measure all images of a set in one pass: ``hardpatch stats``.

    Args:
        path: images, one path or several; see :func:`hardpatch.data.sources.open_source`.
        workers: processes that decode images.
        progress: called with the number of images done and of all images.
        settings: how the images are read, as in ``pretrain`` (:data:`hardpatch.configuration.data_section.READING`).

    Raises:
        UserError: if there are no images, none can be decoded, or they have different channels.
    """
    chosen = reading_settings(settings)
    return statistics_of(look_at_all(chosen.open(path), chosen, resolve_workers(workers), progress), chosen)


def look_at_all(
    source: Source, chosen: ReadingSettings, workers: int, progress: Callable[[int, int | None], None]
) -> Collected:
    """Look at all images as the settings read them."""
    channels = None if chosen.data.channels == "auto" else resolve_channels(chosen.data.channels, Survey())
    return collect(source, workers, progress, chosen.initial, channels)


def statistics_of(found: Collected, chosen: ReadingSettings) -> Statistics:
    """Compute the statistics of images that were collected. Raises UserError as :func:`stats` does."""
    if not found.histograms:
        raise UserError(
            f"none of the {found.total} images can be decoded; the first: {next(iter(found.broken.values()))}"
        )
    channels = resolve_channels(chosen.data.channels, found.survey)
    reading = with_types(found.survey, chosen.initial.with_channels(channels))
    percentiles: dict[str, float] = {}
    if set(found.survey.dtypes) - {"uint8"}:
        percentiles = _percentiles(found, reading)
        low, high = (percentiles[f"{percent:g}"] for percent in PERCENTILES)
        reading = replace(reading, low=(low,), high=(high if high > low else low + 1,))
    mean, std = _moments(found, reading)
    return Statistics(
        found.survey.images,
        reading.number,
        reading.dtype,
        (reading.low[0], reading.high[0]),
        percentiles,
        mean,
        std,
        found.missing,
        found.negative,
        list(found.broken.values()),
        reading,
        chosen.given,
    )


def _percentiles(found: Collected, reading: Reading) -> dict[str, float]:
    """Percentiles of the values of the images of more than 8 bits, in the reading's type."""
    values, weights, ends = [], [], []
    for (dtype, _), histogram in found.histograms.items():
        if dtype == "uint8":
            continue
        # several types are brought together by the ranges of each
        low, high = (0, 1) if dtype == reading.dtype else type_range(dtype)
        value, weight = histogram.spread()
        values.append((value - low) / (high - low))
        weights.append(weight)
        ends += [(end - low) / (high - low) for end in (found.extents[dtype].low, found.extents[dtype].high)]
    value, weight = np.concatenate(values), np.concatenate(weights)
    if not len(value):
        raise UserError("none of the values of the images is a number")
    inner = {f"{percent:g}": percentile(value, weight, percent) for percent in (PERCENTILES[0], 50, PERCENTILES[1])}
    return {"0": min(ends), **inner, "100": max(ends)}


def _moments(found: Collected, reading: Reading) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel after the range of the reading."""
    mean, square, images = np.zeros(reading.number), np.zeros(reading.number), 0
    for (dtype, _), histogram in found.histograms.items():
        # what has another type than the reading is brought to [0, 1] by the range of its own
        low, high = (reading.low[0], reading.high[0]) if dtype == reading.dtype else type_range(dtype)
        linear, squared = histogram.moments(low, high)
        mean += linear  # gray counts for each of three channels
        square += squared
        images += histogram.images
    mean, square = mean / images, square / images
    std = np.sqrt(np.maximum(square - mean**2, 0)).clip(min=least_std(reading))
    return mean.tolist(), std.tolist()
