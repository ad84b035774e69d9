from collections.abc import Sequence

import numpy as np
import pytest

from hardpatch.data.left_out import LeftOut
from hardpatch.data.reading import RGB as RGB_READING
from hardpatch.data.reading import Reading, UndecodableImage
from hardpatch.data.statistics import IMAGENET_MEAN, IMAGENET_STD, channel_statistics, resolve_statistics
from hardpatch.errors import UserError


class ArraySource:
    """A source of arrays; None is an undecodable image."""

    classes: tuple[str, ...] | None = None
    skipped: tuple[LeftOut, ...] = ()

    def __init__(self, arrays: Sequence[np.ndarray | None]) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays)

    def name(self, i: int) -> str:
        return f"array {i}"

    def image(self, i: int, reading: Reading = RGB_READING) -> np.ndarray:
        array = self.arrays[i]
        if array is None:
            raise UndecodableImage(f"array {i}: broken")
        return array

    def encoded(self, i: int) -> None:
        return None

    def label(self, i: int) -> int | None:
        return None


def test_statistics_equal_numpy() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    mean, std = channel_statistics(ArraySource([*pixels[:10], None, *pixels[10:]]), Reading(3), seed=0)
    assert mean == pytest.approx(pixels.mean((0, 1, 2)) / 255)
    assert std == pytest.approx(pixels.std((0, 1, 2)) / 255)


def test_large_and_small_images_have_the_same_weight() -> None:
    source = ArraySource([np.zeros((2, 2, 1), np.uint8), np.full((90, 90, 1), 255, np.uint8)])
    mean, std = channel_statistics(source, Reading(1), seed=0)
    assert mean == pytest.approx((0.5,))
    assert std == pytest.approx((0.5,))


def test_sample_depends_on_the_seed() -> None:
    source = ArraySource([np.full((2, 2, 1), k, np.uint8) for k in range(200)])
    first = channel_statistics(source, Reading(1), seed=0, at_most=10)
    assert first == channel_statistics(source, Reading(1), seed=0, at_most=10)
    assert first != channel_statistics(source, Reading(1), seed=1, at_most=10)


def test_deviation_of_a_single_color_is_not_zero() -> None:
    mean, std = channel_statistics(ArraySource([np.full((4, 4, 3), 255, np.uint8)]), Reading(3), 0)
    assert mean == (1.0, 1.0, 1.0)
    assert min(std) > 0


def test_source_without_decodable_images() -> None:
    with pytest.raises(UserError, match=r"data\.mean: none of 2 images"):
        channel_statistics(ArraySource([None, None]), Reading(3), 0)


def test_values_and_names_of_statistics() -> None:
    def never() -> tuple[list[float], list[float]]:
        raise AssertionError("computed")

    assert resolve_statistics("imagenet", "imagenet", never) == (list(IMAGENET_MEAN), list(IMAGENET_STD))
    assert resolve_statistics((0.1, 0.2), [0.3, 0.4], never) == ([0.1, 0.2], [0.3, 0.4])
    with pytest.raises(AssertionError, match="computed"):
        resolve_statistics("imagenet", "computed", never)
    assert resolve_statistics("computed", [0.3], lambda: ((0.5,), (0.25,))) == ([0.5], [0.3])
    assert resolve_statistics([0.3], "computed", lambda: ((0.5,), (0.25,))) == ([0.3], [0.25])
