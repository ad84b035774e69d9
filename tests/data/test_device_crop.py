"""Crops computed for a batch on the device, here the CPU, compared with those computed one by one."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hardpatch.data.crop import crop_box
from hardpatch.data.device_crop import BOX_NUMBERS, crop, crop_boxes, resize_weights
from hardpatch.randomness import patch_noise
from tests.data.small import box_statistics, same_distribution

RATIO = (3 / 4, 4 / 3)


def rows_first(images: torch.Tensor) -> torch.Tensor:
    """Turn [B, C, H, W] into the layout of a device data set."""
    return images.transpose(1, 2).contiguous()


@settings(max_examples=40)
@given(
    # torch 2.15 computes wrong values for inputs and outputs of one pixel's width: it mistakes their memory format
    box=st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(2, 60), st.integers(2, 60)),
    size=st.tuples(st.integers(2, 50), st.integers(2, 50)),
    channels=st.sampled_from([1, 3]),
    saturated=st.booleans(),
)
def test_crop_equals_interpolate_within_a_gray_level(
    box: tuple[int, int, int, int], size: tuple[int, int], channels: int, saturated: bool
) -> None:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, channels, 100, 101), dtype=torch.uint8, generator=rng)
    if saturated:  # where bicubic interpolation overshoots
        images = (images > 127).byte() * 255
    top, left, h, w = box
    boxes = torch.tensor([box, box], dtype=torch.float32)
    out = crop(rows_first(images), boxes, torch.tensor([False, True]), size)
    part = images[:, :, top : top + h, left : left + w].float()
    expected = F.interpolate(part, size, mode="bicubic", antialias=True, align_corners=False)
    expected = expected.round().clamp(0, 255).int()
    assert out.dtype == torch.uint8
    assert out.is_contiguous()
    assert (out[0].int() - expected[0]).abs().max() <= 1
    assert (out[1].int() - expected[1].flip(2)).abs().max() <= 1


def test_crop_is_close_to_the_uint8_kernel_of_torch(photograph: np.ndarray) -> None:
    image = torch.from_numpy(photograph).permute(2, 0, 1)[None]
    boxes = torch.tensor([[20.0, 30.0, 400.0, 300.0]])
    out = crop(rows_first(image), boxes, torch.tensor([False]), (224, 224))
    part = image[:, :, 20:420, 30:330].contiguous(memory_format=torch.channels_last)
    expected = F.interpolate(part, (224, 224), mode="bicubic", antialias=True, align_corners=False)
    difference = (out.int() - expected.int()).abs()
    assert difference.max() <= 2
    assert (difference > 1).float().mean() < 1e-3
    assert difference.float().mean() < 0.2


def test_whole_image_at_its_own_size_is_unchanged() -> None:
    images = torch.randint(0, 256, (3, 3, 17, 23), dtype=torch.uint8)
    boxes = torch.tensor([[0.0, 0.0, 17.0, 23.0]]).repeat(3, 1)
    assert torch.equal(crop(rows_first(images), boxes, torch.zeros(3, dtype=torch.bool), (17, 23)), images)


@given(start=st.floats(0, 50), length=st.floats(0.01, 50), outputs=st.integers(1, 40))
def test_weights_sum_to_one_and_are_zero_outside(start: float, length: float, outputs: int) -> None:
    weights = resize_weights(torch.tensor([start]), torch.tensor([length]), 100, outputs)[0]
    assert torch.allclose(weights.sum(1), torch.ones(outputs), atol=1e-5)
    outside = torch.arange(100)
    outside = (outside + 1 < start - 1e-3) | (outside > start + length + 1e-3)
    assert (weights[:, outside] == 0).all()


@settings(max_examples=200)
@given(
    height=st.integers(1, 4000),
    width=st.integers(1, 4000),
    scale=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(lambda pair: (min(pair), max(pair))),
    noise=st.lists(st.floats(0, 1 - 2**-24, width=32), min_size=BOX_NUMBERS, max_size=BOX_NUMBERS),
)
def test_box_has_whole_pixels_and_lies_in_the_image(
    height: int, width: int, scale: tuple[float, float], noise: list[float]
) -> None:
    boxes = crop_boxes(torch.tensor([noise]), torch.tensor([height]), torch.tensor([width]), scale, RATIO)
    top, left, h, w = boxes[0].tolist()
    assert all(side == int(side) for side in (top, left, h, w))
    assert 0 <= top < top + h <= height
    assert 0 <= left < left + w <= width


@pytest.mark.parametrize(("height", "width"), [(200, 200), (120, 300), (300, 170), (40, 300)])
def test_boxes_have_the_distribution_of_crop_box(height: int, width: int) -> None:
    n, scale = 6000, (0.2, 1.0)
    noise = patch_noise(0, 0, torch.arange(n), BOX_NUMBERS)
    ours = crop_boxes(noise, torch.full((n,), height), torch.full((n,), width), scale, RATIO).double().numpy()
    rng = np.random.default_rng(0)
    theirs = np.array([crop_box(height, width, scale, RATIO, rng) for _ in range(n)])

    expected = box_statistics(theirs)
    for name, values in box_statistics(ours).items():
        assert same_distribution(values, expected[name]), name


@pytest.mark.parametrize(("height", "width"), [(10, 300), (300, 10), (1, 50), (1, 1), (7, 1000)])
def test_box_that_cannot_fit_is_central(height: int, width: int) -> None:
    noise = torch.rand(1, BOX_NUMBERS, generator=torch.Generator().manual_seed(0))
    boxes = crop_boxes(noise, torch.tensor([height]), torch.tensor([width]), (0.95, 1.0), RATIO)
    expected = crop_box(height, width, (0.95, 1.0), RATIO, np.random.default_rng(0))
    assert tuple(int(side) for side in boxes[0]) == expected
