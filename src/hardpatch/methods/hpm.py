"""Hard Patches Mining (Wang et al., CVPR 2023) around a masked image model; paper, Algorithm 1.

One training step is :func:`mine` (the teacher sets the problem) and :meth:`HPM.forward` (the student solves it).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from hardpatch.curriculum import mined_count
from hardpatch.losses import PREDICTING_LOSSES
from hardpatch.masking import Mining, hard_patches, masked_count
from hardpatch.methods.base import Host
from hardpatch.models.decoder import Decoder
from hardpatch.models.teacher import Teacher
from hardpatch.patches import Split, gather, split

PredictingLoss = Literal["relative", "absolute", "absolute_standardised"]


class Losses(NamedTuple):
    """What one step gives. ``loss`` is what is minimised: the sum of the other two means."""

    loss: Tensor
    """scalar"""
    reconstruction: Tensor
    """of each masked patch, ``[B, M]``"""
    predicting: Tensor | None
    """scalar; None without a loss predictor"""
    predicted: Tensor | None
    """the predictor's scores of the masked patches, ``[B, M]``"""


class HPM(nn.Module):
    """A host that also learns to foresee its own reconstruction loss.

    Without a predictor this *is* the host. All images are float ``[B, C, H, W]``, normalised (:meth:`normalise`); a
    mask is bool ``[B, N]``, True = masked.

    Args:
        host: the masked image model, see :class:`~hardpatch.methods.base.Host`.
        predictor: a decoder whose mean output is the predicted loss, or None.
        predicting_loss: ``relative`` (paper, Eq. 5 and 6), ``absolute`` (Eq. 4) or ``absolute_standardised``
            (reference).
        mean, std: of each channel for pixels in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        host: Host,
        predictor: Decoder | None,
        *,
        predicting_loss: PredictingLoss = "relative",
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__()
        self.host = host
        self.predictor = predictor
        self.predicting_loss = PREDICTING_LOSSES[predicting_loss]
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def forward(self, images: Tensor, mask: Tensor | Split) -> Losses:
        """The student's half of a training step: rebuild the masked patches, and say which of them will be harder."""
        mask = split(mask)
        latent = self.host.encode(images, mask)  # [B, 1 + V, D]
        prediction = self.host.reconstruct(latent, mask)  # [B, M, T]
        target = gather(self.host.target(images), mask.masked)  # [B, M, T], no gradient
        reconstruction = self.host.reconstruction_loss(prediction, target)  # [B, M], unreduced
        if self.predictor is None:
            return Losses(reconstruction.mean(), reconstruction, None, None)
        predicted = self.predict_masked_loss(latent, mask)  # [B, M]
        predicting = self.predicting_loss(predicted, reconstruction.detach())
        return Losses(reconstruction.mean() + predicting, reconstruction, predicting, predicted)

    def predict_masked_loss(self, latent: Tensor, mask: Tensor | Split) -> Tensor:
        """Predicted losses ``[B, M]`` of the masked patches from the latent of the visible ones."""
        return self._predictor().mean_output(self.host.decoder_embed(latent, mask), mask)

    def predict_loss(self, images: Tensor) -> Tensor:
        """Predicted difficulty ``[B, N]`` of every patch of whole images, nothing masked: what the masks are mined
        from."""
        grid = images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size
        return self._predictor().mean_output(self.host.decoder_embed(self.host.encode(images), grid=grid))

    def encode(self, images: Tensor, mask: Tensor | Split | None = None) -> Tensor:
        """Features ``[B, 1 + V, D]`` of the visible patches (all N without a mask), class token first, after the
        norm."""
        return self.host.encode(images, mask)

    def reconstruct(self, latent: Tensor, mask: Tensor | Split) -> Tensor:
        """Predicted targets ``[B, M, T]`` of the masked patches, in increasing order of patches."""
        return self.host.reconstruct(latent, mask)

    def target(self, images: Tensor) -> Tensor:
        """What is reconstructed, for every patch: ``[B, N, T]``."""
        return self.host.target(images)

    def reconstruction_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Loss ``[B, M]`` of each patch from ``[B, M, T]`` twice."""
        return self.host.reconstruction_loss(prediction, target)

    def normalise(self, images: Tensor) -> Tensor:
        """Pixels uint8 ``[B, C, H, W]`` as the network wants them: float32, mean 0 and variance 1 over the data set."""
        mean, std = self.mean.view(1, -1, 1, 1), self.std.view(1, -1, 1, 1)
        return (images.float() / 255.0 - mean) / std

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.host.encoder.patch_size

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches in an image of the size it was built for."""
        return self.host.encoder.grid

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels that it was built for."""
        return self.grid[0] * self.patch_size, self.grid[1] * self.patch_size

    @property
    def has_predictor(self) -> bool:
        """False for a plain host, which knows no difficulty."""
        return self.predictor is not None

    def _predictor(self) -> Decoder:
        if self.predictor is None:
            raise ValueError("predict_loss: this model was trained without a loss predictor (predicting loss 'none')")
        return self.predictor


class Problem(NamedTuple):
    """What the teacher sets the student."""

    mask: Split
    """the patches to rebuild, index lists of ``[B, M]`` and ``[B, V]``"""
    difficulty: Tensor | None
    """predicted loss of every patch, ``[B, N]``; None where nothing was mined"""


def mine(
    teacher: Teacher | None,
    images: Tensor,
    noise: Tensor,
    *,
    mask_ratio: float,
    alpha: float,
    mining: Mining = "hard",
) -> Problem:
    """The teacher's half of a training step: look at the whole images, mask what will be hard.

    Args:
        teacher: the student's moving average; not run, and may be None, where no patch is to be mined.
        images: normalised pixels ``[B, C, H, W]``.
        noise: uniform in [0, 1), ``[B, N]``; see :func:`hardpatch.randomness.patch_noise`.
        mask_ratio: gamma, the share of masked patches.
        alpha: the mined share of those, in [0, 1]; see :mod:`hardpatch.curriculum`.
        mining: ``hard`` masks the hardest patches, ``easy`` the easiest.
    """
    masked = masked_count(noise.shape[1], mask_ratio)
    mined = mined_count(masked, alpha)
    difficulty = teacher.predict_loss(images) if teacher is not None and mined else None  # [B, N], no gradient
    mask = hard_patches(difficulty, noise, masked, mined, mining)  # bool [B, N]
    return Problem(split(mask, masked), difficulty)
