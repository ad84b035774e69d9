"""Values of all images of one type in bins, from which percentiles, mean and deviation follow for any range.

The range of a set is known only when all of it has been read. With bins one pass is enough.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

BINS = 1 << 16


class Counts(NamedTuple):
    """Values of one image in bins; each array has one entry for each bin that is not empty."""

    bins: npt.NDArray[np.int64]
    """channel times :data:`BINS` plus the bin"""
    number: npt.NDArray[np.float64]
    sums: npt.NDArray[np.float64]
    """sum of the values"""
    squares: npt.NDArray[np.float64]
    """sum of their squares"""


def bins_of(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return the bin of each finite value, in the order of the values.

    Each value of an integer type of at most 16 bits has its own bin. Floating point and 32-bit integers have a bin
    for sign, exponent and 7 bits of the fraction of float32, within 1/128 of the value.
    """
    if values.dtype.itemsize <= 2:
        return values.astype(np.int64) - min(0, np.iinfo(values.dtype).min)
    bits = (values.astype(np.float32) + np.float32(0)).view(np.uint32)  # the sum turns -0 into 0
    negative = bits >> np.uint32(31) == 1
    return (np.where(negative, ~bits, bits | np.uint32(1 << 31)) >> np.uint32(16)).astype(np.int64)


def count_values(pixels: npt.NDArray[Any]) -> Counts:
    """Count the finite values of pixels ``[H, W, C]``."""
    parts = [_count_channel(pixels[:, :, channel].ravel(), channel * BINS) for channel in range(pixels.shape[2])]
    return Counts(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _count_channel(values: npt.NDArray[Any], start: int) -> Counts:
    if values.dtype.itemsize <= 2:
        counts = np.bincount(bins_of(values)).astype(np.float64)
        index = np.flatnonzero(counts)
        number, value = counts[index], (index + min(0, np.iinfo(values.dtype).min)).astype(np.float64)
        return Counts(index + start, number, number * value, number * value * value)
    if values.dtype.kind == "f":
        values = values[np.isfinite(values)]
    exact = values.astype(np.float64)
    index, inverse = np.unique(bins_of(values), return_inverse=True)
    number = np.bincount(inverse, minlength=len(index)).astype(np.float64)
    sums: npt.NDArray[Any] = np.bincount(inverse, exact, len(index))
    squares: npt.NDArray[Any] = np.bincount(inverse, exact * exact, len(index))
    return Counts(index + start, number, sums, squares)


class Histogram:
    """Values of many images of one type and one number of channels. Every image has the same weight."""

    def __init__(self, channels: int) -> None:
        self.images = 0
        self.weight, self.total, self.square = (np.zeros((channels, BINS)) for _ in range(3))
        self.infinite = np.zeros(channels)

    def add(self, counts: Counts, pixels: int, infinite: npt.NDArray[np.float64]) -> None:
        """Add an image of height times width `pixels`, of which a part may be NaN or infinite.

        `infinite` is the number of values of each channel that are above all.
        """
        self.images += 1
        self.weight.ravel()[counts.bins] += counts.number / pixels
        self.total.ravel()[counts.bins] += counts.sums / pixels
        self.square.ravel()[counts.bins] += counts.squares / pixels
        self.infinite += infinite / pixels

    def moments(self, low: float, high: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Sum over the images of the mean, and of the mean square, of ``(value - low) / (high - low)`` cut to [0, 1].

        Both ``[channels]``. NaN counts as `low`, as training replaces it.
        """
        center = np.divide(self.total, self.weight, out=np.zeros_like(self.total), where=self.weight > 0)
        above, inside = center >= high, (center > low) & (center < high)
        span = high - low
        linear = np.where(inside, self.total - low * self.weight, 0) / span
        square = np.where(inside, self.square - 2 * low * self.total + low**2 * self.weight, 0) / span**2
        ones = np.where(above, self.weight, 0).sum(1) + self.infinite
        return linear.sum(1) + ones, square.sum(1) + ones

    def spread(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Mean value of each bin that is not empty, in order, and its weight; all channels together."""
        weight, total = self.weight.sum(0), self.total.sum(0)
        filled = weight > 0
        return total[filled] / weight[filled], weight[filled]


def percentile(value: npt.NDArray[np.float64], weight: npt.NDArray[np.float64], percent: float) -> float:
    """Return the least of some values, with weights, up to which `percent` of the weight lies."""
    order = np.argsort(value, kind="stable")
    reached = weight[order].cumsum()
    k = int(np.searchsorted(reached, reached[-1] * percent / 100 * (1 - 1e-12)))
    return float(f"{value[order][min(k, len(value) - 1)]:.10g}")  # without the rounding of the sums
