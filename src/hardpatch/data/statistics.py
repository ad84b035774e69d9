"""Mean and standard deviation of the channels of a data set."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from hardpatch.data.reading import Reading, UndecodableImage, to_unit
from hardpatch.data.sources import Source
from hardpatch.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def channel_statistics(
    source: Source, reading: Reading, seed: int, at_most: int = 2000
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, for pixels in [0, 1], over at most `at_most` images drawn at random.

    Every image has the same weight, whatever its size, since training resizes all to one size. Images that cannot be
    decoded are skipped. Raises UserError if none is left.
    """
    indices = np.random.default_rng(seed).permutation(len(source))[:at_most]
    channels = reading.number
    mean, square, count = np.zeros(channels), np.zeros(channels), 0
    last = ""
    for i in indices:
        try:
            pixels = source.image(int(i), reading)
        except UndecodableImage as error:
            last = str(error)
            continue
        plain = reading.dtype == "uint8" and not reading.ranged  # needs no copy in float32
        values = (pixels if plain else to_unit(pixels, reading)).reshape(-1, channels)
        unit = 255 if plain else 1
        mean += values.mean(0, dtype=np.float64) / unit
        square += np.einsum("pc,pc->c", values, values, dtype=np.float64) / len(values) / unit**2
        count += 1
    if not count:
        raise UserError(
            f"data.mean: none of {len(indices)} images could be decoded, so there is nothing to compute it on; the "
            f"last was {last}"
        )
    mean, square = mean / count, square / count
    std = np.sqrt(np.maximum(square - mean**2, 0)).clip(min=least_std(reading))
    return tuple(mean.tolist()), tuple(std.tolist())


def least_std(reading: Reading) -> float:
    """Return one gray level: with images of a single color the model would divide by zero."""
    return 1 / 255 if reading.dtype == "uint8" else 1e-6


class ChannelStatistics(NamedTuple):
    """Mean and standard deviation of each channel, for pixels in [0, 1]."""

    mean: list[float]
    std: list[float]


def resolve_statistics(
    mean: str | Sequence[float],
    std: str | Sequence[float],
    compute: Callable[[], tuple[Sequence[float], Sequence[float]]],
    photographs: bool = True,
) -> ChannelStatistics:
    """Return the statistics that the settings ``data.mean`` and ``data.std`` stand for.

    Args:
        mean: ``auto``, ``imagenet``, ``computed``, or the values of each channel.
        std: likewise.
        compute: returns mean and standard deviation of the images; called only if a setting is ``computed``.
        photographs: the images are 8-bit RGB, for which ``auto`` is ``imagenet``; else it is ``computed``.
    """
    automatic = "imagenet" if photographs else "computed"
    mean, std = (automatic if values == "auto" else values for values in (mean, std))
    computed = compute() if "computed" in (mean, std) else ((), ())
    named: dict[str, tuple[Sequence[float], Sequence[float]]] = {
        "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
        "computed": computed,
    }
    return ChannelStatistics(
        list(named[mean][0] if isinstance(mean, str) else mean),
        list(named[std][1] if isinstance(std, str) else std),
    )
