"""Hard Patches Mining (Wang et al., CVPR 2023) around a masked image model: the paper's Algorithm 1.

:class:`HardPatchesMining` is a training step up to its loss: the teacher predicts what is hard, that is masked, and the
student, :meth:`HPM.forward`, reconstructs it. The optimizer step and the teacher's update follow in
:mod:`hardpatch.pretrain.step`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hardpatch.choices import PredictingLossName
from hardpatch.methods.base import Host, Targets, Views
from hardpatch.methods.difficulty_memory import CropBox, DifficultyMemory
from hardpatch.methods.losses import PREDICTING_LOSSES
from hardpatch.methods.mining import Masking, MinedMask
from hardpatch.methods.targets import Target
from hardpatch.methods.teacher import Teacher, TeacherOutput
from hardpatch.models.decoder import Decoder
from hardpatch.models.pixels import normalize
from hardpatch.patches import PatchIndices, gather, to_indices


class Inputs(NamedTuple):
    """A micro-batch on the device."""

    images: Tensor
    """normalized ``[B, C, H, W]``"""
    noise: Tensor
    """uniform in [0, 1), ``[B, masking.noise_count]``: what the masks are drawn from"""
    pixels: Tensor | None = None
    """uint8 ``[B, C, H, W]``, for targets from another network"""
    views: Views | None = None
    """other crops, for hosts that compare crops"""
    boxes: CropBox | None = None
    """where the crops come from, for difficulty that is remembered"""


class Losses(NamedTuple):
    """Result of the student's half of a step."""

    loss: Tensor
    """scalar that is minimized"""
    reconstruction: Tensor
    """loss of each masked patch, ``[B, M]``"""
    predicted: Tensor | None
    """the loss predictor's scores of the masked patches, ``[B, M]``; None without one"""
    parts: dict[str, Tensor]
    """scalars by name that ``loss`` is made of"""
    token_metrics: dict[str, Tensor]
    """scalars by name: how evenly tokens are used, where the host has some and they are asked for"""


class StudentOutput(NamedTuple):
    """Predictions of the student for the masked patches of a batch."""

    latent: Tensor
    """``[B, 1 + V, D]`` of every image, those seen whole included"""
    prediction: Tensor
    """reconstruction, ``[B, M, T]``"""
    predicted: Tensor | None
    """predicted loss of the reconstruction, ``[B, M]``; None where it is not asked for"""


@dataclass
class HardPatchesMining:
    """A training step up to the loss: teacher, mask, student (Algorithm 1).

    Args:
        student: a :class:`HPM`, or what a launcher wrapped around it.
        teacher: its moving average; None where nothing is asked of it.
        masking: how masks are made.
        target: network that gives the targets; None for the host's own.
        memory: difficulty from earlier epochs, in place of the teacher's.
    """

    student: Any
    teacher: Teacher | None
    masking: Masking
    target: Target | None = None
    memory: DifficultyMemory | None = None

    def __call__(
        self, inputs: Inputs, *, mask_ratio: float, alpha: float, progress: float = 0.0, observe: bool = False
    ) -> tuple[MinedMask, Losses]:
        """Mask what is hard, and have the student reconstruct it and predict its loss.

        Args:
            inputs: a micro-batch.
            mask_ratio: gamma, the share of masked patches.
            alpha: mined share of those, in [0, 1]; see :func:`~hardpatch.methods.curriculum.linear_alpha`.
            progress: share of the training that is done, in [0, 1].
            observe: also compute what only the log needs.
        """
        mining = self.masking.counts(mask_ratio, alpha)[1] > 0
        output = self.see(inputs.images, mining)  # of whole images, no gradient
        difficulty = self.difficulty(inputs, output) if mining else None  # [B, N]
        count = max(1, round(len(inputs.images) * self.student.host.masked_share))
        mined = self.masking.mine(
            inputs.noise[:count],
            mask_ratio=mask_ratio,
            alpha=alpha,
            difficulty=None if difficulty is None else difficulty[:count],
            attention=None if output is None or output.attention is None else output.attention[:count],
            compare=observe,
        )
        targets = self.targets(inputs, output, mined.mask, progress)  # no gradient
        losses = self.student(
            inputs.images,
            mined.mask,
            targets,
            inputs.views,
            observe=observe and self.student.host.monitors_tokens,
        )
        if self.memory is not None and inputs.boxes is not None:
            self.memory.write(inputs.boxes, mined.mask, losses.predicted, self.masking.grid)
        return mined, losses

    def see(self, images: Tensor, mining: bool) -> TeacherOutput | None:
        """Run the teacher on whole images ``[B, C, H, W]``; None where nothing is asked of it."""
        attention = self.masking.uses_attention
        makes_targets = self.student.host.uses_teacher or getattr(self.target, "uses_teacher", False)
        if self.teacher is None or not (mining or attention or makes_targets):
            return None
        return self.teacher(images, difficulty=mining, attention=attention)

    def difficulty(self, inputs: Inputs, output: TeacherOutput | None) -> Tensor | None:
        """Difficulty ``[B, N]`` to mine by: what is remembered of the images, or what the teacher predicts."""
        if self.memory is not None and inputs.boxes is not None:
            remembered = self.memory.read(inputs.boxes, self.masking.grid)
            return remembered + 1e-3 * inputs.noise[:, : remembered.shape[1]]  # random where nothing is known
        return None if output is None else output.difficulty

    @torch.no_grad()
    def targets(
        self, inputs: Inputs, output: TeacherOutput | None, mask: PatchIndices, progress: float
    ) -> Targets | None:
        """Targets of the masked patches where they come from another network; None for the host's own."""
        if self.target is not None and inputs.pixels is not None:
            return Targets(self.target(inputs.pixels, output, mask))
        if self.teacher is None or output is None:
            return None
        return self.teacher.network.host.teacher_targets(output, mask, progress)


class HPM(nn.Module):
    """A host that also learns to predict its own reconstruction loss.

    Without a predictor this *is* the host. All images are float ``[B, C, H, W]``, normalized (:meth:`normalize`); a
    mask is bool ``[B, N]``, True = masked.

    Args:
        host: the masked image model, see :class:`~hardpatch.methods.base.Host`.
        predictor: a decoder whose mean output is the predicted loss, or None.
        predicting_loss: ``relative`` (Eq. 5 to 7), ``absolute`` (Eq. 4) or ``absolute_standardized`` (the reference
            code's).
        mean, std: of each channel for pixels in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        host: Host,
        predictor: Decoder | None,
        *,
        predicting_loss: PredictingLossName = "relative",
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__()
        self.host = host
        self.predictor = predictor
        self.predicting_loss = PREDICTING_LOSSES[predicting_loss]
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def forward(
        self,
        images: Tensor,
        mask: Tensor | PatchIndices,
        targets: Targets | None = None,
        views: Views | None = None,
        *,
        observe: bool = False,
    ) -> Losses:
        """Reconstruct the masked patches and predict which of them are harder: the student's half of a step.

        Args:
            images: ``[B, C, H, W]``. The mask may be of the first images only; the others are seen whole.
            mask: which patches to reconstruct.
            targets: of those, where they come from another network; None asks the host.
            views: other crops of the images, for hosts that compare crops.
            observe: measure the use of tokens, for the log.
        """
        mask = to_indices(mask)
        latent, prediction, predicted = self.predict(images, mask, with_loss=self.has_predictor)
        if targets is None:
            targets = Targets(gather(self.host.target(images), mask.masked))  # [B, M, T], no gradient
        reconstruction = self.host.reconstruction_loss(prediction, targets.patches)  # [B, M], unreduced
        mean = reconstruction.mean()
        # The mean is over all images; one that is seen whole counts as 0.
        loss, parts = mean * (len(mask.masked) / len(latent)), {"reconstruction_loss": mean}
        if predicted is not None:
            parts["predicting_loss"] = self.predicting_loss(predicted, reconstruction.detach())
            loss = loss + parts["predicting_loss"]
        image_loss = self.host.image_loss(latent, targets, views)
        if image_loss is not None:
            parts["class_loss"] = image_loss
            loss = loss + image_loss
        token_metrics = self.host.token_metrics(prediction, targets.patches) if observe else {}
        return Losses(loss, reconstruction, predicted, parts, token_metrics)

    def predict(self, images: Tensor, mask: PatchIndices, *, with_loss: bool = True) -> StudentOutput:
        """Reconstruct the masked patches of images ``[B, C, H, W]`` and, ``with_loss``, predict the loss of that.

        The mask may be of the first images only.
        """
        whole = self.host.encode(images, mask)  # [B, 1 + V, D]
        latent = whole[: len(mask.masked)]
        tokens = self.host.decoder_tokens(latent, mask)
        prediction = self.host.reconstruct(latent, tokens, mask)
        return StudentOutput(whole, prediction, self._predictor().mean_output(tokens) if with_loss else None)

    def predict_loss(self, images: Tensor) -> Tensor:
        """Predicted difficulty ``[B, N]`` of every patch of whole images, nothing masked."""
        difficulty = self.see_whole(images).difficulty
        assert difficulty is not None
        return difficulty

    def see_whole(self, images: Tensor, *, difficulty: bool = True, attention: bool = False) -> TeacherOutput:
        """Encode whole images ``[B, C, H, W]``; with predicted difficulty and class attention where asked for."""
        attended: Tensor | None = None
        if attention:
            latent, attended = self.host.encoder.forward_with_attention(images)
        else:
            latent = self.host.encode(images)
        predicted = None
        if difficulty:
            grid = images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size
            predicted = self._predictor().mean_output(self.host.decoder_tokens(latent, grid=grid))
        return TeacherOutput(latent, predicted, attended)

    def encode(self, images: Tensor, mask: Tensor | PatchIndices | None = None) -> Tensor:
        """Features ``[B, 1 + V, D]`` of the visible patches (all N without a mask), class token first, after the
        norm.
        """
        return self.host.encode(images, mask)

    def reconstruct(self, latent: Tensor, mask: Tensor | PatchIndices) -> Tensor:
        """Predicted targets ``[B, M, T]`` of the masked patches, in increasing order of patches."""
        mask = to_indices(mask)
        return self.host.reconstruct(latent, self.host.decoder_tokens(latent, mask), mask)

    def target(self, images: Tensor) -> Tensor:
        """Target of the reconstruction for every patch: ``[B, N, T]``."""
        return self.host.target(images)

    def reconstruction_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Loss ``[B, M]`` of each patch from prediction and target ``[B, M, T]``."""
        return self.host.reconstruction_loss(prediction, target)

    def normalize(self, images: Tensor) -> Tensor:
        """Normalize uint8 pixels ``[B, C, H, W]`` by the mean and deviation of the data set: float32."""
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
        """False for a plain host, which predicts no difficulty."""
        return self.predictor is not None

    def _predictor(self) -> Decoder:
        if self.predictor is None:
            raise ValueError("predict_loss: this model was trained without a loss predictor (predicting loss 'none')")
        return self.predictor
