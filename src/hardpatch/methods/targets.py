"""Targets of the reconstruction, without gradient (paper, Sec. 3.2 and 4.1, Table 1).

Hosts compute pixel targets themselves, by :func:`pixels`. Targets from another network are computed by a
:class:`Target`: :class:`TeacherFeatures`, :class:`FrozenFeatures` or :class:`VisualTokens`.
"""

from typing import Protocol

import torch
from torch import Tensor

from hardpatch.methods.base import Host
from hardpatch.methods.teacher import TeacherOutput
from hardpatch.models.frozen import FrozenTeacher
from hardpatch.models.supervised_teacher import SupervisedTeacher
from hardpatch.models.tokenizer import Tokenizer
from hardpatch.patches import PatchIndices, gather, patchify


class Target(Protocol):
    """Targets of the masked patches from another network."""

    uses_teacher: bool
    """The targets need the output of the teacher."""

    def __call__(self, pixels: Tensor, output: TeacherOutput | None, mask: PatchIndices) -> Tensor:
        """Compute the targets of the masked patches, ``[B, M, ...]``.

        Args:
            pixels: uint8 images ``[B, C, H, W]``.
            output: of the teacher on the same images; None if it did not run.
            mask: the masked patches.
        """


@torch.no_grad()
def pixels(images: Tensor, patch_size: int, *, normalize: bool = False, eps: float = 1e-6) -> Tensor:
    """Pixels of each patch, ``[B, C, H, W]`` -> ``[B, N, p * p * C]`` (paper, Eq. 3).

    With ``normalize`` each patch vector is brought to mean 0 and unbiased variance 1 (MAE, Sec. 3).
    """
    patches = patchify(images, patch_size)
    return normalize_patches(patches, eps) if normalize else patches


def normalize_patches(patches: Tensor, eps: float = 1e-6) -> Tensor:
    """Bring each vector of ``patches [..., T]`` to mean 0 and unbiased variance 1."""
    mean, variance = patches.mean(dim=-1, keepdim=True), patches.var(dim=-1, keepdim=True)
    return (patches - mean) / (variance + eps).sqrt()


class TeacherFeatures:
    """Features of the teacher for the whole image, after the encoder's norm (BootMAE)."""

    uses_teacher = True

    def __call__(self, pixels: Tensor, output: TeacherOutput | None, mask: PatchIndices) -> Tensor:
        """Select the teacher's features of the masked patches, ``[B, M, D]``."""
        assert output is not None
        return gather(output.latent[:, 1:], mask.masked)


class HostTargets:
    """Targets that a host computes from the output of its teacher (iBOT), as at the end of the training.

    Args:
        host: the teacher's copy of the host.
    """

    uses_teacher = True

    def __init__(self, host: Host) -> None:
        self.host = host

    def __call__(self, pixels: Tensor, output: TeacherOutput | None, mask: PatchIndices) -> Tensor:
        """Let the host compute the targets of the masked patches, ``[B, M, ...]``."""
        assert output is not None
        targets = self.host.teacher_targets(output, mask, 1.0, update=False)
        assert targets is not None
        return targets.patches


class FrozenFeatures:
    """Features of a frozen pre-trained network (DINO, CLIP; MILAN)."""

    uses_teacher = False

    def __init__(self, network: FrozenTeacher | SupervisedTeacher) -> None:
        self.network = network

    def __call__(self, pixels: Tensor, output: TeacherOutput | None, mask: PatchIndices) -> Tensor:
        """Compute the features of the masked patches, ``[B, M, T]``."""
        return gather(self.network(pixels), mask.masked)


class VisualTokens:
    """Visual tokens of a discrete autoencoder (BEiT).

    Args:
        tokenizer: see :mod:`hardpatch.models.tokenizer`.
        grid: (rows, columns) of patches.
    """

    uses_teacher = False

    def __init__(self, tokenizer: Tokenizer, grid: tuple[int, int]) -> None:
        self.tokenizer, self.grid = tokenizer, grid

    def __call__(self, pixels: Tensor, output: TeacherOutput | None, mask: PatchIndices) -> Tensor:
        """Compute the visual tokens of the masked patches, int64 ``[B, M]``."""
        return gather(self.tokenizer.tokens(pixels, self.grid), mask.masked)
