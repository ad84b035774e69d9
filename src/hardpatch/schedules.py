"""How a number goes from one value to another while training goes on; the learning rate is made of both."""

import math


def ramp(progress: float, start: float, end: float, warmup: float) -> float:
    """Linear from ``start`` to ``end`` while ``progress`` goes from 0 to ``warmup``, then ``end``.

    Both ``progress`` and ``warmup`` are shares of the training, in [0, 1].
    """
    if warmup <= 0.0 or progress >= warmup:
        return end
    return start + (end - start) * progress / warmup


def half_cosine(progress: float, start: float, end: float) -> float:
    """From ``start`` at ``progress`` 0 to ``end`` at 1 along half a cosine: slow at both ends."""
    return end + (start - end) * (0.5 * (1.0 + math.cos(math.pi * progress)))


def learning_rate(progress: float, peak: float, minimum: float, warmup: float) -> float:
    """Linear warm-up from 0 to ``peak``, then half a cosine down to ``minimum``.

    Args:
        progress: share of the training that is done before this step, in [0, 1].
        peak: learning rate after the warm-up.
        minimum: learning rate at the end.
        warmup: share of the training spent warming up, in [0, 1].
    """
    if progress < warmup:
        return peak * progress / warmup
    return half_cosine((progress - warmup) / max(1.0 - warmup, 1e-12), peak, minimum)
