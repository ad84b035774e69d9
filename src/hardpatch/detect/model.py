"""A plain Vision Transformer as the backbone of Mask R-CNN (ViTDet: Li et al., *Exploring Plain Vision Transformer
Backbones for Object Detection*, ECCV 2022).

Images stand in the upper left corner of a square canvas of fixed size; the rest is padding. Boxes are (left, top,
right, bottom) in pixels of the canvas throughout.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN  # type: ignore[import-untyped]
from torchvision.models.detection.anchor_utils import AnchorGenerator  # type: ignore[import-untyped]
from torchvision.models.detection.faster_rcnn import (  # type: ignore[import-untyped]
    FastRCNNConvFCHead,
    FastRCNNPredictor,
)
from torchvision.models.detection.image_list import ImageList  # type: ignore[import-untyped]
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor  # type: ignore[import-untyped]
from torchvision.models.detection.rpn import RPNHead  # type: ignore[import-untyped]
from torchvision.ops import MultiScaleRoIAlign, stochastic_depth  # type: ignore[import-untyped]
from torchvision.ops.poolers import initLevelMapper  # type: ignore[import-untyped]

from hardpatch.models.block import NORM_EPS, Block
from hardpatch.models.encoder import Encoder, patch_grid
from hardpatch.models.positions import resample_positions
from hardpatch.patches import patchify

LEVELS = ("p2", "p3", "p4", "p5")
"""Of the pyramid, finest first: strides of 4, 8, 16 and 32 px for patches of 16 px. ``p6`` is ``p5`` thinned out."""
ASPECTS = (0.5, 1.0, 2.0)


class ViTDet(nn.Module):
    """The last feature map of an encoder as a pyramid of five maps (ViTDet, Sec. 3).

    The blocks are cut into ``global_blocks`` equal runs; the last block of each attends over the whole image, the
    others within windows that do not overlap. Patches that pad a window are not attended to. The class token is left
    out after the embedding, as in ViTDet: a window has no place for it, and nothing reads it. So is the last norm.

    Args:
        encoder: pre-trained or not; trained further in place.
        channels: of the maps.
        window: side of a window in patches; a larger one than the image is the whole image.
        global_blocks: how many blocks attend over the whole image.
        autocast: precision of encoder and pyramid, None for float32. The output is float32 always: in half precision
            the corners of boxes would be off by pixels.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        channels: int = 256,
        window: int = 14,
        global_blocks: int = 4,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if window < 1:
            raise ValueError(f"window: expected 1 patch or more, got {window}")
        self.encoder, self.window, self.autocast = encoder, window, autocast
        self.global_at = global_indices(len(encoder.blocks), global_blocks)
        self.pyramid = SimplePyramid(encoder.width, channels)
        self.out_channels = channels  # torchvision asks for it
        for unused in (encoder.cls_token, encoder.mask_token, *encoder.norm.parameters()):
            if unused is not None:
                unused.requires_grad_(False)

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        """Normalized ``images [B, C, H, W]`` -> ``p2`` to ``p6``, float32 ``[B, channels, h, w]``, with ``h`` four
        times the rows of patches, then half of the one before.
        """
        with torch.autocast(images.device.type, self.autocast, enabled=self.autocast is not None):
            maps = self.pyramid(self.features(images))
        return OrderedDict((name, features.float()) for name, features in maps.items())

    def features(self, images: Tensor) -> Tensor:
        """The last feature map, ``[B, C, H, W]`` -> ``[B, D, rows, columns]``."""
        encoder = self.encoder
        grid = patch_grid((images.shape[2], images.shape[3]), encoder.patch_size)
        window = (min(self.window, grid[0]), min(self.window, grid[1]))
        x = encoder.patch_embed(patchify(images, encoder.patch_size))
        if encoder.positions is not None:
            x = x + resample_positions(encoder.positions, encoder.grid, grid).to(x.dtype)
        bias = self._bias(grid)
        window_bias = bias if window == grid else _sum(self._bias(window), padding_bias(grid, window, x))
        for number, block in enumerate(encoder.blocks):
            assert isinstance(block, Block)
            if number in self.global_at or window == grid:
                x = block(x, bias)
            else:
                x = windowed(block, x, grid, window, window_bias)
        return x.transpose(1, 2).unflatten(2, grid)

    def _bias(self, grid: tuple[int, int]) -> Tensor | None:
        """The relative position bias between patches, where the encoder has one: ``[1, heads, N, N]``."""
        relative = self.encoder.relative_bias
        return None if relative is None else relative(grid)[:, :, 1:, 1:]


class SimplePyramid(nn.Module):
    """Four maps out of one, each from it alone, and a fifth by subsampling (ViTDet, Sec. 3 and Fig. 2c).

    Each is a deconvolution or pooling, then 1x1 and 3x3 convolutions with layer norms over the channels.

    Args:
        width: channels of the map that goes in.
        channels: of those that come out.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.levels = nn.ModuleDict(
            {
                "p2": nn.Sequential(
                    nn.ConvTranspose2d(width, width // 2, 2, stride=2),
                    ChannelNorm(width // 2),
                    nn.GELU(),
                    nn.ConvTranspose2d(width // 2, width // 4, 2, stride=2),
                    *_convolutions(width // 4, channels),
                ),
                "p3": nn.Sequential(
                    nn.ConvTranspose2d(width, width // 2, 2, stride=2), *_convolutions(width // 2, channels)
                ),
                "p4": nn.Sequential(*_convolutions(width, channels)),
                "p5": nn.Sequential(nn.MaxPool2d(2), *_convolutions(width, channels)),
            }
        )

    def forward(self, x: Tensor) -> "OrderedDict[str, Tensor]":
        """``[B, width, h, w]`` -> ``p2`` (4h, 4w), ``p3`` (2h, 2w), ``p4``, ``p5`` (h/2, w/2), ``p6`` (h/4, w/4)."""
        maps = OrderedDict((name, level(x)) for name, level in self.levels.items())
        maps["p6"] = F.max_pool2d(maps["p5"], 1, stride=2)
        return maps


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of ``[B, C, H, W]``, place by place."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def global_indices(depth: int, global_blocks: int) -> tuple[int, ...]:
    """Which blocks, from 0, attend over the whole image: the last of each of ``global_blocks`` runs of equal length.

    Raises:
        ValueError: if there are not that many blocks.
    """
    if not 0 <= global_blocks <= depth:
        raise ValueError(f"global_blocks: expected 0 to {depth}, the number of blocks, got {global_blocks}")
    return tuple(depth * (k + 1) // global_blocks - 1 for k in range(global_blocks))


def windowed(block: Block, x: Tensor, grid: tuple[int, int], window: tuple[int, int], bias: Tensor | None) -> Tensor:
    """A block of which only the attention is cut into windows: ``[B, N, D]`` -> ``[B, N, D]``.

    ``bias`` is added to the attention: ``[W or 1, heads or 1, L or 1, L]``, for W windows of L patches in an image.
    """
    cut = partition(block.norm1(x), grid, window)
    if bias is not None and len(bias) > 1:
        bias = bias.repeat(len(x), 1, 1, 1)
    attended = unpartition(block.attn(cut, bias), grid, window)
    x = x + stochastic_depth(block.ls1(attended), block.drop_path, "row", block.training)
    return x + stochastic_depth(block.ls2(block.mlp(block.norm2(x))), block.drop_path, "row", block.training)


def partition(x: Tensor, grid: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """Patches ``[B, N, D]`` of a ``grid`` of (rows, columns) -> the windows of one image after those of the other,
    ``[B * W, L, D]``; rows and columns of zeros, below and on the right, fill the last ones up.
    """
    (rows, columns), (height, width) = grid, window
    x = x.unflatten(1, grid)
    x = F.pad(x, (0, 0, 0, -columns % width, 0, -rows % height))
    x = x.unflatten(1, (-1, height)).unflatten(3, (-1, width))  # [B, down, height, across, width, D]
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def unpartition(windows: Tensor, grid: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """The inverse of :func:`partition`: ``[B * W, L, D]`` -> ``[B, N, D]``."""
    down, across = (math.ceil(size / side) for size, side in zip(grid, window, strict=True))
    x = windows.unflatten(0, (-1, down, across)).unflatten(3, window)  # [B, down, across, height, width, D]
    x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return x[:, : grid[0], : grid[1]].flatten(1, 2)


def padding_bias(grid: tuple[int, int], window: tuple[int, int], like: Tensor) -> Tensor | None:
    """What keeps attention off the padding: 0 for patches and minus infinity for padding, ``[W, 1, 1, L]`` in type and
    device of ``like``; None where the windows fit.
    """
    if grid[0] % window[0] == 0 and grid[1] % window[1] == 0:
        return None
    real = partition(like.new_ones(1, grid[0] * grid[1], 1), grid, window)
    return torch.zeros_like(real).masked_fill(real == 0, -math.inf).reshape(len(real), 1, 1, -1)


class Canvas(nn.Module):
    """From uint8 images of any size to a normalized batch on a square canvas. It takes the place of torchvision's
    transform and, unlike that, resizes nothing, neither what goes in nor what comes out.

    Args:
        size: side of the canvas in pixels.
        mean, std: of each channel, for pixels in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(
        self, images: Sequence[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[ImageList, list[dict[str, Tensor]] | None]:
        """uint8 ``[C, h, w]`` each -> ``[B, C, size, size]``, padded with 0, the mean color.

        Raises:
            ValueError: if an image is larger than the canvas.
        """
        batch = self.mean.new_zeros(len(images), len(self.mean), self.size, self.size)
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        for place, image, (height, width) in zip(batch, images, sizes, strict=True):
            if height > self.size or width > self.size:
                raise ValueError(f"images: expected at most {self.size}x{self.size} pixels, got {height}x{width}")
            place[:, :height, :width] = (image.float() / 255 - self.mean) / self.std
        return ImageList(batch, sizes), targets

    def postprocess(
        self, result: list[dict[str, Tensor]], image_shapes: object, original_image_sizes: object
    ) -> list[dict[str, Tensor]]:
        """Leave boxes on the canvas, and masks relative to their boxes."""
        return result


def mask_rcnn(
    encoder: Encoder,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    classes: int,
    image_size: int = 1024,
    window: int = 14,
    global_blocks: int = 4,
    channels: int = 256,
    head_width: int = 1024,
    rois: int = 512,
    anchor_scale: float = 8.0,
    autocast: torch.dtype | None = None,
) -> MaskRCNN:
    """Mask R-CNN (He et al. 2017) on a :class:`ViTDet` with ViTDet's heads: two hidden convolutions in the region
    proposal network, four and a linear layer for the boxes, four for the masks, with layer norms.

    It takes a list of uint8 images ``[C, h, w]`` of at most ``image_size``, and in training a dictionary of targets for
    each: ``boxes [n, 4]``, ``labels`` int64 ``[n]`` from 1, ``masks`` uint8 ``[n, h, w]``. It gives a dictionary of
    losses in training, else for each image up to 100 detections: ``boxes``, ``labels``, ``scores [n]`` and ``masks
    [n, 1, 28, 28]``, probabilities within the box. In training it waits for the device here and there, which is
    torchvision's way of sampling boxes.

    Args:
        encoder: of patches whose side is a multiple of 4.
        mean, std: the encoder's normalization.
        classes: without the background.
        image_size: side of the canvas in pixels, a multiple of four patches.
        window, global_blocks, channels, autocast: see :class:`ViTDet`.
        head_width: of the linear layer for the boxes.
        rois: boxes of an image that the heads are trained on at a time.
        anchor_scale: side of the anchors in cells of their map; 8 are 32 to 512 px for patches of 16 px.

    Raises:
        ValueError: if sizes do not fit each other.
    """
    _check_sizes(encoder.patch_size, image_size)
    patch = encoder.patch_size
    strides = [patch // 4, patch // 2, patch, 2 * patch]
    backbone = ViTDet(encoder, channels=channels, window=window, global_blocks=global_blocks, autocast=autocast)
    anchors = AnchorGenerator([(anchor_scale * stride,) for stride in [*strides, 4 * patch]], [ASPECTS] * 5)
    hidden = [channels] * 4
    model = MaskRCNN(
        backbone,
        rpn_anchor_generator=anchors,
        rpn_head=RPNHead(channels, len(ASPECTS), conv_depth=2),
        rpn_post_nms_top_n_train=1000,
        box_roi_pool=_pool(7, strides),
        box_head=FastRCNNConvFCHead((channels, 7, 7), hidden, [head_width], norm_layer=ChannelNorm),
        box_predictor=FastRCNNPredictor(head_width, classes + 1),
        box_batch_size_per_image=rois,
        mask_roi_pool=_pool(14, strides),
        mask_head=MaskRCNNHeads(channels, hidden, 1, norm_layer=ChannelNorm),
        mask_predictor=MaskRCNNPredictor(channels, channels, classes + 1),
    )
    model.transform = Canvas(image_size, mean, std)
    return model


def _check_sizes(patch: int, image_size: int) -> None:
    if patch % 4:
        raise ValueError(f"patch_size: the pyramid needs patches of a multiple of 4 px, got an encoder with {patch}")
    if image_size < 4 * patch or image_size % (4 * patch):
        raise ValueError(f"image_size: expected a multiple of {4 * patch}, four patches, got {image_size}")


def _pool(cells: int, strides: Sequence[int]) -> MultiScaleRoIAlign:
    """RoIAlign from the level that the area of a box says (Lin et al. 2017, Eq. 1).

    torchvision would guess the strides from the first batch it sees, taking its largest image for the canvas: wrong,
    and for good, when all images of that batch are small.
    """
    pool = MultiScaleRoIAlign(list(LEVELS), cells, sampling_ratio=2)
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = initLevelMapper(2, 5, canonical_scale=14 * strides[2], canonical_level=4)
    return pool


def _convolutions(width: int, channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(width, channels, 1, bias=False),
        ChannelNorm(channels),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        ChannelNorm(channels),
    ]


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return first if second is None else second if first is None else first + second
