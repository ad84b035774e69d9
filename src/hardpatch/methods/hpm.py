"""Hard Patches Mining (Wang et al., CVPR 2023) around a masked image model; paper, Algorithm 1.

One training step is :func:`mine` (the teacher sets the problem) and :meth:`HPM.forward` (the student solves it).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from hardpatch.methods.base import Host
from hardpatch.methods.curriculum import mined_count
from hardpatch.methods.ibot import IBOT, Views
from hardpatch.methods.losses import PREDICTING_LOSSES
from hardpatch.methods.masking import (
    Mask,
    Mining,
    hard_patches,
    masked_count,
    noise_count,
    pool_units,
    secondary_mask,
    spread_units,
    subsample_masked,
)
from hardpatch.methods.teacher import Teacher, TeacherOutput
from hardpatch.models.decoder import Decoder
from hardpatch.models.pixels import normalize
from hardpatch.patches import PatchIndices, gather, to_indices

PredictingLoss = Literal["relative", "absolute", "absolute_standardized"]


class Losses(NamedTuple):
    """What one step gives. ``loss`` is what is minimized: the sum of the others."""

    loss: Tensor
    """scalar"""
    reconstruction: Tensor
    """of each masked patch, ``[B, M]``"""
    predicting: Tensor | None
    """scalar; None without a loss predictor"""
    predicted: Tensor | None
    """the predictor's scores of the masked patches, ``[B, M]``"""
    classes: Tensor | None = None
    """scalar: iBOT's loss between the class tokens of different views"""
    token_use: dict[str, Tensor] | None = None
    """how evenly BEiT's and iBOT's tokens are used, from 0 (one token) to 1; where asked for"""


class StudentOutput(NamedTuple):
    """What the student says of the masked patches of a batch."""

    latent: Tensor
    """``[B, 1 + V, D]``, of every image; with iBOT of those seen whole, too"""
    prediction: Tensor
    """``[B, M, T]``"""
    predicted: Tensor | None
    """its loss, as the student foresees it, ``[B, M]``; None where it is not asked for"""


class HPM(nn.Module):
    """A host that also learns to foresee its own reconstruction loss.

    Without a predictor this *is* the host. All images are float ``[B, C, H, W]``, normalized (:meth:`normalize`); a
    mask is bool ``[B, N]``, True = masked.

    Args:
        host: the masked image model, see :class:`~hardpatch.methods.base.Host`.
        predictor: a decoder whose mean output is the predicted loss, or None.
        predicting_loss: ``relative`` (paper, Eq. 5 and 6), ``absolute`` (Eq. 4) or ``absolute_standardized``
            (reference).
        predictor_reads: the encoder after so many blocks, so that the teacher needs no more; None is all.
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
        predictor_reads: int | None = None,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__()
        self.host = host
        self.predictor = predictor
        self.predictor_reads = predictor_reads
        self.predicting_loss = PREDICTING_LOSSES[predicting_loss]
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def forward(
        self,
        images: Tensor,
        mask: Tensor | PatchIndices,
        target: Tensor | None = None,
        views: Views | None = None,
        *,
        observe: bool = False,
    ) -> Losses:
        """The student's half of a training step: rebuild the masked patches, and say which of them will be harder.

        Args:
            images: ``[B, C, H, W]``. With iBOT the mask may be of the first images only; the others are seen whole.
            mask: which patches to rebuild.
            target: of those, ``[B, M, ...]``, where it comes from another network; None asks the host.
            views: iBOT's other crops.
            observe: measure the use of tokens, for the log.
        """
        mask = to_indices(mask)
        whole, prediction, predicted = self.answer(images, mask, predict=self.has_predictor)
        if target is None:
            target = gather(self.host.target(images), mask.masked)  # [B, M, T], no gradient
        reconstruction = self.host.reconstruction_loss(prediction, target)  # [B, M], unreduced
        # iBOT's patch loss is a mean over all crops, in which those without masked patches count as 0.
        mean = reconstruction.mean() * (len(mask.masked) / len(whole))
        losses = Losses(mean, reconstruction, None, None)
        if predicted is not None:
            predicting = self.predicting_loss(predicted, reconstruction.detach())
            losses = losses._replace(loss=losses.loss + predicting, predicting=predicting, predicted=predicted)
        if views is not None:
            classes = cast(IBOT, self.host).class_loss(whole[:, 0], views)
            losses = losses._replace(loss=losses.loss + classes, classes=classes)
        if observe and hasattr(self.host, "token_use"):
            losses = losses._replace(token_use=self.host.token_use(prediction, target))
        return losses

    def answer(self, images: Tensor, mask: PatchIndices, *, predict: bool = True) -> StudentOutput:
        """Rebuild the masked patches of images ``[B, C, H, W]`` and, unless ``predict`` is off, foresee the loss.

        The mask may be of the first images only (iBOT).
        """
        early, whole = self._early_and_whole(images, mask, predict=predict)  # [B, 1 + V, D]
        latent = whole[: len(mask.masked)]
        tokens = self.host.decoder_tokens(latent, mask)
        prediction = self.host.reconstruct(latent, tokens, mask)
        if not predict:
            return StudentOutput(whole, prediction, None)
        read = tokens if early is None else self.host.decoder_tokens(early, mask)
        return StudentOutput(whole, prediction, self._predictor().mean_output(read))

    def predict_loss(self, images: Tensor) -> Tensor:
        """Predicted difficulty ``[B, N]`` of every patch of whole images, nothing masked: what the masks are mined
        from."""
        difficulty = self.look(images).difficulty
        assert difficulty is not None
        return difficulty

    def look(self, images: Tensor, *, difficulty: bool = True, attention: bool = False) -> TeacherOutput:
        """One look at whole images ``[B, C, H, W]``: the latent and, where asked for, what was predicted from it and
        where the class token looked."""
        if attention:
            latent, attended = self.host.encoder.forward_with_attention(images)
        elif self.predictor_reads is not None:
            (latent,), attended = self.host.encoder.latents(images, None, (self.predictor_reads,)), None
        else:
            latent, attended = self.host.encode(images), None
        predicted = None
        if difficulty:
            grid = images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size
            predicted = self._predictor().mean_output(self.host.decoder_tokens(latent, grid=grid))
        return TeacherOutput(latent, predicted, attended)

    def encode(self, images: Tensor, mask: Tensor | PatchIndices | None = None) -> Tensor:
        """Features ``[B, 1 + V, D]`` of the visible patches (all N without a mask), class token first, after the
        norm."""
        return self.host.encode(images, mask)

    def reconstruct(self, latent: Tensor, mask: Tensor | PatchIndices) -> Tensor:
        """Predicted targets ``[B, M, T]`` of the masked patches, in increasing order of patches."""
        mask = to_indices(mask)
        return self.host.reconstruct(latent, self.host.decoder_tokens(latent, mask), mask)

    def target(self, images: Tensor) -> Tensor:
        """What is reconstructed, for every patch: ``[B, N, T]``."""
        return self.host.target(images)

    def reconstruction_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Loss ``[B, M]`` of each patch from ``[B, M, T]`` twice."""
        return self.host.reconstruction_loss(prediction, target)

    def normalize(self, images: Tensor) -> Tensor:
        """Pixels uint8 ``[B, C, H, W]`` as the network wants them: float32, mean 0 and variance 1 over the data set."""
        return normalize(images, self.mean, self.std)

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

    def _early_and_whole(self, images: Tensor, mask: PatchIndices, *, predict: bool) -> tuple[Tensor | None, Tensor]:
        """What the predictor reads, where that is asked for and not the latent, and the latent."""
        if not predict or self.predictor_reads is None:
            return None, self.host.encode(images, mask)
        encoder = self.host.encoder
        early, whole = encoder.latents(images, mask, (self.predictor_reads, len(encoder.blocks)))
        return early, whole

    def _predictor(self) -> Decoder:
        if self.predictor is None:
            raise ValueError("predict_loss: this model was trained without a loss predictor (predicting loss 'none')")
        return self.predictor


@dataclass(frozen=True)
class Masking:
    """How masks are drawn."""

    mask: Mask = "random"
    """draws the patches that are not mined"""
    mining: Mining = "hard"
    """mines the hardest patches, or the easiest"""
    unit: int = 1
    """side, in patches, of the squares that are masked as a whole"""
    secondary: float = 0.0
    """share of the visible patches that are hidden behind mask tokens"""
    asked: float = 1.0
    """share of the masked patches that are to be rebuilt"""

    @property
    def guided(self) -> bool:
        """Whether it needs the teacher's attention."""
        return self.mask.startswith("attention")

    def noise_count(self, grid: tuple[int, int]) -> int:
        """Random numbers for each image of a ``grid`` of patches."""
        patches = grid[0] * grid[1]
        more = (self.secondary > 0.0) + (self.asked < 1.0)
        return noise_count(self.mask, patches // self.unit**2) + more * patches


class MinedMask(NamedTuple):
    """What the teacher sets the student."""

    mask: PatchIndices
    """the patches to rebuild, index lists of ``[B, M]`` and ``[B, V]``"""
    sight: TeacherOutput | None
    """what the teacher saw; None where it was not needed"""
    difficulty: Tensor | None
    """predicted loss of every patch, ``[B, N]``; None where nothing was mined"""


def mine_mask(
    teacher: Teacher | None,
    images: Tensor,
    noise: Tensor,
    *,
    mask_ratio: float,
    alpha: float,
    grid: tuple[int, int],
    masking: Masking = Masking(),
    look: bool = False,
    images_masked: int | None = None,
    known: Tensor | None = None,
) -> MinedMask:
    """The teacher's half of a training step: look at the whole images, mask what will be hard.

    Args:
        teacher: the student's moving average; not run, and may be None, where nothing is asked of it.
        images: normalized pixels ``[B, C, H, W]``.
        noise: uniform in [0, 1), ``[B, masking.noise_count(grid)]``; see :func:`hardpatch.randomness.patch_noise`.
        mask_ratio: gamma, the share of masked patches.
        alpha: the mined share of those, in [0, 1]; see :mod:`hardpatch.methods.curriculum`.
        grid: (rows, columns) of patches.
        masking: how masks are drawn.
        look: run the teacher in any case, since the target is made of what it sees.
        images_masked: mask only so many of the images, the first (iBOT); None masks all.
        known: the difficulty ``[B, N]`` where it comes from elsewhere than the teacher
            (:class:`~hardpatch.methods.difficulty_memory.DifficultyMemory`).
    """
    units = grid[0] // masking.unit, grid[1] // masking.unit
    masked = masked_count(units[0] * units[1], mask_ratio)
    mined = mined_count(masked, alpha)
    sight = None
    if teacher is not None and (mined or masking.guided or look):
        sight = teacher.look(images, difficulty=mined > 0, attention=masking.guided)  # no gradient
    seen = (None, None) if sight is None else (sight.difficulty, sight.attention)
    predicted = seen[0] if known is None or not mined else known
    difficulty, attention = (
        None if values is None else pool_units(values[:images_masked], grid, masking.unit)
        for values in (predicted, seen[1])
    )  # [B, units]
    noise = noise[:images_masked]
    mask = hard_patches(
        difficulty, noise, masked, mined, masking.mining, mask=masking.mask, grid=units, attention=attention
    )
    mask = spread_units(mask, grid, masking.unit)  # bool [B, N]
    masked = masked * masking.unit**2
    parts = to_indices(mask, masked)
    patches = mask.shape[1]
    if masking.secondary:
        hidden = secondary_mask(noise[:, -patches:], mask, masking.secondary, masked)
        parts = parts._replace(hidden=hidden.gather(1, parts.visible))
        noise = noise[:, :-patches]
    if masking.asked < 1.0:
        parts = parts._replace(masked=subsample_masked(parts.masked, noise[:, -patches:], masking.asked))
    return MinedMask(parts, sight, predicted)
