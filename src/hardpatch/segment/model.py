"""UperNet on a plain ViT: a class for every pixel (Xiao et al., ECCV 2018, as BEiT and MAE use it on ADE20K)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpatch.data.reading import Reading
from hardpatch.models.batch_norm import BatchNorm2d
from hardpatch.models.encoder import Encoder
from hardpatch.models.pixels import normalize, register_normalization
from hardpatch.randomness import random_keep

POOLS = (1, 2, 3, 6)
AUXILIARY_CHANNELS = 256
LEVELS = 4
BLOCKS = {12: (4, 6, 8, 12), 24: (8, 12, 16, 24)}
"""Blocks after which mmsegmentation takes maps of MAE's ViT-B, and of BEiT's ViT-L, by depth."""


class ChannelDropout(nn.Module):
    """Dropout of whole channels in training, the same for any number of processes."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Drop channels of maps ``[B, C, h, w]``."""
        if not self.training or self.probability == 0.0:
            return x
        return x * random_keep(x, self.probability, (x.shape[1], 1, 1))


class ConvModule(nn.Sequential):
    """Convolution without bias that keeps the size, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2, bias=False)
        self.batch_norm = BatchNorm2d(outputs)
        self.activation = nn.ReLU()
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")


class FeaturePyramid(nn.Module):
    """Four maps of one scale to maps of 4, 2, 1 and 1/2 times that resolution (BEiT, MAE)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(width, width, kernel_size=2, stride=2),
                    BatchNorm2d(width),
                    nn.GELU(),
                    nn.ConvTranspose2d(width, width, kernel_size=2, stride=2),
                ),
                nn.ConvTranspose2d(width, width, kernel_size=2, stride=2),
                nn.Identity(),
                nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True),
            ]
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Scale four maps ``[B, D, h, w]`` to ``[B, D, 4h, 4w]``, ``[.., 2h, 2w]``, ``[.., h, w]``, ``[.., h/2, w/2]``.

        Half of an odd h or w is rounded up, so that a single row is still a map.
        """
        return [level(features) for level, features in zip(self.levels, maps, strict=True)]


class UperNetHead(nn.Module):
    """Pyramid pooling on the coarsest map, a top-down pathway to the finest, and a fusion of all of them.

    Parameter names are those of the head in ``transformers``, so that weights can be exchanged.

    Args:
        inputs: channels of each map, finest first.
        classes: number of outputs.
        channels: of the layers within.
        pools: sides of the grids that the coarsest map is averaged to.
        dropout: probability of dropping a channel before the classifier, in training.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        classes: int,
        channels: int = 512,
        pools: Sequence[int] = POOLS,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        *finer, coarsest = inputs
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), ConvModule(coarsest, channels, 1)) for side in pools
        )
        self.bottleneck = ConvModule(coarsest + len(pools) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(ConvModule(width, channels, 1) for width in finer)
        self.fpn_convs = nn.ModuleList(ConvModule(channels, channels, 3) for _ in finer)
        self.fpn_bottleneck = ConvModule(len(inputs) * channels, channels, 3)
        self.dropout = ChannelDropout(dropout)
        self.classifier = _classifier(channels, classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits ``[B, classes, h_0, w_0]`` of maps ``[B, inputs[i], h_i, w_i]``, finest first."""
        coarsest = maps[-1]
        pooled = [_resize(module(coarsest), coarsest) for module in self.psp_modules]
        summed = [lateral(features) for lateral, features in zip(self.lateral_convs, maps[:-1], strict=True)]
        summed.append(self.bottleneck(torch.cat([coarsest, *pooled], dim=1)))
        for level in range(len(summed) - 1, 0, -1):
            summed[level - 1] = summed[level - 1] + _resize(summed[level], summed[level - 1])
        smooth = [conv(features) for conv, features in zip(self.fpn_convs, summed[:-1], strict=True)]
        smooth.append(summed[-1])
        fused = self.fpn_bottleneck(torch.cat([_resize(features, smooth[0]) for features in smooth], dim=1))
        return self.classifier(self.dropout(fused))


class FCNHead(nn.Module):
    """Auxiliary head: a 3x3 convolution and a classifier (Long et al. 2015).

    Args:
        inputs: channels of the map.
        classes: number of outputs.
        channels: of the convolution.
        dropout: probability of dropping a channel before the classifier, in training.
    """

    def __init__(self, inputs: int, classes: int, channels: int = AUXILIARY_CHANNELS, dropout: float = 0.1) -> None:
        super().__init__()
        self.convs = nn.Sequential(ConvModule(inputs, channels, 3))
        self.dropout = ChannelDropout(dropout)
        self.classifier = _classifier(channels, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``[B, classes, h, w]`` of a map ``[B, inputs, h, w]``."""
        return self.classifier(self.dropout(self.convs(features)))


class Logits(NamedTuple):
    """Logits of the two heads, each at its own scale."""

    main: Tensor
    """``[B, classes, 4h, 4w]`` for ``h x w`` patches"""
    auxiliary: Tensor
    """``[B, classes, h, w]``"""


class UperNet(nn.Module):
    """Encoder with both heads; :func:`hardpatch.segment.measure.predict_logits` resizes the logits to the pixels.

    Args:
        encoder: is trained with the heads; loses its mask token.
        classes: number of classes, without ignored ones.
        mean: of each channel in [0, 1] units, by which images are normalized.
        std: of each channel, in the same units.
        reading: channels, type and range of the pixels; None is 8 bits.
        channels: of :class:`UperNetHead`; the auxiliary head has at most 256.
        blocks: the four blocks, counted from 1, after which maps are taken; None takes :func:`default_blocks`.
        dropout: of both heads.

    Raises:
        ValueError: if there are not four such blocks, or mean and std do not have the encoder's channels.
    """

    reading: Reading
    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self,
        encoder: Encoder,
        classes: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        reading: Reading | None = None,
        channels: int = 512,
        blocks: Sequence[int] | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.encoder, self.classes, self.channels = encoder, classes, channels
        encoder.mask_token = None
        self.blocks = tuple(default_blocks(len(encoder.blocks)) if blocks is None else blocks)
        if (
            len(self.blocks) != LEVELS
            or list(self.blocks) != sorted(set(self.blocks))
            or not (self.blocks[0] >= 1 and self.blocks[-1] <= len(encoder.blocks))
        ):
            raise ValueError(
                f"blocks: expected {LEVELS} increasing numbers from 1 to {len(encoder.blocks)}, got {list(self.blocks)}"
            )
        if not len(mean) == len(std) == encoder.channels:
            raise ValueError(f"mean, std: expected {encoder.channels} numbers each, got {len(mean)} and {len(std)}")
        register_normalization(self, mean, std, reading)
        for name, values in (("mean", mean), ("std", std)):  # part of the weights since the first version
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1))
        self.neck = FeaturePyramid(encoder.width)
        self.head = UperNetHead([encoder.width] * LEVELS, classes, channels, dropout=dropout)
        self.auxiliary_head = FCNHead(encoder.width, classes, min(channels, AUXILIARY_CHANNELS), dropout)

    def normalize(self, images: Tensor) -> Tensor:
        """Normalize uint8 images ``[B, C, H, W]`` for :meth:`forward`."""
        return normalize(images, self)

    def forward(self, images: Tensor) -> Logits:
        """Return the logits of both heads; images are normalized, ``[B, C, H, W]`` in multiples of the patch size."""
        patch = self.encoder.patch_size
        rows, columns = images.shape[2] // patch, images.shape[3] // patch
        tokens = self.encoder.intermediates(images, self.blocks)
        maps = self.neck([level.transpose(1, 2).unflatten(2, (rows, columns)) for level in tokens])
        return Logits(self.head(maps), self.auxiliary_head(maps[2]))


def default_blocks(depth: int) -> tuple[int, ...]:
    """Return the blocks after which maps are taken: :data:`BLOCKS` of 12 and 24 blocks, :func:`quarters` of others.

    Raises:
        ValueError: if the depth is below four.
    """
    return BLOCKS.get(depth) or quarters(depth)


def quarters(depth: int) -> tuple[int, ...]:
    """Return the blocks at 1/4, 2/4, 3/4 and 4/4 of an encoder's depth, counted from 1.

    Raises:
        ValueError: if the depth is below four.
    """
    if depth < LEVELS:
        raise ValueError(f"blocks: expected an encoder with {LEVELS} blocks or more, this one has {depth}")
    return tuple(depth * part // LEVELS for part in range(1, LEVELS + 1))


def _resize(features: Tensor, like: Tensor) -> Tensor:
    """Resize bilinearly to the height and width of ``like``."""
    return F.interpolate(features, size=like.shape[2:], mode="bilinear", align_corners=False)


def _classifier(channels: int, classes: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, classes, kernel_size=1)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
