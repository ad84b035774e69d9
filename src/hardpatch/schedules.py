"""Schedules over a training: linear ramp, half cosine, step, and learning rates that combine them.

Progress is the fraction of the training that is done, in [0, 1].
"""

import math


def ramp(progress: float, start: float, end: float, warmup: float) -> float:
    """Rise linearly from ``start`` to ``end`` until ``progress`` reaches ``warmup``, then stay at ``end``.

    Args:
        progress: fraction of the training, in [0, 1].
        start: value at progress 0.
        end: value from ``warmup`` on.
        warmup: fraction of the training, in [0, 1].
    """
    if warmup <= 0.0 or progress >= warmup:
        return end
    return start + (end - start) * progress / warmup


def half_cosine(progress: float, start: float, end: float) -> float:
    """Go from ``start`` at progress 0 to ``end`` at progress 1 along half a cosine: slow at both ends."""
    return end + (start - end) * (0.5 * (1.0 + math.cos(math.pi * progress)))


def learning_rate(progress: float, peak: float, minimum: float, warmup: float) -> float:
    """Linear warm-up from 0 to ``peak``, then half a cosine down to ``minimum``.

    Args:
        progress: fraction of the training that is done before this step, in [0, 1].
        peak: learning rate after the warm-up.
        minimum: learning rate at the end.
        warmup: fraction of the training spent warming up, in [0, 1].
    """
    if progress < warmup:
        return peak * progress / warmup
    return half_cosine((progress - warmup) / max(1.0 - warmup, 1e-12), peak, minimum)


def step_decay(progress: float, peak: float, warmup: float, at: float, factor: float) -> float:
    """Linear warm-up from 0 to ``peak``, and from ``at`` on ``factor * peak``.

    Args:
        progress: fraction of the training that is done before this step, in [0, 1].
        peak: learning rate after the warm-up.
        warmup: fraction of the training spent warming up, in [0, 1].
        at: fraction of the training after which the learning rate is multiplied, from ``warmup`` to 1.
        factor: what it is multiplied by.
    """
    return ramp(progress, 0.0, peak, warmup) * (factor if progress >= at else 1.0)
