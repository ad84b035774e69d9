import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardpatch.page.thin import thin

CURVES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400)


@given(CURVES, st.integers(1, 20))
def test_a_thinned_curve_keeps_its_extremes_its_ends_and_its_order(values: list[float], buckets: int) -> None:
    steps = [float(3 * k) for k in range(len(values))]
    x, y = thin(steps, values, buckets)
    assert (min(y), max(y), y[0], y[-1]) == (min(values), max(values), values[0], values[-1])
    assert len(x) == len(y) <= max(4 * buckets, 1)
    assert x == sorted(set(x))
    assert all(values[int(step / 3)] == value for step, value in zip(x, y, strict=True))


@given(CURVES, st.integers(1, 20))
def test_every_piece_keeps_its_extremes(values: list[float], buckets: int) -> None:
    _, y = thin(range(len(values)), values, buckets)
    for piece in np.array_split(np.array(values), buckets):
        if len(piece):
            assert {piece.min(), piece.max()} <= set(y)


def test_a_short_curve_stays_as_it_is() -> None:
    assert thin([1, 2, 3, 4], [5.0, 1.0, 7.0, 2.0], 1) == ([1, 2, 3, 4], [5.0, 1.0, 7.0, 2.0])
    assert thin([1, 2, 3, 4, 5], [5.0, 1.0, 2.0, 7.0, 2.0], 1) == ([1, 2, 4, 5], [5.0, 1.0, 7.0, 2.0])


def test_curves_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="as many x as y"):
        thin([1], [1.0, 2.0])
