"""Mask R-CNN: canvas, losses, detections, strides, anchors, and sizes that do not fit."""

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from hardpatch.detect.model import Canvas, mask_rcnn
from hardpatch.models.encoder import Encoder
from tests.detect.small import small_encoder


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


def small_detector(**overrides: Any) -> Any:
    """Mask R-CNN for three classes on a canvas of 64 px."""
    sizes: dict[str, Any] = {"image_size": 64, "channels": 16, "head_width": 16, "rois": 8} | overrides
    return mask_rcnn(small_encoder(), (0.5,) * 3, (0.25,) * 3, classes=3, **sizes)


def test_losses_are_finite_with_objects_and_without() -> None:
    model = small_detector().train()
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
    model = small_detector().eval()
    model.roi_heads.score_thresh = 0.0
    (detections,) = model([torch.randint(0, 256, (3, 20, 50), dtype=torch.uint8)])
    assert len(detections["boxes"]) > 0
    assert detections["masks"].shape[1:] == (1, 28, 28)
    assert detections["boxes"].min() >= 0
    assert detections["boxes"][:, 2].max() <= 50
    assert detections["boxes"][:, 3].max() <= 20


def test_strides_do_not_depend_on_the_first_batch() -> None:
    """Torchvision infers them from the largest image; a first batch of small images would make all later ones wrong."""
    pool = small_detector().roi_heads.box_roi_pool
    maps = {}
    for name, side in (("p2", 64), ("p3", 32), ("p4", 16), ("p5", 8)):
        maps[name] = torch.arange(float(side)).expand(1, 1, side, side)
    pooled = pool(maps, [torch.tensor([[8.0, 8.0, 15.0, 15.0]])], [(20, 20)])
    assert pool.scales == [1, 1 / 2, 1 / 4, 1 / 8]
    # each map holds its column indices, which torchvision puts at whole numbers; 7 cells of 1 px start at 8
    assert_close(pooled[0, 0, 0], torch.arange(8.0, 15.0) + 0.5)


def test_anchors_by_hand() -> None:
    model = small_detector(anchor_scale=4)
    images, _ = model.transform([torch.zeros(3, 64, 64, dtype=torch.uint8)])
    anchors = model.rpn.anchor_generator(images, list(model.backbone(images.tensors).values()))[0]
    assert len(anchors) == 3 * (64**2 + 32**2 + 16**2 + 8**2 + 4**2)
    assert anchors[1].tolist() == [-2, -2, 2, 2]  # stride 1, square
    assert anchors[-2].tolist() == [48 - 32, 48 - 32, 48 + 32, 48 + 32]  # stride 16, the last cell


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"image_size": 60}, r"image_size: expected a multiple of 16, four patches, got 60"),
        ({"image_size": 0}, r"image_size: expected a multiple of 16"),
        ({"window": 0}, r"window: expected 1 patch or more, got 0"),
        ({"global_blocks": 5}, r"global_blocks: expected 0 to 4, the number of blocks, got 5"),
    ],
)
def test_sizes_that_do_not_fit(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_detector(**sizes)


def test_patch_sizes_that_do_not_fit() -> None:
    encoder = Encoder(image_size=(14, 14), patch_size=7, width=32, depth=1, heads=2)
    with pytest.raises(ValueError, match="multiple of 4 px, got an encoder with 7"):
        mask_rcnn(encoder, (0.5,) * 3, (0.25,) * 3, classes=3)
