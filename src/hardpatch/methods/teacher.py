"""The teacher: an exponential moving average of the student that predicts the difficulty of each patch (Eq. 1)."""

import copy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpatch.schedules import half_cosine, ramp


class TeacherOutput(NamedTuple):
    """Output of the teacher for whole images, nothing masked."""

    latent: Tensor
    """``[B, 1 + N, D]`` after the encoder's norm, class token first"""
    difficulty: Tensor | None
    """predicted loss of every patch, ``[B, N]``; None if it was not requested"""
    attention: Tensor | None
    """attention of the class token to every patch, ``[B, N]``; None if it was not requested"""


class Teacher(nn.Module):
    """Moving average of the student (Eq. 1), in eval mode, without gradient.

    ``teacher <- momentum * teacher + (1 - momentum) * student``. The teacher consists of encoder and loss predictor; it
    has no reconstructor. It runs at most once a step: difficulty, attention and targets come from the same output.

    Args:
        student: the :class:`~hardpatch.methods.hpm.HPM` to copy.
        resolution: factor in (0, 1] by which images are scaled down first; the difficulty map is enlarged afterwards.
    """

    network: Any

    def __init__(self, student: Any, resolution: float = 1.0) -> None:
        super().__init__()
        self.resolution = resolution
        unused = {id(getattr(student.host, name)): None for name in student.host.reconstruction_only}
        self.network = copy.deepcopy(student, unused)  # modules in the memo become None and are not copied
        self.network.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Tensor, *, difficulty: bool = True, attention: bool = False) -> TeacherOutput:
        """Encode whole images ``[B, C, H, W]`` and predict their difficulty.

        Args:
            images: normalized.
            difficulty: predict the loss of every patch.
            attention: also compute the attention of the class token in the last block.
        """
        if self.resolution == 1.0:
            return self.network.forward_whole(images, difficulty=difficulty, attention=attention)
        size = self.network.patch_size
        grid = images.shape[-2] // size, images.shape[-1] // size
        small = [max(1, round(side * self.resolution)) for side in grid]
        images = F.interpolate(images, size=[side * size for side in small], mode="area")
        output = self.network.forward_whole(images, difficulty=difficulty)
        if output.difficulty is None:
            return output
        predicted = output.difficulty.unflatten(1, (1, *small))
        return output._replace(difficulty=F.interpolate(predicted, size=grid, mode="bilinear").flatten(1))

    @torch.no_grad()
    def predict_loss(self, images: Tensor) -> Tensor:
        """Predict the difficulty ``[B, N]`` of every patch of whole ``images [B, C, H, W]``, nothing masked."""
        return self.network.predict_loss(images)

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float) -> None:
        """Move every weight toward the student's by ``1 - momentum``, once an optimizer step (Eq. 1)."""
        student_weights = dict(student.named_parameters())
        weights = dict(self.network.named_parameters())
        torch._foreach_lerp_(list(weights.values()), [student_weights[name] for name in weights], 1.0 - momentum)


def linear_momentum(progress: float, start: float, end: float, warmup: float) -> float:
    """Momentum that rises linearly from ``start`` to ``end`` while ``progress`` goes from 0 to ``warmup``, then stays.

    ``progress`` and ``warmup`` are shares of the training, in [0, 1]. The reference implementation goes from 0.999 to
    0.9999 in the first 100 epochs.
    """
    return ramp(progress, start, end, warmup)


def cosine_momentum(progress: float, start: float, end: float, warmup: float) -> float:
    """Momentum that rises along half a cosine (DINO, iBOT: from 0.996 to 1 over the whole training)."""
    return half_cosine(ramp(progress, 0.0, 1.0, warmup), start, end)
