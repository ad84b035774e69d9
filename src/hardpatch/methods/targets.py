"""What the student reconstructs, without gradient (paper, Sec. 3.1 and Table 1).

Pixels are the host's own, :func:`pixels`. What comes from another network is a function ``(pixels, sight, mask)`` of
the uint8 images ``[B, C, H, W]``, of what the teacher saw and of the mask, that returns the target of the masked
patches: :func:`teacher_features`, :class:`FrozenFeatures` or :class:`VisualTokens`.
"""

from typing import Protocol

import torch
from torch import Tensor

from hardpatch.methods.teacher import TeacherOutput
from hardpatch.models.frozen import FrozenTeacher
from hardpatch.models.tokenizer import Tokenizer
from hardpatch.patches import PatchIndices, gather, patchify


class Target(Protocol):
    """What is asked for at the masked patches."""

    def __call__(self, pixels: Tensor, sight: TeacherOutput | None, mask: PatchIndices) -> Tensor:
        """uint8 ``[B, C, H, W]`` -> ``[B, M, ...]``."""


@torch.no_grad()
def pixels(images: Tensor, patch_size: int, *, normalize: bool = False, eps: float = 1e-6) -> Tensor:
    """The pixels of each patch, ``[B, C, H, W]`` -> ``[B, N, p * p * C]``.

    With ``normalize`` each patch vector is brought to mean 0 and variance 1 (MAE, Sec. 3: "normalized pixels"), by the
    unbiased variance.
    """
    patches = patchify(images, patch_size)
    if not normalize:
        return patches
    mean, variance = patches.mean(dim=-1, keepdim=True), patches.var(dim=-1, keepdim=True)
    return (patches - mean) / (variance + eps).sqrt()


def teacher_features(pixels: Tensor, sight: TeacherOutput | None, mask: PatchIndices) -> Tensor:
    """The moving average's own features of the whole image, after the encoder's norm: ``[B, M, D]`` (BootMAE)."""
    assert sight is not None
    return gather(sight.latent[:, 1:], mask.masked)


class FrozenFeatures:
    """Features of a pre-trained network that does not learn: ``[B, M, T]`` (DINO, CLIP; MILAN)."""

    def __init__(self, network: FrozenTeacher) -> None:
        self.network = network

    def __call__(self, pixels: Tensor, sight: TeacherOutput | None, mask: PatchIndices) -> Tensor:
        return gather(self.network(pixels), mask.masked)


class VisualTokens:
    """Tokens of a discrete autoencoder: int64 ``[B, M]`` (BEiT).

    Args:
        tokenizer: see :mod:`hardpatch.models.tokenizer`.
        grid: (rows, columns) of patches.
    """

    def __init__(self, tokenizer: Tokenizer, grid: tuple[int, int]) -> None:
        self.tokenizer, self.grid = tokenizer, grid

    def __call__(self, pixels: Tensor, sight: TeacherOutput | None, mask: PatchIndices) -> Tensor:
        return gather(self.tokenizer.tokens(pixels, self.grid), mask.masked)
