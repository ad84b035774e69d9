"""Hard Patches Mining (Wang et al., CVPR 2023) for any masked image model: the paper's Algorithm 1.

:class:`HardPatchesMining` is a training step up to its loss: the teacher predicts the difficulty of each patch, the
hardest patches are masked, and the student reconstructs them (:meth:`HPM.forward`). The optimizer step and the update
of the teacher follow in :mod:`hardpatch.pretrain.step`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hardpatch.choices import PredictingLossName
from hardpatch.data.reading import Reading
from hardpatch.methods.base import Host, Targets, Views
from hardpatch.methods.difficulty_memory import CropBox, DifficultyMemory
from hardpatch.methods.losses import PREDICTING_LOSSES
from hardpatch.methods.mining import Masking, MinedMask
from hardpatch.methods.targets import Target
from hardpatch.methods.teacher import Teacher, TeacherOutput
from hardpatch.models.decoder import Decoder
from hardpatch.models.pixels import normalize, register_normalization
from hardpatch.patches import PatchIndices, gather, to_indices


class Inputs(NamedTuple):
    """A micro-batch on the device."""

    images: Tensor
    """normalized ``[B, C, H, W]``"""
    noise: Tensor
    """random numbers of the masks, uniform in [0, 1), ``[B, masking.noise_count]``"""
    pixels: Tensor | None = None
    """uint8 ``[B, C, H, W]``, for targets from another network"""
    views: Views | None = None
    """further crops, for hosts that compare crops"""
    boxes: CropBox | None = None
    """positions of the crops in their images, for a difficulty memory"""


class Losses(NamedTuple):
    """Losses of the student on a micro-batch."""

    loss: Tensor
    """scalar that is minimized"""
    reconstruction: Tensor
    """reconstruction loss of each masked patch, ``[B, M]``"""
    predicted: Tensor | None
    """predicted loss of each masked patch, ``[B, M]``; None without a loss predictor"""
    parts: dict[str, Tensor]
    """terms of ``loss``, scalars by name"""
    token_metrics: dict[str, Tensor]
    """evenness of the use of tokens, scalars by name; empty unless requested from a host with tokens"""


class StudentOutput(NamedTuple):
    """Predictions of the student for the masked patches of a batch."""

    latent: Tensor
    """output of the encoder for all images, also for those without a mask, ``[B, 1 + V, D]``"""
    prediction: Tensor
    """reconstruction, ``[B, M, T]``"""
    predicted: Tensor | None
    """predicted loss of the reconstruction, ``[B, M]``; None if it was not requested"""


@dataclass
class HardPatchesMining:
    """A training step up to the loss: teacher, difficulty, mask, student, losses (Algorithm 1).

    Args:
        student: a :class:`HPM`, or a launcher's wrapper of one.
        teacher: moving average of the student; None if neither difficulty nor attention nor targets come from it.
        masking: rule by which masks are made.
        target: computes the targets; None if the host does.
        memory: difficulty from earlier epochs, used instead of the teacher's.
    """

    student: Any
    teacher: Teacher | None
    masking: Masking
    target: Target | None = None
    memory: DifficultyMemory | None = None

    def __call__(
        self, inputs: Inputs, *, mask_ratio: float, alpha: float, progress: float = 0.0, observe: bool = False
    ) -> tuple[MinedMask, Losses]:
        """Mask the hardest patches; the student reconstructs the masked patches and predicts their losses.

        Args:
            inputs: a micro-batch.
            mask_ratio: gamma, the share of masked patches.
            alpha: mined share of the masked patches, in [0, 1], from the curriculum
                (:func:`~hardpatch.methods.curriculum.linear_alpha`).
            progress: share of the training that is done, in [0, 1].
            observe: also compute the metrics that only the log needs.

        Returns:
            The mask, and the losses of the student.
        """
        mining = self.masking.counts(mask_ratio, alpha)[1] > 0
        output = self.run_teacher(inputs.images, mining)  # whole images, no gradient
        difficulty = self.difficulty(inputs, output) if mining else None  # [B, N], predicted losses
        # Easy to hard: a share alpha of the masked patches are the hardest ones, the mask strategy draws the others.
        mined = self.mine_mask(inputs, output, difficulty, mask_ratio, alpha, compare=observe)
        targets = self.targets(inputs, output, mined.mask, progress)  # [B, M, ...], no gradient
        token_metrics = observe and self.student.host.has_token_metrics
        losses = self.student(inputs.images, mined.mask, targets, inputs.views, observe=token_metrics)
        if self.memory is not None and inputs.boxes is not None:
            self.memory.write(inputs.boxes, mined.mask, losses.predicted, self.masking.grid)
        return mined, losses

    def run_teacher(self, images: Tensor, mining: bool) -> TeacherOutput | None:
        """Run the teacher on whole images ``[B, C, H, W]``; None if nothing of its output is needed."""
        attention = self.masking.uses_attention
        makes_targets = self.student.host.uses_teacher or getattr(self.target, "uses_teacher", False)
        if self.teacher is None or not (mining or attention or makes_targets):
            return None
        return self.teacher(images, difficulty=mining, attention=attention)

    def difficulty(self, inputs: Inputs, output: TeacherOutput | None) -> Tensor | None:
        """Difficulty ``[B, N]`` of each patch: from the memory if there is one, otherwise as the teacher predicts."""
        if self.memory is not None and inputs.boxes is not None:
            remembered = self.memory.read(inputs.boxes, self.masking.grid)
            # The noise breaks the ties between patches that were never masked: these are mined at random.
            return remembered + 1e-3 * inputs.noise[:, : remembered.shape[1]]
        return None if output is None else output.difficulty

    def mine_mask(
        self,
        inputs: Inputs,
        output: TeacherOutput | None,
        difficulty: Tensor | None,
        mask_ratio: float,
        alpha: float,
        *,
        compare: bool = False,
    ) -> MinedMask:
        """Mask the hardest patches of the first images, a share ``masked_share`` of them, by :attr:`masking`."""
        count = max(1, round(len(inputs.images) * self.student.host.masked_share))
        return self.masking.mine_mask(
            inputs.noise[:count],
            mask_ratio=mask_ratio,
            alpha=alpha,
            difficulty=None if difficulty is None else difficulty[:count],
            attention=None if output is None or output.attention is None else output.attention[:count],
            compare=compare,
        )

    @torch.no_grad()
    def targets(
        self, inputs: Inputs, output: TeacherOutput | None, mask: PatchIndices, progress: float
    ) -> Targets | None:
        """Targets of the masked patches from another network or the teacher; None if the student's host has its own."""
        if self.target is not None and inputs.pixels is not None:
            return Targets(self.target(inputs.pixels, output, mask))
        if self.teacher is None or output is None:
            return None
        return self.teacher.network.host.teacher_targets(output, mask, progress)


class HPM(nn.Module):
    """A host with a loss predictor, which learns to predict the host's reconstruction losses.

    Without a predictor this *is* the host. All images are float ``[B, C, H, W]``, normalized (:meth:`normalize`); a
    mask is bool ``[B, N]``, True = masked.

    Args:
        host: the masked image model, see :class:`~hardpatch.methods.base.Host`.
        predictor: a decoder whose mean output is the predicted loss, or None.
        predicting_loss: ``relative`` (Eq. 5 to 7), ``absolute`` (Eq. 4) or ``absolute_standardized`` (reference code).
        mean, std: statistics of each channel, for pixels in [0, 1].
        reading: channels, type and range of the pixels; None is 8 bits.
    """

    reading: Reading
    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self,
        host: Host,
        predictor: Decoder | None,
        *,
        predicting_loss: PredictingLossName = "relative",
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        reading: Reading | None = None,
    ) -> None:
        super().__init__()
        self.host = host
        self.predictor = predictor
        self.predicting_loss = PREDICTING_LOSSES[predicting_loss]
        register_normalization(self, mean, std, reading)

    def forward(
        self,
        images: Tensor,
        mask: Tensor | PatchIndices,
        targets: Targets | None = None,
        views: Views | None = None,
        *,
        observe: bool = False,
    ) -> Losses:
        """Reconstruct the masked patches, predict their losses, and compute both losses.

        Args:
            images: ``[B, C, H, W]``. The mask may have fewer rows than images; the last images are then seen whole.
            mask: the patches to reconstruct.
            targets: of the masked patches; None if the host computes them from the images.
            views: further crops of the images, for hosts that compare crops.
            observe: also measure the use of tokens, for the log.
        """
        mask = to_indices(mask)
        latent, prediction, predicted = self.predict(images, mask, with_loss=self.has_predictor)
        if targets is None:
            targets = Targets(gather(self.host.target(images), mask.masked))  # [B, M, T], no gradient
        reconstruction = self.host.reconstruction_loss(prediction, targets.patches)  # [B, M], unreduced
        parts = {"reconstruction_loss": reconstruction.mean()}
        # The loss is a mean over all images; images without a mask have loss 0.
        loss = parts["reconstruction_loss"] * (len(mask.masked) / len(latent))
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
        """Reconstruct the masked patches of images ``[B, C, H, W]`` and, if ``with_loss``, predict their losses.

        The mask may have fewer rows than images; the last images are then seen whole.
        """
        latent = self.host.encode(images, mask)  # [B, 1 + V, D]
        masked_latent = latent[: len(mask.masked)]
        tokens = self.host.decoder_tokens(masked_latent, mask)
        prediction = self.host.reconstruct(masked_latent, tokens, mask)  # [B, M, T]
        predicted = self._predictor().mean_output(tokens) if with_loss else None  # [B, M]
        return StudentOutput(latent, prediction, predicted)

    def predict_loss(self, images: Tensor) -> Tensor:
        """Predict the difficulty ``[B, N]`` of every patch of whole images, nothing masked."""
        difficulty = self.forward_whole(images).difficulty
        assert difficulty is not None
        return difficulty

    def forward_whole(self, images: Tensor, *, difficulty: bool = True, attention: bool = False) -> TeacherOutput:
        """Encode whole images ``[B, C, H, W]``; if requested, also compute predicted difficulty and class attention."""
        class_attention: Tensor | None = None
        if attention:
            latent, class_attention = self.host.encoder.forward_with_attention(images)
        else:
            latent = self.host.encode(images)
        predicted = None
        if difficulty:
            grid = images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size
            predicted = self._predictor().mean_output(self.host.decoder_tokens(latent, grid=grid))
        return TeacherOutput(latent, predicted, class_attention)

    def encode(self, images: Tensor, mask: Tensor | PatchIndices | None = None) -> Tensor:
        """Encode the visible patches of images, after the norm: ``[B, 1 + V, D]``, class token first.

        Without a mask all N patches are visible.
        """
        return self.host.encode(images, mask)

    def reconstruct(self, latent: Tensor, mask: Tensor | PatchIndices) -> Tensor:
        """Predict the targets ``[B, M, T]`` of the masked patches, in increasing order of patches."""
        mask = to_indices(mask)
        return self.host.reconstruct(latent, self.host.decoder_tokens(latent, mask), mask)

    def target(self, images: Tensor) -> Tensor:
        """Compute the target of every patch, ``[B, N, T]``."""
        return self.host.target(images)

    def reconstruction_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of each patch, ``[B, M]``, from prediction and target ``[B, M, T]``."""
        return self.host.reconstruction_loss(prediction, target)

    def normalize(self, images: Tensor) -> Tensor:
        """Normalize pixels ``[B, C, H, W]`` by the range, the mean and deviation of the data set: float32."""
        return normalize(images, self)

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.host.encoder.patch_size

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches in an image of the size that the model was built for."""
        return self.host.encoder.grid

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the images that the model was built for."""
        return self.host.encoder.image_size

    @property
    def has_predictor(self) -> bool:
        """False for a plain host, which predicts no difficulty."""
        return self.predictor is not None

    def _predictor(self) -> Decoder:
        if self.predictor is None:
            raise ValueError("predict_loss: this model was trained without a loss predictor (predicting loss 'none')")
        return self.predictor
