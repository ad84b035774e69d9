"""iBOT (Zhou et al., ICLR 2022): the student predicts the class token and the masked patches as the teacher sees them.

The teacher turns each token into a distribution over prototypes. The class tokens of different views of an image must
agree (DINO), and the masked patches of a view must agree with the teacher's patches. One forward pass of one teacher on
the whole global crops gives iBOT's targets and the masks of Hard Patches Mining. The loss predictor learns to rank the
losses of the patches.

The start weights are those of the authors' code (:func:`~hardpatch.models.start_weights.start_as_ibot`). Its positions
are learned; the recipes set this.
"""

from typing import Any

import torch
from torch import Tensor

from hardpatch.methods.base import Targets, TokenHost, Views
from hardpatch.methods.distillation import (
    CENTER_MOMENTUM,
    STUDENT_TEMPERATURE,
    class_loss,
    cross_entropy,
    sharpen,
    teacher_temperature,
    update_center,
    usage_entropy,
)
from hardpatch.methods.teacher import TeacherOutput
from hardpatch.models.encoder import Encoder
from hardpatch.models.projection import ProjectionHead
from hardpatch.models.start_weights import start_as_ibot
from hardpatch.patches import PatchIndices, gather

TEACHER_TEMPERATURES = (0.04, 0.07)
"""At the beginning and after the warm-up."""


class IBOT(TokenHost):
    """Self-distillation of class and patch tokens, by one head for both.

    Args:
        outputs, head_hidden, head_bottleneck: sizes of the :class:`~hardpatch.models.projection.ProjectionHead`.
        temperature_warmup: share of the training in which the teacher's temperature rises linearly.
        frozen_last_layer: share of the training in which the head's last layer keeps its initial weights.
        decoder_width: width of the loss predictor's tokens; None without a predictor.
        encoder: see :class:`~hardpatch.models.encoder.Encoder`.
    """

    reconstruction_only: tuple[str, ...] = ()
    masked_share = 0.5  # of the global crops; the student sees the others whole
    uses_teacher = True
    has_token_metrics = True
    running_buffers = ("class_centre", "patch_centre")
    # British spelling, because these are names in checkpoints.
    class_centre: Tensor
    patch_centre: Tensor

    def __init__(
        self,
        *,
        outputs: int = 8192,
        head_hidden: int = 2048,
        head_bottleneck: int = 256,
        temperature_warmup: float = 0.075,
        frozen_last_layer: float = 0.0025,
        decoder_width: int | None = None,
        **encoder: Any,
    ) -> None:
        vit = Encoder(drop_masked=False, **encoder)
        start_as_ibot(vit)
        head = ProjectionHead(vit.width, outputs, hidden=head_hidden, bottleneck=head_bottleneck)
        super().__init__(vit, head, decoder_width)
        self.temperature_warmup, self.frozen_last_layer = temperature_warmup, frozen_last_layer
        self.register_buffer("class_centre", torch.zeros(1, outputs))
        self.register_buffer("patch_centre", torch.zeros(1, 1, outputs))

    def reconstruction_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of each masked patch ``[B, M]``: logits and teacher's probabilities ``[B, M, K]`` (L_MIM)."""
        return cross_entropy(prediction, target, STUDENT_TEMPERATURE)

    def image_loss(self, latent: Tensor, targets: Targets, views: Views | None) -> Tensor | None:
        """Mean cross-entropy between the teacher's global views and the student's other views (L_[CLS]).

        Args:
            latent: of the student, for the global crops, ``[2 * B, 1 + N, D]``.
            targets: the teacher's probabilities for the same crops, ``images [2 * B, K]``.
            views: the local crops, and the order of the global ones; None outside training.
        """
        if views is None or targets.images is None:
            return None
        student = self.head(latent[:, 0])[views.order]  # [2 * B, K], view by view
        teacher = targets.images[views.order].unflatten(0, (2, -1))  # [2, B, K]
        images = teacher.shape[1]
        if views.local is not None:
            student = torch.cat([student, self.head(self.encode(views.local)[:, 0])])
        return class_loss(student.unflatten(0, (-1, images)), teacher, STUDENT_TEMPERATURE)

    @torch.no_grad()
    def teacher_targets(
        self, output: TeacherOutput, mask: PatchIndices, progress: float, *, update: bool = True
    ) -> Targets:
        """Compute the teacher's probabilities for class tokens and masked patches.

        Args:
            output: of the teacher on the whole global crops, ``latent [2 * B, 1 + N, D]``.
            mask: masked patches of the first R crops, ``[R, M]``.
            progress: share of the training that is done, in [0, 1].
            update: move the centers afterwards.

        Returns:
            ``patches [R, M, K]`` and ``images [2 * B, K]``.
        """
        classes, patches = self.head(output.latent[:, 0]), self.head(output.latent[:, 1:])
        temperature = self._temperature(progress)
        targets = Targets(
            patches=sharpen(gather(patches[: len(mask.masked)], mask.masked), self.patch_centre, temperature),
            images=sharpen(classes, self.class_centre, temperature),
        )
        if update:
            update_center(self.class_centre, classes, CENTER_MOMENTUM)
            update_center(self.patch_centre, patches, CENTER_MOMENTUM)
        return targets

    @torch.no_grad()
    def token_metrics(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Entropy of the mean distribution over the prototypes, of student and teacher, in [0, 1]; 1 means even use."""
        return {
            "token_entropy": usage_entropy((prediction.float() / STUDENT_TEMPERATURE).softmax(dim=-1)),
            "target_entropy": usage_entropy(target),
        }

    def scheduled_metrics(self, progress: float) -> dict[str, float]:
        """Return the temperature of the teacher at ``progress`` in [0, 1]."""
        return {"teacher_temperature": self._temperature(progress)}

    def before_update(self, progress: float) -> None:
        """Freeze the prototypes at the beginning of the training: remove their gradient."""
        if progress < self.frozen_last_layer:
            self.head.get_parameter("last.weight").grad = None

    def _temperature(self, progress: float) -> float:
        return teacher_temperature(progress, *TEACHER_TEMPERATURES, self.temperature_warmup)
