"""UperNet on a plain ViT: one class for every pixel (Xiao et al., ECCV 2018, as BEiT and MAE use it on ADE20K)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpatch.models.encoder import Encoder
from hardpatch.models.pixels import normalize

POOLS = (1, 2, 3, 6)
AUXILIARY_CHANNELS = 256
LEVELS = 4


class ConvModule(nn.Sequential):
    """A convolution without bias that keeps the size, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2, bias=False)
        self.batch_norm = nn.BatchNorm2d(outputs)
        self.activation = nn.ReLU()
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")


class FeaturePyramid(nn.Module):
    """Four maps of the same scale -> maps 4 and 2 times as fine, as they are, and half as fine (BEiT, MAE)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(width, width, kernel_size=2, stride=2),
                    nn.BatchNorm2d(width),
                    nn.GELU(),
                    nn.ConvTranspose2d(width, width, kernel_size=2, stride=2),
                ),
                nn.ConvTranspose2d(width, width, kernel_size=2, stride=2),
                nn.Identity(),
                nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True),
            ]
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """``[B, D, h, w]`` four times -> ``[B, D, 4h, 4w]``, ``[.., 2h, 2w]``, ``[.., h, w]``, ``[.., h/2, w/2]``.

        An odd h or w is halved upwards, so that a single row is still a map.
        """
        return [level(features) for level, features in zip(self.levels, maps, strict=True)]


class UperNetHead(nn.Module):
    """Pyramid pooling on the coarsest map, a top-down pathway to the finest, all of them fused.

    Parameter names are those of ``transformers``' head, so weights move freely.

    Args:
        inputs: channels of each map, finest first.
        classes: number of outputs.
        channels: of everything within.
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
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = _classifier(channels, classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """``[B, inputs[i], h_i, w_i]``, finest first -> logits ``[B, classes, h_0, w_0]``."""
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
    """One 3x3 convolution and a classifier: the auxiliary head (Long et al. 2015).

    Args:
        inputs: channels of its map.
        classes: number of outputs.
        channels: within.
        dropout: as of :class:`UperNetHead`.
    """

    def __init__(self, inputs: int, classes: int, channels: int = AUXILIARY_CHANNELS, dropout: float = 0.1) -> None:
        super().__init__()
        self.convs = nn.Sequential(ConvModule(inputs, channels, 3))
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = _classifier(channels, classes)

    def forward(self, features: Tensor) -> Tensor:
        """``[B, inputs, h, w]`` -> logits ``[B, classes, h, w]``."""
        return self.classifier(self.dropout(self.convs(features)))


class Logits(NamedTuple):
    """What the two heads say, each at its own scale."""

    main: Tensor
    """``[B, classes, 4h, 4w]`` for ``h x w`` patches"""
    auxiliary: Tensor
    """``[B, classes, h, w]``"""


class UperNet(nn.Module):
    """An encoder with both heads. Its output is at a quarter of the patch size; :func:`hardpatch.segment.measure.
    predict_logits` brings it to the pixels.

    Args:
        encoder: trained along; loses its mask token.
        classes: number of classes, those that are ignored not among them.
        mean, std: of each channel in [0, 1] units, by which images are normalized.
        channels: of :class:`UperNetHead`; the auxiliary head has at most 256.
        blocks: after which the four maps are taken, counted from 1; None takes 1/4, 2/4, 3/4 and all of them.
        dropout: of both heads.

    Raises:
        ValueError: if there are not four such blocks, or the channels do not fit the encoder's.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: Encoder,
        classes: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        channels: int = 512,
        blocks: Sequence[int] | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.encoder, self.classes, self.channels = encoder, classes, channels
        encoder.mask_token = None
        self.blocks = tuple(quarters(len(encoder.blocks)) if blocks is None else blocks)
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
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1))
        self.neck = FeaturePyramid(encoder.width)
        self.head = UperNetHead([encoder.width] * LEVELS, classes, channels, dropout=dropout)
        self.auxiliary_head = FCNHead(encoder.width, classes, min(channels, AUXILIARY_CHANNELS), dropout)

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 images ``[B, C, H, W]`` to what :meth:`forward` takes."""
        return normalize(images, self.mean, self.std)

    def forward(self, images: Tensor) -> Logits:
        """Normalized images ``[B, C, H, W]``, H and W multiples of the patch size, to the logits of both heads."""
        patch = self.encoder.patch_size
        rows, columns = images.shape[2] // patch, images.shape[3] // patch
        tokens = self.encoder.intermediates(images, self.blocks)
        maps = self.neck([level.transpose(1, 2).reshape(len(images), -1, rows, columns) for level in tokens])
        return Logits(self.head(maps), self.auxiliary_head(maps[2]))


def quarters(depth: int) -> tuple[int, ...]:
    """The blocks at 1/4, 2/4, 3/4 and 4/4 of an encoder of that depth, counted from 1.

    Raises:
        ValueError: if there are fewer than four.
    """
    if depth < LEVELS:
        raise ValueError(f"blocks: expected an encoder with {LEVELS} blocks or more, this one has {depth}")
    return tuple(depth * part // LEVELS for part in range(1, LEVELS + 1))


def _resize(features: Tensor, like: Tensor) -> Tensor:
    """Bilinear to the height and width of ``like``."""
    return F.interpolate(features, size=like.shape[2:], mode="bilinear", align_corners=False)


def _classifier(channels: int, classes: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, classes, kernel_size=1)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
