"""Mean and standard deviation of the channels of a data set."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from hardpatch.data.decode import UndecodableImage
from hardpatch.data.sources import Source
from hardpatch.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def channel_statistics(
    source: Source, channels: int, seed: int, at_most: int = 2000
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, for pixels in [0, 1], over at most `at_most` images drawn at random.

    Every image has the same weight, whatever its size, since training resizes all to one size. Images that cannot be
    decoded are skipped. Raises UserError if none is left.
    """
    indices = np.random.default_rng(seed).permutation(len(source))[:at_most]
    mean, square, count = np.zeros(channels), np.zeros(channels), 0
    for i in indices:
        try:
            pixels = source.image(int(i), channels).reshape(-1, channels)
        except UndecodableImage:
            continue
        mean += pixels.mean(0) / 255
        square += np.einsum("pc,pc->c", pixels, pixels, dtype=np.float64) / len(pixels) / 255**2
        count += 1
    if not count:
        raise UserError(
            f"data.mean: none of {len(indices)} images could be decoded, so there is nothing to compute it on"
        )
    mean, square = mean / count, square / count
    # at least one gray level: with images of a single color the model would divide by zero
    std = np.sqrt(np.maximum(square - mean**2, 0)).clip(min=1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())


class ChannelStatistics(NamedTuple):
    """Mean and standard deviation of each channel, for pixels in [0, 1]."""

    mean: list[float]
    std: list[float]


def resolve_statistics(
    mean: str | Sequence[float],
    std: str | Sequence[float],
    compute: Callable[[], tuple[Sequence[float], Sequence[float]]],
) -> ChannelStatistics:
    """Return the statistics that the settings ``data.mean`` and ``data.std`` stand for.

    Args:
        mean: ``imagenet``, ``computed``, or the values of each channel.
        std: likewise.
        compute: returns mean and standard deviation of the images; called only if a setting is ``computed``.
    """
    computed = compute() if "computed" in (mean, std) else ((), ())
    named: dict[str, tuple[Sequence[float], Sequence[float]]] = {
        "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
        "computed": computed,
    }
    return ChannelStatistics(
        list(named[mean][0] if isinstance(mean, str) else mean),
        list(named[std][1] if isinstance(std, str) else std),
    )
