"""Losses of normal images, and the scores of other images by them."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LEAST_DEVIATION = 0.1
"""Share of the mean deviation that is added to every one, so that no place counts that is always the same."""


class Normal(NamedTuple):
    """Distribution of the losses of normal images, of each patch by itself: ``[N]`` each."""

    mean: Floats
    deviation: Floats

    def scores(self, losses: NDArray[np.float32]) -> Floats:
        """Return the losses ``[n, N]`` in deviations from the mean of their place."""
        return (losses - self.mean) / (self.deviation + LEAST_DEVIATION * self.deviation.mean() + 1e-12)


def normal_losses(read: Callable[[], Iterable[NDArray[np.float32]]]) -> Normal:
    """Return the distribution of losses that ``read`` yields part by part, ``[n, N]``, in two passes."""
    count, total = 0, np.zeros(1)
    for part in read():
        count, total = count + len(part), total + part.sum(0, dtype=np.float64)
    mean = total / count
    squares = sum((np.square(part - mean).sum(0) for part in read()), np.zeros(1))
    return Normal(mean, np.sqrt(squares / count))


def image_scores(scores: Floats) -> Floats:
    """Score of each image, the highest of its patches ``[n, N]``: ``[n]``."""
    result: Floats = scores.max(1)
    return result
