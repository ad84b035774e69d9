"""Values in bins: exact for integers of 16 bits and less, moments exact for all."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hardpatch.check.histogram import BINS, Histogram, bins_of, count_values, percentile


def histogram_of(*images: np.ndarray) -> Histogram:
    histogram = Histogram(images[0].shape[2])
    for pixels in images:
        infinite = np.isposinf(pixels).sum((0, 1)).astype(float)
        histogram.add(count_values(pixels), pixels.shape[0] * pixels.shape[1], infinite)
    return histogram


def test_moments_of_two_images_weigh_the_same() -> None:
    large, small = np.full((4, 4, 1), 30, np.uint8), np.full((1, 1, 1), 90, np.uint8)
    linear, square = histogram_of(large, small).moments(0, 100)
    assert linear.tolist() == pytest.approx([0.3 + 0.9])
    assert square.tolist() == pytest.approx([0.09 + 0.81])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "float32"])
def test_moments_are_those_of_the_cut_values(dtype: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 200, (7, 5, 3)).astype(dtype)
    linear, square = histogram_of(pixels).moments(50, 150)
    cut = ((pixels.astype(float) - 50) / 100).clip(0, 1)
    # 32-bit types have wider bins, of which two lie on the ends of the range
    assert linear == pytest.approx(cut.mean((0, 1)), abs=1e-9 if np.dtype(dtype).itemsize < 4 else 1e-3)
    assert square == pytest.approx((cut**2).mean((0, 1)), abs=1e-9 if np.dtype(dtype).itemsize < 4 else 1e-3)


def test_what_is_no_number_counts_as_low_and_infinity_as_high() -> None:
    pixels = np.array([np.nan, -np.inf, np.inf, 1.0], np.float32).reshape(2, 2, 1)
    linear, _ = histogram_of(pixels).moments(0, 2)
    assert linear.tolist() == [(0 + 0 + 1 + 0.5) / 4]


@given(arrays(np.float32, 20, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_bins_keep_the_order(values: np.ndarray) -> None:
    ordered = np.sort(values)
    bins = bins_of(ordered)
    assert (np.diff(bins) >= 0).all()
    assert 0 <= bins.min() <= bins.max() < BINS


def test_percentiles() -> None:
    value, weight = histogram_of(np.arange(1000, dtype=np.uint16).reshape(10, 100, 1)).spread()
    assert [percentile(value, weight, p) for p in (0, 0.1, 50, 99.9, 100)] == [0, 0, 499, 998, 999]
