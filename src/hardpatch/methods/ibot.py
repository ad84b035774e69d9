"""iBOT (Zhou et al., ICLR 2022): the moving average of the student is the tokenizer.

Class tokens of different views of an image must agree (DINO), and masked patches must give what the teacher sees there.
One teacher serves iBOT and hard patches mining: it looks at the whole global crops once, and from that come the masks
and both targets. The per-patch loss is what the loss predictor learns to rank.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hardpatch.methods.base import TokenHost
from hardpatch.methods.distillation import class_loss, cross_entropy, sharpen, update_center, usage_entropy
from hardpatch.models.encoder import Encoder
from hardpatch.models.projection import ProjectionHead
from hardpatch.patches import PatchIndices, gather


class Views(NamedTuple):
    """What the class tokens learn from, beside the global crops that the student is given."""

    local: Tensor | None
    """normalized small crops ``[L * B, C, h, w]``, all images of the first, then of the second..."""
    classes: Tensor
    """the teacher's probabilities ``[2 * B, K]`` for the global crops, in the order of those crops"""
    back: Tensor
    """int64 ``[2 * B]``: puts the global crops in the order of ``local``, view by view"""


class IBOT(TokenHost):
    """Self-distillation of class and patch tokens, by one head for both.

    Args:
        outputs, head_hidden, head_bottleneck: of the head, see :class:`~hardpatch.models.projection.ProjectionHead`.
        student_temperature: of the student's softmax.
        decoder_width: of the loss predictor's tokens; None without one.
        encoder: see :class:`~hardpatch.models.encoder.Encoder`.
    """

    reconstruction_only: tuple[str, ...] = ()
    class_centre: Tensor
    patch_centre: Tensor

    def __init__(
        self,
        *,
        outputs: int = 8192,
        head_hidden: int = 2048,
        head_bottleneck: int = 256,
        student_temperature: float = 0.1,
        decoder_width: int | None = None,
        **encoder: Any,
    ) -> None:
        vit = Encoder(drop_masked=False, **encoder)
        head = ProjectionHead(vit.width, outputs, hidden=head_hidden, bottleneck=head_bottleneck)
        super().__init__(vit, head, decoder_width)
        self.student_temperature = student_temperature
        self.register_buffer("class_centre", torch.zeros(1, outputs))
        self.register_buffer("patch_centre", torch.zeros(1, 1, outputs))

    def target(self, images: Tensor) -> Tensor:
        raise ValueError("target: iBOT's comes from its teacher, see IBOT.teach")

    def reconstruction_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(prediction, target, self.student_temperature)

    def class_loss(self, class_tokens: Tensor, views: Views) -> Tensor:
        """Mean cross-entropy between the teacher's global views and the student's other views.

        Args:
            class_tokens: the student's, of the global crops, ``[2 * B, D]``.
            views: the local crops, and what the teacher says.
        """
        own = self.head(class_tokens)[views.back]  # [2 * B, K], view by view
        classes = views.classes[views.back].unflatten(0, (2, -1))  # [2, B, K]
        images = classes.shape[1]
        if views.local is not None:
            own = torch.cat([own, self.head(self.encode(views.local)[:, 0])])
        return class_loss(own.unflatten(0, (-1, images)), classes, self.student_temperature)

    @torch.no_grad()
    def teach(
        self, latent: Tensor, mask: PatchIndices, temperature: float, center_momentum: float
    ) -> tuple[Tensor, Tensor]:
        """The teacher's half: what class and masked patch tokens should say. Moves the centers afterwards.

        Args:
            latent: of the whole global crops, ``[2 * B, 1 + N, D]``.
            mask: of the first images, ``[R, M]``.
            temperature: of the teacher's softmax.
            center_momentum: of the running means of its outputs.

        Returns:
            Probabilities ``[2 * B, K]`` of the crops and ``[R, M, K]`` of the masked patches.
        """
        classes, patches = self.head(latent[:, 0]), self.head(latent[:, 1:])
        targets = (
            sharpen(classes, self.class_centre, temperature),
            sharpen(gather(patches[: len(mask.masked)], mask.masked), self.patch_centre, temperature),
        )
        update_center(self.class_centre, classes, center_momentum)
        update_center(self.patch_centre, patches, center_momentum)
        return targets

    @torch.no_grad()
    def token_use(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Entropy of the mean distribution over the prototypes, 1 = all alike: of student and teacher."""
        return {
            "token_entropy": usage_entropy((prediction.float() / self.student_temperature).softmax(dim=-1)),
            "target_entropy": usage_entropy(target),
        }
