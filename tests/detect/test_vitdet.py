"""Windowed attention against attention over cropped windows, and the pyramid of feature maps."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from hardpatch.detect.vitdet import (
    ChannelNorm,
    SimplePyramid,
    ViTDet,
    global_block_indices,
    padding_bias,
    partition,
    unpartition,
    windowed_block,
)
from hardpatch.models.block import Block
from hardpatch.models.encoder import Encoder
from hardpatch.models.positions import resample_positions
from hardpatch.patches import patchify
from tests.detect.small import small_encoder


def without_class_token(model: Encoder, images: Tensor) -> Tensor:
    """Apply all blocks to the whole image without the class token: ``[B, D, rows, columns]``."""
    grid = images.shape[2] // 4, images.shape[3] // 4
    x = model.patch_embed(patchify(images, 4))
    if model.positions is not None:
        x = x + resample_positions(model.positions, model.grid, grid)
    bias = None if model.relative_bias is None else model.relative_bias(grid)[:, :, 1:, 1:]
    for block in model.blocks:
        x = block(x, bias)
    return x.transpose(1, 2).reshape(len(x), -1, *grid)


@pytest.mark.parametrize("relative", [False, True])
@torch.no_grad()
def test_a_window_over_the_whole_image_is_full_attention(relative: bool) -> None:
    model = small_encoder(positions="relative", drop_masked=False) if relative else small_encoder()
    images = torch.randn(2, 3, 24, 32)
    whole = without_class_token(model, images)
    for window, global_blocks in [(8, 0), (100, 4), (1, 4)]:
        assert torch.equal(ViTDet(model, window=window, global_blocks=global_blocks).features(images), whole)
    assert not torch.allclose(ViTDet(model, window=3, global_blocks=2).features(images), whole)


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), height=st.integers(1, 4), width=st.integers(1, 4))
@torch.no_grad()
def test_unpartition_inverts_partition(rows: int, columns: int, height: int, width: int) -> None:
    x = torch.randn(2, rows * columns, 3)
    windows = partition(x, (rows, columns), (height, width))
    assert windows.shape == (2 * math.ceil(rows / height) * math.ceil(columns / width), height * width, 3)
    assert torch.equal(unpartition(windows, (rows, columns), (height, width)), x)


def test_a_window_by_hand() -> None:
    # 0 1 2
    # 3 4 5 in windows of 2 x 2: the second is half empty, the lower two are too
    # 6 7 8
    windows = partition(torch.arange(9.0).reshape(1, 9, 1) + 1, (3, 3), (2, 2))[..., 0] - 1
    assert windows.tolist() == [[0, 1, 3, 4], [2, -1, 5, -1], [6, 7, -1, -1], [8, -1, -1, -1]]
    bias = padding_bias((3, 3), (2, 2), windows)
    assert bias is not None
    assert bias.shape == (4, 1, 1, 4)
    assert torch.equal(bias[:, 0, 0] == 0, windows >= 0)
    assert padding_bias((4, 6), (2, 3), windows) is None


@pytest.mark.parametrize("relative", [False, True])
@torch.no_grad()
def test_each_window_attends_to_its_own_patches_only(relative: bool) -> None:
    """Compare with attention over one window after the other, without padding."""
    block = Block(32, 2, layer_scale=0.5).eval()
    torch.nn.init.normal_(block.attn.qkv.weight, std=0.3)
    grid, window = (5, 7), (3, 4)
    x = torch.randn(2, 35, 32)
    window_bias = torch.randn(1, 2, 12, 12) if relative else None
    normed, attended = block.norm1(x).reshape(2, 5, 7, 32), torch.empty(2, 5, 7, 32)
    for top in (0, 3):
        for left in (0, 4):
            part = normed[:, top : top + 3, left : left + 4]
            indices = torch.arange(12).reshape(3, 4)[: part.shape[1], : part.shape[2]].flatten()
            bias = None if window_bias is None else window_bias[:, :, indices][..., indices]
            attended[:, top : top + 3, left : left + 4] = block.attn(part.flatten(1, 2), bias).reshape(part.shape)
    slow = x + block.ls1(attended.flatten(1, 2))
    slow = slow + block.ls2(block.mlp(block.norm2(slow)))
    padding = padding_bias(grid, window, x)
    assert padding is not None
    assert_close(
        windowed_block(block, x, grid, window, padding if window_bias is None else padding + window_bias),
        slow,
        rtol=1e-5,
        atol=1e-5,
    )


@torch.no_grad()
def test_drop_path_leaves_out_whole_images() -> None:
    block = Block(32, 2, drop_path=0.5).train()
    torch.manual_seed(0)
    x = torch.randn(200, 6, 32)
    out = windowed_block(block, x, (2, 3), (2, 2), padding_bias((2, 3), (2, 2), x))
    untouched = (out == x).flatten(1).all(dim=1).float().mean()
    assert 0.15 < untouched < 0.35  # both branches dropped, all patches at once: a quarter of the images


def test_global_block_indices_by_hand() -> None:
    assert global_block_indices(12, 4) == (2, 5, 8, 11)  # detectron2's configuration for ViT-B
    assert global_block_indices(24, 4) == (5, 11, 17, 23)
    assert global_block_indices(32, 4) == (7, 15, 23, 31)
    assert global_block_indices(4, 4) == (0, 1, 2, 3)
    assert global_block_indices(6, 0) == ()
    with pytest.raises(ValueError, match="global_blocks: expected 0 to 3"):
        global_block_indices(3, 4)


@torch.no_grad()
def test_global_blocks_see_beyond_their_window() -> None:
    images = torch.randn(1, 3, 16, 32)
    changed = images.clone()
    changed[:, :, :, 24:] += 1  # the last two columns of patches
    for global_blocks, reaches in [(0, False), (1, True)]:
        model = ViTDet(small_encoder(), window=4, global_blocks=global_blocks)
        same = torch.equal(model.features(images)[..., :4], model.features(changed)[..., :4])
        assert same != reaches


def test_unused_parameters_are_not_trained() -> None:
    model = ViTDet(small_encoder(), channels=8, window=2, global_blocks=2)
    sum(level.square().sum() for level in model(torch.randn(1, 3, 16, 32)).values()).backward()
    for name, parameter in model.named_parameters():
        unused = name in ("encoder.cls_token", "encoder.norm.weight", "encoder.norm.bias")
        assert parameter.requires_grad != unused, name
        assert (parameter.grad is None) == unused, name


@torch.no_grad()
def test_shapes_of_the_pyramid() -> None:
    maps = ViTDet(small_encoder(), channels=16)(torch.randn(2, 3, 64, 96))
    assert {name: tuple(level.shape) for name, level in maps.items()} == {
        "p2": (2, 16, 64, 96),
        "p3": (2, 16, 32, 48),
        "p4": (2, 16, 16, 24),
        "p5": (2, 16, 8, 12),
        "p6": (2, 16, 4, 6),
    }
    assert torch.equal(maps["p6"], maps["p5"][:, :, ::2, ::2])
    halved = ViTDet(small_encoder(), channels=16, autocast=torch.bfloat16)(torch.randn(2, 3, 64, 96))
    assert {level.dtype for level in halved.values()} == {torch.float32}


@torch.no_grad()
def test_pyramid_levels_are_aligned() -> None:
    pyramid = SimplePyramid(8, 4).eval()
    x = torch.randn(1, 8, 8, 8)
    nudged = x.clone()
    nudged[:, :, 0, 0] += 1
    for before, after in zip(pyramid(x).values(), pyramid(nudged).values(), strict=True):
        moved = (before != after).any(dim=1)[0].nonzero()
        assert len(moved)
        assert moved.max() <= before.shape[2] * 3 // 8  # the 3x3 convolution reaches one cell further


@torch.no_grad()
def test_channel_norm_equals_a_loop_over_positions() -> None:
    norm, x = ChannelNorm(6), torch.randn(2, 6, 3, 4)
    vectors = x.permute(0, 2, 3, 1).reshape(-1, 6)
    slow = torch.stack([(v - v.mean()) / (v.var(unbiased=False) + 1e-6).sqrt() for v in vectors])
    assert_close(norm(x).permute(0, 2, 3, 1).reshape(-1, 6), slow)
