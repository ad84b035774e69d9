import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import RandomResizedCrop  # type: ignore[import-untyped]

from hardpatch.data.crop import crop_box, resize
from tests.data.small import box_statistics, same_distribution

RATIO = (3 / 4, 4 / 3)


@settings(max_examples=200, deadline=None)
@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    scale=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(lambda pair: (min(pair), max(pair))),
    seed=st.integers(0, 2**32),
)
def test_box_lies_in_the_image(height: int, width: int, scale: tuple[float, float], seed: int) -> None:
    top, left, h, w = crop_box(height, width, scale, RATIO, np.random.default_rng(seed))
    assert 0 <= top < top + h <= height
    assert 0 <= left < left + w <= width


@pytest.mark.parametrize(("height", "width"), [(200, 200), (120, 300), (300, 170)])
def test_boxes_have_the_distribution_of_torchvision(height: int, width: int) -> None:
    n, scale = 6000, (0.2, 1.0)
    rng = np.random.default_rng(0)
    ours = np.array([crop_box(height, width, scale, RATIO, rng) for _ in range(n)])
    blank = torch.empty(3, height, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = np.array([RandomResizedCrop.get_params(blank, list(scale), list(RATIO)) for _ in range(n)])

    expected = box_statistics(theirs)
    for name, values in box_statistics(ours).items():
        assert same_distribution(values, expected[name]), name


@pytest.mark.parametrize(("height", "width"), [(10, 300), (300, 10), (1, 50), (1, 1)])
def test_box_that_cannot_fit_is_central_as_in_torchvision(height: int, width: int) -> None:
    expected = RandomResizedCrop.get_params(torch.empty(3, height, width), [0.95, 1.0], list(RATIO))
    assert crop_box(height, width, (0.95, 1.0), RATIO, np.random.default_rng(0)) == tuple(expected)


@pytest.mark.parametrize("size", [(224, 224), (96, 160), (32, 32), (700, 600)])
@pytest.mark.parametrize("channels", [1, 3])
def test_resize_equals_pillow(photograph: np.ndarray, size: tuple[int, int], channels: int) -> None:
    image = photograph if channels == 3 else np.array(Image.fromarray(photograph).convert("L"))[:, :, None]
    out = resize(image, size)
    expected = np.asarray(Image.fromarray(image.squeeze()).resize(size[::-1], Image.Resampling.BICUBIC))
    assert out.dtype == np.uint8
    assert out.shape == (*size, channels)
    difference = np.abs(out.reshape(expected.shape).astype(int) - expected)
    assert difference.max() <= 2
    assert difference.mean() < 0.1


def test_overshoot_is_clamped_not_wrapped() -> None:
    step = np.zeros((8, 8, 3), np.uint8)
    step[:, 4:] = 255
    out = resize(step, (32, 32))[16, :, 0].astype(int)
    assert np.all(np.diff(out) >= 0)
    assert out[0] == 0
    assert out[-1] == 255
