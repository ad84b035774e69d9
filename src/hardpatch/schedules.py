"""The learning rate, of pre-training and of what is trained on top."""

import math


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
    cosine = 0.5 * (1.0 + math.cos(math.pi * (progress - warmup) / max(1.0 - warmup, 1e-12)))
    return minimum + (peak - minimum) * cosine
