"""Targets of the reconstruction, without gradient (paper, Sec. 3.2 and Table 1).

Pixels are the host's own, :func:`pixels`. A target that comes from another network is a callable of the uint8 images
``[B, C, H, W]``, the teacher's output and the mask, and returns the targets of the masked patches:
:class:`TeacherFeatures`, :class:`FrozenFeatures` or :class:`VisualTokens`.
"""

from typing import Protocol

import torch
from torch import Tensor

from hardpatch.methods.base import Host
from hardpatch.methods.teacher import TeacherOutput
from hardpatch.models.frozen import FrozenTeacher
from hardpatch.models.tokenizer import Tokenizer
from hardpatch.patches import PatchIndices, gather, patchify


class Target(Protocol):
    """Targets of the masked patches from another network."""

    uses_teacher: bool
    """Whether the teacher has to run for them."""

    def __call__(self, pixels: Tensor, output: TeacherOutput | None, mask: PatchIndices) -> Tensor:
        """Return ``[B, M, ...]`` for uint8 images ``[B, C, H, W]``."""


@torch.no_grad()
def pixels(images: Tensor, patch_size: int, *, normalize: bool = False, eps: float = 1e-6) -> Tensor:
    """Pixels of each patch, ``[B, C, H, W]`` -> ``[B, N, p * p * C]``.

    With ``normalize`` each patch vector is brought to mean 0 and variance 1 (MAE, Sec. 3: "normalized pixels"), by the
    unbiased variance.
    """
    patches = patchify(images, patch_size)
    if not normalize:
        return patches
    mean, variance = patches.mean(dim=-1, keepdim=True), patches.var(dim=-1, keepdim=True)
    return (patches - mean) / (variance + eps).sqrt()


class TeacherFeatures:
    """Features of the moving average for the whole image, after the encoder's norm: ``[B, M, D]`` (BootMAE)."""

    uses_teacher = True

    def __call__(self, pixels: Tensor, output: TeacherOutput | None, mask: PatchIndices) -> Tensor:
        assert output is not None
        return gather(output.latent[:, 1:], mask.masked)


class HostTargets:
    """Targets that a host takes from its teacher, as training left them: ``[B, M, ...]`` (iBOT).

    Args:
        host: the teacher's copy.
    """

    uses_teacher = True

    def __init__(self, host: Host) -> None:
        self.host = host

    def __call__(self, pixels: Tensor, output: TeacherOutput | None, mask: PatchIndices) -> Tensor:
        assert output is not None
        targets = self.host.teacher_targets(output, mask, 1.0, update=False)
        assert targets is not None
        return targets.patches


class FrozenFeatures:
    """Features of a pre-trained network that does not learn: ``[B, M, T]`` (DINO, CLIP; MILAN)."""

    uses_teacher = False

    def __init__(self, network: FrozenTeacher) -> None:
        self.network = network

    def __call__(self, pixels: Tensor, output: TeacherOutput | None, mask: PatchIndices) -> Tensor:
        return gather(self.network(pixels), mask.masked)


class VisualTokens:
    """Tokens of a discrete autoencoder: int64 ``[B, M]`` (BEiT).

    Args:
        tokenizer: see :mod:`hardpatch.models.tokenizer`.
        grid: (rows, columns) of patches.
    """

    uses_teacher = False

    def __init__(self, tokenizer: Tokenizer, grid: tuple[int, int]) -> None:
        self.tokenizer, self.grid = tokenizer, grid

    def __call__(self, pixels: Tensor, output: TeacherOutput | None, mask: PatchIndices) -> Tensor:
        return gather(self.tokenizer.tokens(pixels, self.grid), mask.masked)
