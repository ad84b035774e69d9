import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from hardpatch.detect.model import (
    Canvas,
    ChannelNorm,
    SimplePyramid,
    ViTDet,
    global_block_indices,
    mask_rcnn,
    padding_bias,
    partition,
    unpartition,
    windowed_block,
)
from hardpatch.models.block import Block
from hardpatch.models.encoder import Encoder
from hardpatch.models.positions import resample_positions
from hardpatch.patches import patchify


def encoder(depth: int = 4, **more: Any) -> Encoder:
    """For images of 16 x 24 px, patches of 4."""
    torch.manual_seed(0)
    made = Encoder(image_size=(16, 24), patch_size=4, width=32, depth=depth, heads=2, **more).eval()
    if made.relative_bias is not None:
        torch.nn.init.normal_(made.relative_bias.table)
    return made


def without_class_token(model: Encoder, images: Tensor) -> Tensor:
    """All blocks over the whole image, ``[B, D, rows, columns]``."""
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
    model = encoder(positions="relative", drop_masked=False) if relative else encoder()
    images = torch.randn(2, 3, 24, 32)
    whole = without_class_token(model, images)
    for window, global_blocks in [(8, 0), (100, 4), (1, 4)]:
        assert torch.equal(ViTDet(model, window=window, global_blocks=global_blocks).features(images), whole)
    assert not torch.allclose(ViTDet(model, window=3, global_blocks=2).features(images), whole)


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), height=st.integers(1, 4), width=st.integers(1, 4))
@torch.no_grad()
def test_windows_come_back_where_they_were(rows: int, columns: int, height: int, width: int) -> None:
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
    """Against attention over one cut-out after the other, with no padding anywhere."""
    block = Block(32, 2, layer_scale=0.5).eval()
    torch.nn.init.normal_(block.attn.qkv.weight, std=0.3)
    grid, window = (5, 7), (3, 4)
    x = torch.randn(2, 35, 32)
    of_window = torch.randn(1, 2, 12, 12) if relative else None
    normed, attended = block.norm1(x).reshape(2, 5, 7, 32), torch.empty(2, 5, 7, 32)
    for top in (0, 3):
        for left in (0, 4):
            part = normed[:, top : top + 3, left : left + 4]
            places = torch.arange(12).reshape(3, 4)[: part.shape[1], : part.shape[2]].flatten()
            bias = None if of_window is None else of_window[:, :, places][..., places]
            attended[:, top : top + 3, left : left + 4] = block.attn(part.flatten(1, 2), bias).reshape(part.shape)
    slow = x + block.ls1(attended.flatten(1, 2))
    slow = slow + block.ls2(block.mlp(block.norm2(slow)))
    padding = padding_bias(grid, window, x)
    assert padding is not None
    assert_close(
        windowed_block(block, x, grid, window, padding if of_window is None else padding + of_window),
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


def test_which_blocks_are_global() -> None:
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
        model = ViTDet(encoder(), window=4, global_blocks=global_blocks)
        same = torch.equal(model.features(images)[..., :4], model.features(changed)[..., :4])
        assert same != reaches


def test_what_is_not_used_is_not_trained() -> None:
    model = ViTDet(encoder(), channels=8, window=2, global_blocks=2)
    sum(level.square().sum() for level in model(torch.randn(1, 3, 16, 32)).values()).backward()
    for name, parameter in model.named_parameters():
        unused = name in ("encoder.cls_token", "encoder.norm.weight", "encoder.norm.bias")
        assert parameter.requires_grad != unused, name
        assert (parameter.grad is None) == unused, name


@torch.no_grad()
def test_shapes_of_the_pyramid() -> None:
    maps = ViTDet(encoder(), channels=16)(torch.randn(2, 3, 64, 96))
    assert {name: tuple(level.shape) for name, level in maps.items()} == {
        "p2": (2, 16, 64, 96),
        "p3": (2, 16, 32, 48),
        "p4": (2, 16, 16, 24),
        "p5": (2, 16, 8, 12),
        "p6": (2, 16, 4, 6),
    }
    assert torch.equal(maps["p6"], maps["p5"][:, :, ::2, ::2])
    halved = ViTDet(encoder(), channels=16, autocast=torch.bfloat16)(torch.randn(2, 3, 64, 96))
    assert {level.dtype for level in halved.values()} == {torch.float32}


@torch.no_grad()
def test_pyramid_levels_look_at_their_own_place() -> None:
    pyramid = SimplePyramid(8, 4).eval()
    x = torch.randn(1, 8, 8, 8)
    nudged = x.clone()
    nudged[:, :, 0, 0] += 1
    for before, after in zip(pyramid(x).values(), pyramid(nudged).values(), strict=True):
        moved = (before != after).any(dim=1)[0].nonzero()
        assert len(moved)
        assert moved.max() <= before.shape[2] * 3 // 8  # the 3x3 convolution reaches one cell further


@torch.no_grad()
def test_channel_norm_is_that_of_each_place() -> None:
    norm, x = ChannelNorm(6), torch.randn(2, 6, 3, 4)
    places = x.permute(0, 2, 3, 1).reshape(-1, 6)
    slow = torch.stack([(v - v.mean()) / (v.var(unbiased=False) + 1e-6).sqrt() for v in places])
    assert_close(norm(x).permute(0, 2, 3, 1).reshape(-1, 6), slow)


def test_the_canvas_normalizes_and_pads() -> None:
    canvas = Canvas(6, (0.5, 0.2), (0.25, 0.1))
    images = [torch.full((2, 3, 5), 255, dtype=torch.uint8), torch.zeros(2, 6, 1, dtype=torch.uint8)]
    batch, targets = canvas(images, [{}, {}])
    assert batch.image_sizes == [(3, 5), (6, 1)]
    assert batch.tensors.shape == (2, 2, 6, 6)
    assert_close(batch.tensors[0, :, :3, :5], torch.tensor([2.0, 8.0]).view(2, 1, 1).expand(2, 3, 5))
    assert_close(batch.tensors[1, :, :, :1], torch.tensor([-2.0, -2.0]).view(2, 1, 1).expand(2, 6, 1))
    assert batch.tensors[0, :, 3:].abs().sum() == 0
    assert batch.tensors[0, :, :, 5:].abs().sum() == 0
    assert targets == [{}, {}]
    with pytest.raises(ValueError, match="at most 6x6 pixels, got 7x2"):
        canvas([torch.zeros(2, 7, 2, dtype=torch.uint8)])


def detector(**more: Any) -> Any:
    made = encoder()
    settings: dict[str, Any] = {"image_size": 64, "channels": 16, "head_width": 16, "rois": 8} | more
    return mask_rcnn(made, (0.5,) * 3, (0.25,) * 3, classes=3, **settings)


def test_mask_rcnn_learns_from_boxes_and_from_none() -> None:
    model = detector().train()
    images = [torch.randint(0, 256, (3, 40, 64), dtype=torch.uint8), torch.zeros(3, 9, 11, dtype=torch.uint8)]
    masks = torch.zeros(2, 40, 64, dtype=torch.uint8)
    masks[0, 10:30, 5:25], masks[1, 2:9, 40:60] = 1, 1
    boxes = torch.tensor([[5.0, 10.0, 25.0, 30.0], [40.0, 2.0, 60.0, 9.0]])
    nothing = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, 9, 11, dtype=torch.uint8),
    }
    losses = model(images, [{"boxes": boxes, "labels": torch.tensor([1, 3]), "masks": masks}, nothing])
    assert set(losses) == {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"}
    assert all(bool(loss.isfinite()) and loss > 0 for loss in losses.values())
    assert all(bool(loss.isfinite()) for loss in model(images, [nothing, nothing]).values())


@torch.no_grad()
def test_detections_stay_on_the_canvas_and_in_the_image() -> None:
    model = detector().eval()
    model.roi_heads.score_thresh = 0.0
    found = model([torch.randint(0, 256, (3, 20, 50), dtype=torch.uint8)])[0]
    assert len(found["boxes"]) > 0
    assert found["masks"].shape[1:] == (1, 28, 28)
    assert found["boxes"].min() >= 0
    assert found["boxes"][:, 2].max() <= 50
    assert found["boxes"][:, 3].max() <= 20


def test_strides_do_not_hang_on_the_first_batch() -> None:
    """Torchvision guesses them from the largest image; a first batch of small images would spoil all later ones."""
    pool = detector().roi_heads.box_roi_pool
    maps = {}
    for name, side in (("p2", 64), ("p3", 32), ("p4", 16), ("p5", 8)):
        maps[name] = torch.arange(float(side)).expand(1, 1, side, side)
    pooled = pool(maps, [torch.tensor([[8.0, 8.0, 15.0, 15.0]])], [(20, 20)])
    assert pool.scales == [1, 1 / 2, 1 / 4, 1 / 8]
    # a map that holds its own column, which for torchvision stands at a whole number; 7 cells of 1 px from 8 on
    assert_close(pooled[0, 0, 0], torch.arange(8.0, 15.0) + 0.5)


def test_anchors_by_hand() -> None:
    model = detector(anchor_scale=4)
    images, _ = model.transform([torch.zeros(3, 64, 64, dtype=torch.uint8)])
    anchors = model.rpn.anchor_generator(images, list(model.backbone(images.tensors).values()))[0]
    assert len(anchors) == 3 * (64**2 + 32**2 + 16**2 + 8**2 + 4**2)
    assert anchors[1].tolist() == [-2, -2, 2, 2]  # stride 1, square
    assert anchors[-2].tolist() == [48 - 32, 48 - 32, 48 + 32, 48 + 32]  # stride 16, the last cell


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"image_size": 60}, r"image_size: expected a multiple of 16, four patches, got 60"),
        ({"image_size": 0}, r"image_size: expected a multiple of 16"),
        ({"window": 0}, r"window: expected 1 patch or more, got 0"),
        ({"global_blocks": 5}, r"global_blocks: expected 0 to 4, the number of blocks, got 5"),
    ],
)
def test_sizes_that_do_not_fit(more: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        detector(**more)


def test_patches_that_have_no_pyramid() -> None:
    made = Encoder(image_size=(14, 14), patch_size=7, width=32, depth=1, heads=2)
    with pytest.raises(ValueError, match="multiple of 4 px, got an encoder with 7"):
        mask_rcnn(made, (0.5,) * 3, (0.25,) * 3, classes=3)
