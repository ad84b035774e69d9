"""Plain Vision Transformer as the backbone of a detector.

Li et al., *Exploring Plain Vision Transformer Backbones for Object Detection* (ViTDet), ECCV 2022: attention within
windows in most blocks, and a pyramid of feature maps from the last one.
"""

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpatch.detect.relative import DecomposedPositions, attend
from hardpatch.errors import UserError
from hardpatch.models.block import NORM_EPS, Block
from hardpatch.models.encoder import Encoder, patch_grid
from hardpatch.models.positions import resample_positions
from hardpatch.patches import patchify


class ViTDet(nn.Module):
    """Encoder with windowed attention, and a pyramid of five maps from its last feature map (ViTDet, Sec. 3).

    The blocks are divided into ``global_blocks`` groups of equal size. The last block of each group attends over the
    whole image, the others within windows that do not overlap. Padding of the windows is not attended to. The class
    token is dropped after the embedding and the last norm is not applied, as in ViTDet.

    Args:
        encoder: the encoder, whose weights are trained in place.
        channels: of the maps.
        window: side of a window in patches; a window larger than the image is the whole image.
        global_blocks: number of blocks that attend over the whole image.
        relative_grid: (rows, columns) of patches in an image, to add
            :class:`~hardpatch.detect.relative.DecomposedPositions` to every block; None adds none. An encoder with a
            relative position bias from pre-training keeps that and gets no other.
        autocast: precision of encoder and pyramid, None for float32. The output is always float32: in half precision
            the corners of boxes would be off by pixels.

    Raises:
        ValueError: if the window is below 1, or there are fewer than ``global_blocks`` blocks.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        channels: int = 256,
        window: int = 14,
        global_blocks: int = 4,
        relative_grid: tuple[int, int] | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if window < 1:
            raise ValueError(f"window: expected 1 patch or more, got {window}")
        if lost := {"registers", "rope_theta", "pre_norm"} & encoder.variant.changes().keys():
            raise UserError(
                f"RUN: detection attends in windows of patches alone, and this encoder has {', '.join(sorted(lost))}; "
                "take an encoder without them"
            )
        self.encoder, self.window, self.autocast = encoder, window, autocast
        self.global_indices = global_block_indices(len(encoder.blocks), global_blocks)
        self.relative_positions = relative_grid is not None and encoder.relative_bias is None
        if self.relative_positions:
            assert relative_grid is not None
            self._add_positions(relative_grid)
        self.pyramid = SimplePyramid(encoder.width, channels)
        self.out_channels = channels  # read by torchvision
        for unused in (encoder.cls_token, encoder.mask_token, *encoder.norm.parameters()):
            if unused is not None:
                unused.requires_grad_(False)

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        """Return the maps ``p2`` to ``p6`` of normalized ``images [B, C, H, W]``.

        Each is float32 ``[B, channels, h, w]``. ``p2`` has four times the rows and columns of the patches, and each map
        half of those of the map before it.
        """
        with torch.autocast(images.device.type, self.autocast, enabled=self.autocast is not None):
            maps = self.pyramid(self.features(images))
        return OrderedDict((name, features.float()) for name, features in maps.items())

    def features(self, images: Tensor) -> Tensor:
        """Return the last feature map of the encoder: ``[B, C, H, W]`` -> ``[B, D, rows, columns]``."""
        encoder = self.encoder
        grid = patch_grid((images.shape[2], images.shape[3]), encoder.patch_size)
        window = (min(self.window, grid[0]), min(self.window, grid[1]))
        x = encoder.patch_embed(patchify(images, encoder.patch_size))
        if encoder.positions is not None:
            x = x + resample_positions(encoder.positions, encoder.grid, grid).to(x.dtype)
        bias = self._bias(grid)
        window_bias = bias if window == grid else _sum(self._bias(window), padding_bias(grid, window, x))
        for index, block in enumerate(encoder.blocks):
            assert isinstance(block, Block)
            whole = index in self.global_indices or window == grid
            if whole and not self.relative_positions:
                x = block(x, bias)
            else:
                x = windowed_block(block, x, grid, grid if whole else window, bias if whole else window_bias)
        return x.transpose(1, 2).unflatten(2, grid)

    def _add_positions(self, grid: tuple[int, int]) -> None:
        """Add relative positions to each block, as large as the window or image that it attends over."""
        window = (min(self.window, grid[0]), min(self.window, grid[1]))
        for index, block in enumerate(self.encoder.blocks):
            assert isinstance(block, Block)
            seen = grid if index in self.global_indices else window
            width = self.encoder.width // block.attn.heads
            block.attn.add_module("positions", DecomposedPositions(seen, width).to(block.attn.qkv.weight.device))

    def _bias(self, grid: tuple[int, int]) -> Tensor | None:
        """Return the relative position bias between patches ``[1, heads, N, N]``, None if the encoder has none."""
        relative = self.encoder.relative_bias
        return None if relative is None else relative(grid)[:, :, 1:, 1:]


class SimplePyramid(nn.Module):
    """Pyramid of four maps, each computed from the last map alone, and a subsampled fifth (ViTDet, Sec. 3, Fig. 2c).

    Each of the four is resized by deconvolution or pooling, then come 1x1 and 3x3 convolutions with layer norms.

    Args:
        width: channels of the input.
        channels: of the output maps.
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
        """Return maps of ``[B, width, h, w]``: ``p2`` (4h, 4w), ``p3`` (2h, 2w), ``p4``, ``p5`` (h/2, w/2), ``p6``."""
        maps = OrderedDict((name, level(x)) for name, level in self.levels.items())
        maps["p6"] = F.max_pool2d(maps["p5"], 1, stride=2)
        return maps


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of ``[B, C, H, W]``, at each position."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``[B, C, H, W]``."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def global_block_indices(depth: int, global_blocks: int) -> tuple[int, ...]:
    """Return the indices of the blocks that attend over the whole image.

    They are the last ones of ``global_blocks`` groups of equal size.

    Raises:
        ValueError: if there are fewer than ``global_blocks`` blocks.
    """
    if not 0 <= global_blocks <= depth:
        raise ValueError(f"global_blocks: expected 0 to {depth}, the number of blocks, got {global_blocks}")
    return tuple(depth * (k + 1) // global_blocks - 1 for k in range(global_blocks))


def windowed_block(
    block: Block, x: Tensor, grid: tuple[int, int], window: tuple[int, int], bias: Tensor | None
) -> Tensor:
    """Apply a block whose attention is restricted to windows: ``[B, N, D]`` -> ``[B, N, D]``.

    Args:
        block: a block of the encoder.
        x: the patches.
        grid: (rows, columns) of the image in patches.
        window: (rows, columns) of a window; ``grid`` for attention over the whole image.
        bias: added to the attention, ``[W or 1, heads or 1, L or 1, L]`` for W windows of L patches in an image.
    """
    windows = partition(block.norm1(x), grid, window)
    if bias is not None and len(bias) > 1:
        bias = bias.repeat(len(x), 1, 1, 1)
    attended = unpartition(attend(block.attn, windows, window, bias), grid, window)
    return block.after_attention(x, attended)


def partition(x: Tensor, grid: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """Divide the patches of a grid into windows: ``[B, N, D]`` -> ``[B * W, L, D]``, image after image.

    Rows of zeros below and columns of zeros on the right fill the last windows.
    """
    (rows, columns), (height, width) = grid, window
    x = x.unflatten(1, grid)
    x = F.pad(x, (0, 0, 0, -columns % width, 0, -rows % height))
    x = x.unflatten(1, (-1, height)).unflatten(3, (-1, width))  # [B, down, height, across, width, D]
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def unpartition(windows: Tensor, grid: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """Invert :func:`partition`: ``[B * W, L, D]`` -> ``[B, N, D]``."""
    down, across = (math.ceil(size / side) for size, side in zip(grid, window, strict=True))
    x = windows.unflatten(0, (-1, down, across)).unflatten(3, window)  # [B, down, across, height, width, D]
    x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return x[:, : grid[0], : grid[1]].flatten(1, 2)


def padding_bias(grid: tuple[int, int], window: tuple[int, int], like: Tensor) -> Tensor | None:
    """Return the attention bias of windows with padding: 0 for patches, minus infinity for padding.

    Returns:
        ``[W, 1, 1, L]`` with dtype and device of ``like``; None if there is no padding.
    """
    if grid[0] % window[0] == 0 and grid[1] % window[1] == 0:
        return None
    real = partition(like.new_ones(1, grid[0] * grid[1], 1), grid, window)
    return torch.zeros_like(real).masked_fill(real == 0, -math.inf).reshape(len(real), 1, 1, -1)


def _convolutions(width: int, channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(width, channels, 1, bias=False),
        ChannelNorm(channels),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        ChannelNorm(channels),
    ]


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Add two biases, each of which may be missing."""
    return first if second is None else second if first is None else first + second
