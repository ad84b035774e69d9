"""Easy to hard: how large a share of the masked patches is chosen by predicted difficulty (paper, Sec. 3.3)."""


def linear_alpha(progress: float, start: float = 0.0, end: float = 0.5) -> float:
    """The mined share of the masked patches, ``alpha = start + progress * (end - start)``.

    The paper's easy-to-hard curriculum is ``0 -> 0.5``; ``start > end`` runs from hard to easy, ``start = end`` is
    constant.

    Args:
        progress: share of the training that is done, in [0, 1].
        start, end: alpha at the beginning and the end of training, in [0, 1].

    Raises:
        ValueError: if any of them is outside [0, 1].
    """
    for name, value in (("progress", progress), ("start", start), ("end", end)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name}: expected a number in [0, 1], got {value}")
    return start + progress * (end - start)


def mined_count(masked: int, alpha: float) -> int:
    """``int(masked * alpha)``: 0 to 73 of 147 masked patches as alpha rises from 0 to 0.5."""
    return int(masked * alpha)
