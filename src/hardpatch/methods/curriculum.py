"""Easy to hard: the share of the masked patches that is mined, over the training (paper, Sec. 3.4, Algorithm S1)."""


def linear_alpha(progress: float, start: float = 0.0, end: float = 0.5) -> float:
    """Compute the mined share of the masked patches, ``alpha = start + progress * (end - start)``.

    The paper's easy-to-hard curriculum goes from 0 to 0.5. ``start > end`` goes from hard to easy, ``start = end`` is
    constant.

    Args:
        progress: share of the training that is done, in [0, 1].
        start: alpha at the beginning of the training, in [0, 1].
        end: alpha at the end, in [0, 1].

    Raises:
        ValueError: if an argument is outside [0, 1].
    """
    for name, value in (("progress", progress), ("start", start), ("end", end)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name}: expected a number in [0, 1], got {value}")
    return start + progress * (end - start)


def mined_count(masked: int, alpha: float) -> int:
    """Count the mined patches, ``int(masked * alpha)``: 0 to 73 of 147 masked ones as alpha rises from 0 to 0.5."""
    return int(masked * alpha)
