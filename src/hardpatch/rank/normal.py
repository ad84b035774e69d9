"""Losses of normal images, and the scores of other images by them."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LEAST_DEVIATION = 0.1
"""Share of the mean deviation that is added to every one, so that no place counts that is always the same."""
LEAST_SPREAD = 0.2
"""Share of the mean spread of normal images that is added to that of every image, likewise."""


class Normal(NamedTuple):
    """Distribution of the losses of normal images."""

    mean: Floats
    """of each patch, ``[N]``"""
    deviation: Floats
    """of each patch, ``[N]``"""
    spread: float
    """mean over the images of the :func:`spread` of their deviations"""

    def scores(self, losses: NDArray[np.float32]) -> Floats:
        """Return how much the patches of images stand out, ``[n, N]``, of their losses ``[n, N]``.

        These are their deviations, less the median of the image, by the spread of the image: some images are harder
        than others as a whole, or more varied; a defect is where an image differs from itself.
        """
        found = self.deviations(losses)
        centered = found - np.median(found, axis=1, keepdims=True)
        return centered / (spread(found)[:, None] + LEAST_SPREAD * self.spread + 1e-12)

    def deviations(self, losses: NDArray[np.float32]) -> Floats:
        """Return the losses ``[n, N]`` in deviations from the mean of their place."""
        return (losses - self.mean) / (self.deviation + LEAST_DEVIATION * self.deviation.mean() + 1e-12)


def spread(values: Floats) -> Floats:
    """Median distance of the patches of an image ``[n, N]`` from their median: ``[n]``."""
    result: Floats = np.median(np.abs(values - np.median(values, axis=1, keepdims=True)), axis=1)
    return result


def normal_losses(read: Callable[[], Iterable[NDArray[np.float32]]]) -> Normal:
    """Return the distribution of losses that ``read`` yields part by part, ``[n, N]``, in three passes."""
    count, total = 0, np.zeros(1)
    for part in read():
        count, total = count + len(part), total + part.sum(0, dtype=np.float64)
    mean = total / count
    squares = sum((np.square(part - mean).sum(0) for part in read()), np.zeros(1))
    normal = Normal(mean, np.sqrt(squares / count), 0.0)
    spreads = sum(float(spread(normal.deviations(part)).sum()) for part in read())
    return normal._replace(spread=spreads / count)


def image_scores(scores: Floats) -> Floats:
    """Score of each image, the highest of its patches ``[n, N]``: ``[n]``."""
    result: Floats = scores.max(1)
    return result
