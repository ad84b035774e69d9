"""Mask R-CNN (He et al., ICCV 2017) on a plain Vision Transformer, with the heads of ViTDet; boxes only by choice.

Images are placed in the upper left corner of a square canvas of fixed size; the rest is padding. Boxes are (left, top,
right, bottom) in pixels of the canvas.

The model takes a list of uint8 images ``[C, h, w]`` that fit the canvas. In training it also takes a dictionary of
targets for each: ``boxes [n, 4]``, ``labels`` int64 ``[n]`` from 1 and, with a mask head, ``masks`` uint8 ``[n, h, w]``
and perhaps ``has_mask`` bool ``[n]``, whose False leaves an object out of the mask loss. It then returns a dictionary
of losses; torchvision's sampling of boxes waits for the device. In eval mode it returns for each image up to 100
detections: ``boxes [n, 4]``, ``labels [n]``, ``scores [n]`` and, with a mask head, ``masks [n, 1, 28, 28]``,
probabilities within the box.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN  # type: ignore[import-untyped]
from torchvision.models.detection.anchor_utils import AnchorGenerator  # type: ignore[import-untyped]
from torchvision.models.detection.faster_rcnn import (  # type: ignore[import-untyped]
    FastRCNNConvFCHead,
    FastRCNNPredictor,
)
from torchvision.models.detection.image_list import ImageList  # type: ignore[import-untyped]
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor  # type: ignore[import-untyped]
from torchvision.models.detection.roi_heads import (  # type: ignore[import-untyped]
    RoIHeads,
    fastrcnn_loss,
    maskrcnn_loss,
)
from torchvision.models.detection.rpn import RPNHead  # type: ignore[import-untyped]
from torchvision.ops import MultiScaleRoIAlign  # type: ignore[import-untyped]
from torchvision.ops.poolers import initLevelMapper  # type: ignore[import-untyped]

from hardpatch.data.reading import Reading
from hardpatch.detect.sampling import use_seeded_samplers
from hardpatch.detect.vitdet import ChannelNorm, ViTDet
from hardpatch.models.encoder import Encoder
from hardpatch.models.pixels import normalize, register_normalization

LEVELS = ("p2", "p3", "p4", "p5")
"""Levels of the pyramid from which regions are pooled, with strides of 4, 8, 16 and 32 px for patches of 16 px."""
ASPECTS = (0.5, 1.0, 2.0)
"""Ratios of height to width of the anchors."""


class Canvas(nn.Module):
    """Normalization of uint8 images, and a square canvas on which they form a batch.

    It replaces torchvision's transform. Unlike that, it resizes neither images nor detections.

    Args:
        size: side of the canvas in pixels.
        mean: of each channel, for pixels in [0, 1].
        std: standard deviation likewise.
        reading: channels, type and range of the pixels; None is 8 bits.
    """

    reading: Reading
    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float], reading: Reading | None = None) -> None:
        super().__init__()
        self.size = size
        register_normalization(self, mean, std, reading)

    def forward(
        self, images: Sequence[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[ImageList, list[dict[str, Tensor]] | None]:
        """Normalize images uint8 ``[C, h, w]`` and pad them on the right and below with 0, the mean color.

        Returns:
            The batch float32 ``[B, C, size, size]`` with the (height, width) of each image, and the targets.

        Raises:
            ValueError: if an image is larger than the canvas.
        """
        batch = self.mean.new_zeros(len(images), len(self.mean), self.size, self.size)
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        for canvas, image, (height, width) in zip(batch, images, sizes, strict=True):
            if height > self.size or width > self.size:
                raise ValueError(f"images: expected at most {self.size}x{self.size} pixels, got {height}x{width}")
            canvas[:, :height, :width] = normalize(image, self)
        return ImageList(batch, sizes), targets

    def postprocess(
        self, result: list[dict[str, Tensor]], image_shapes: object, original_image_sizes: object
    ) -> list[dict[str, Tensor]]:
        """Return the detections unchanged: boxes in pixels of the canvas, masks relative to their boxes."""
        return result


class HeadsForPartialMasks(RoIHeads):  # type: ignore[misc]
    """Box and mask head, of which the mask head is trained on the objects whose mask is known."""

    known_masks: Tensor | None = None
    """boxes of the last batch whose mask is known; None if all are"""

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Return detections and losses, as torchvision's heads do."""
        self.known_masks = None
        if not self.training or targets is None or all(t["has_mask"].all() for t in targets if "has_mask" in t):
            return super().forward(features, proposals, image_shapes, targets)
        proposals, matched, labels, regression = self.select_training_samples(proposals, targets)
        box_features = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        loss_classifier, loss_box_reg = fastrcnn_loss(*self.box_predictor(box_features), labels, regression)
        positive = [torch.where(label > 0)[0] for label in labels]
        known = [p[t["has_mask"][m[p]]] for p, t, m in zip(positive, targets, matched, strict=True)]
        self.known_masks = torch.tensor(sum(map(len, known)), device=features["p2"].device)
        boxes = [box[k] for box, k in zip(proposals, known, strict=True)]
        logits = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, image_shapes)))
        masks, classes = [t["masks"] for t in targets], [t["labels"] for t in targets]
        loss_mask = maskrcnn_loss(logits, boxes, masks, classes, [m[k] for m, k in zip(matched, known, strict=True)])
        return [], {"loss_classifier": loss_classifier, "loss_box_reg": loss_box_reg, "loss_mask": loss_mask}


def mask_rcnn(
    encoder: Encoder,
    mean: Sequence[float],
    std: Sequence[float],
    reading: Reading | None = None,
    *,
    classes: int,
    image_size: int = 1024,
    window: int = 14,
    global_blocks: int = 4,
    channels: int = 256,
    head_width: int = 1024,
    rois: int = 512,
    anchor_scale: float = 8.0,
    relative_positions: bool = False,
    sampling_ratio: int = 0,
    autocast: torch.dtype | None = None,
    masks: bool = True,
) -> FasterRCNN:
    """Build Mask R-CNN, or Faster R-CNN without its mask head, on a :class:`~hardpatch.detect.vitdet.ViTDet`.

    Args:
        encoder: the encoder; its patch size is a multiple of 4.
        mean: of each channel, in the encoder's normalization.
        std: likewise.
        reading: of the pixels; None is 8 bits.
        classes: number of classes, without the background.
        image_size: side of the canvas in pixels, a multiple of four patches.
        window: side of a window in patches.
        global_blocks: number of blocks that attend over the whole image.
        channels: of the pyramid and of the heads' convolutions.
        head_width: of the box head's linear layer.
        rois: boxes per image on which the heads are trained.
        anchor_scale: side of the anchors, relative to the stride of their map.
        relative_positions: add decomposed relative positions to every block of the encoder.
        sampling_ratio: points of RoIAlign along each side of a cell; 0 adapts them to the size of the box.
        autocast: precision of encoder and pyramid, None for float32.
        masks: add the mask head.

    Raises:
        ValueError: if the sizes do not fit each other.
    """
    patch = encoder.patch_size
    check_sizes(patch, image_size)
    strides, grid = [patch // 4, patch // 2, patch, 2 * patch], (image_size // patch,) * 2
    sizes: dict[str, Any] = {"channels": channels, "window": window, "global_blocks": global_blocks}
    backbone = ViTDet(encoder, **sizes, relative_grid=grid if relative_positions else None, autocast=autocast)
    model = (MaskRCNN if masks else FasterRCNN)(
        backbone,
        rpn_anchor_generator=AnchorGenerator([(anchor_scale * k,) for k in [*strides, 4 * patch]], [ASPECTS] * 5),
        rpn_head=RPNHead(channels, len(ASPECTS), conv_depth=2),
        rpn_post_nms_top_n_train=1000,
        box_batch_size_per_image=rois,
        **_heads(channels, head_width, classes + 1, strides, sampling_ratio, masks=masks),
    )
    if masks:
        model.roi_heads.__class__ = HeadsForPartialMasks  # torchvision has no argument for it
    use_seeded_samplers(model)
    model.transform = Canvas(image_size, mean, std, reading)
    return model


def _heads(
    channels: int, head_width: int, outputs: int, strides: Sequence[int], sampling_ratio: int, *, masks: bool
) -> dict[str, nn.Module]:
    """Build the parts of the two heads, by torchvision's names, with layer norms.

    The box head has four hidden convolutions and a linear layer, the mask head four.
    """
    hidden = [channels] * 4
    box_head = {
        "box_roi_pool": _pool(7, strides, sampling_ratio),
        "box_head": FastRCNNConvFCHead((channels, 7, 7), hidden, [head_width], norm_layer=ChannelNorm),
        "box_predictor": FastRCNNPredictor(head_width, outputs),
    }
    if not masks:
        return box_head
    return box_head | {
        "mask_roi_pool": _pool(14, strides, sampling_ratio),
        "mask_head": MaskRCNNHeads(channels, hidden, 1, norm_layer=ChannelNorm),
        "mask_predictor": MaskRCNNPredictor(channels, channels, outputs),
    }


def check_sizes(patch: int, image_size: int) -> None:
    """Raise ValueError unless the pyramid fits patches and canvas, both in pixels."""
    if patch % 4:
        raise ValueError(f"patch_size: the pyramid needs patches of a multiple of 4 px, got an encoder with {patch}")
    if image_size < 4 * patch or image_size % (4 * patch):
        raise ValueError(f"image_size: expected a multiple of {4 * patch}, four patches, got {image_size}")


def _pool(cells: int, strides: Sequence[int], sampling_ratio: int) -> MultiScaleRoIAlign:
    """RoIAlign from the level that the area of a box determines (Lin et al. 2017, Eq. 1).

    The strides are set here, because torchvision infers them once, from the largest image of the first batch. If all
    images of that batch are smaller than the canvas, they would be wrong for the rest of the training.
    """
    pool = MultiScaleRoIAlign(list(LEVELS), cells, sampling_ratio)
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = initLevelMapper(2, 5, canonical_scale=14 * strides[2], canonical_level=4)
    return pool
