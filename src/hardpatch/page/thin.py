"""Curves of long runs with fewer points, which keep their extremes."""

from collections.abc import Sequence

import numpy as np

BUCKETS = 150
"""Pieces of a curve that each keep at most four points."""

Curve = tuple[list[float], list[float]]
"""x and y of the points of a curve"""


def thin(x: Sequence[float], y: Sequence[float], buckets: int = BUCKETS) -> Curve:
    """Return at most ``4 * buckets`` points of a curve: of each piece the first, the lowest, the highest and the last.

    A curve that has no more points stays as it is.

    Args:
        x: positions, in the order of the curve.
        y: finite values.
        buckets: pieces, of as many points each.

    Raises:
        ValueError: if there is no bucket, or the lengths differ.
    """
    if buckets < 1 or len(x) != len(y):
        raise ValueError(f"buckets: expected one or more, and as many x as y; got {buckets}, {len(x)} and {len(y)}")
    if len(y) <= 4 * buckets:
        return list(x), list(y)
    values, kept = np.asarray(y, dtype=np.float64), set[int]()
    for piece in np.array_split(np.arange(len(y)), buckets):
        part = values[piece]
        kept |= {int(piece[0]), int(piece[part.argmin()]), int(piece[part.argmax()]), int(piece[-1])}
    order = sorted(kept)
    return [x[k] for k in order], [y[k] for k in order]
