import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from hardpatch.models.adapt import adapt, resample_channels, resample_patches
from hardpatch.models.encoder import Encoder
from hardpatch.models.encoder_settings import learn_positions
from hardpatch.models.positions import resample_positions
from hardpatch.models.transfer import unshare_relative_bias
from hardpatch.models.variant import Variant


def encoder_of(**changes: object) -> Encoder:
    torch.manual_seed(0)
    settings = {"image_size": (16, 24), "patch_size": 4, "width": 32, "depth": 2, "heads": 2}
    return Encoder(**settings | changes).eval()  # type: ignore[arg-type]


@given(st.integers(1, 6), st.integers(1, 6))
def test_the_sum_over_channels_stays(known: int, channels: int) -> None:
    kernels = torch.randn(3, known, 2, 2, dtype=torch.float64)
    resampled = resample_channels(kernels, channels)
    assert resampled.shape == (3, channels, 2, 2)
    assert_close(resampled.sum(1), kernels.sum(1))


def test_channels_by_hand() -> None:
    kernels = torch.tensor([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1)
    assert resample_channels(kernels, 4).flatten().tolist() == [0.75, 1.5, 2.25, 1.5]
    assert resample_channels(kernels, 1).flatten().tolist() == [6.0]
    assert resample_channels(kernels, 2).flatten().tolist() == [2.5, 3.5]
    assert torch.equal(resample_channels(kernels, 3), kernels)


def test_larger_patches_give_the_responses_of_smaller_ones() -> None:
    # enlarging loses nothing, so that the pseudo-inverse is exact: <resize(x), pinv(w)> = <x, w> for every patch
    kernels, patches = torch.randn(5, 3, 4, 4), torch.randn(7, 3, 4, 4)
    enlarged = F.interpolate(patches, size=(8, 8), mode="bicubic", antialias=True)
    responses = enlarged.flatten(1) @ resample_patches(kernels, 8).flatten(1).T
    assert_close(responses, patches.flatten(1) @ kernels.flatten(1).T, rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["sincos", "learned", "relative", "relative in each block", "rotary"])
def test_another_size_gives_what_the_encoder_gives_by_interpolation(kind: str) -> None:
    positions = {"rotary": None, "relative": "relative", "relative in each block": "relative"}.get(kind, "sincos")
    variant = Variant(rope_theta=100.0) if kind == "rotary" else Variant()
    encoder = encoder_of(positions=positions, drop_masked=positions != "relative", variant=variant)
    if kind == "learned":
        learn_positions(encoder, torch.randn(24, 32))
    if encoder.relative_bias is not None:
        encoder.relative_bias.table.normal_()
    if kind == "relative in each block":
        unshare_relative_bias(encoder)
    other, changes = adapt(encoder, image_size=(32, 20), patch_size=4, channels=3)
    images = torch.randn(2, 3, 32, 20)
    assert_close(other.eval()(images), encoder(images), rtol=1e-5, atol=1e-5)
    assert other.grid == (8, 5)
    assert len(changes) == 1
    same, changes = adapt(encoder, image_size=(16, 24), patch_size=4, channels=3)
    images = torch.randn(2, 3, 16, 24)
    assert torch.equal(same.eval()(images), encoder(images))
    assert changes == ()


@torch.no_grad()
def test_patches_and_channels_together() -> None:
    encoder = encoder_of()
    other, changes = adapt(encoder, image_size=(32, 48), patch_size=8, channels=1)
    assert other.grid == encoder.grid
    assert other.channels == 1
    assert len(changes) == 2
    assert torch.equal(other.positions, encoder.positions)  # type: ignore[arg-type]
    gray = torch.randn(2, 1, 16, 24)
    enlarged = F.interpolate(gray, scale_factor=2, mode="nearest")
    assert other.eval()(enlarged).shape == encoder(gray.expand(-1, 3, -1, -1)).shape


def test_positions_on_another_grid_are_those_of_resampling() -> None:
    encoder = encoder_of()
    other, _ = adapt(encoder, image_size=(24, 24), patch_size=4, channels=3)
    assert encoder.positions is not None
    assert torch.equal(other.positions, resample_positions(encoder.positions, (4, 6), (6, 6)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="patch_size: expected a divisor"):
        adapt(encoder, image_size=(25, 24), patch_size=4, channels=3)
