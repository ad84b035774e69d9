"""The teacher: an exponential moving average of the student that predicts which patches will be hard."""

import copy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpatch.schedules import half_cosine, ramp


class TeacherOutput(NamedTuple):
    """Result of the teacher on whole images, nothing masked."""

    latent: Tensor
    """``[B, 1 + N, D]`` after the encoder's norm, class token first"""
    difficulty: Tensor | None
    """predicted loss of every patch, ``[B, N]``; None where it was not asked for"""
    attention: Tensor | None
    """attention of the class token to every patch, ``[B, N]``; None where it was not asked for"""


class Teacher(nn.Module):
    """Moving average of the student (Eq. 1), in eval mode, without gradient.

    ``teacher <- momentum * teacher + (1 - momentum) * student``. It holds what :meth:`forward` needs, encoder and loss
    predictor, and never the reconstructor. It runs at most once a step: masks, feature targets and iBOT read the same
    output.

    Args:
        student: a :class:`~hardpatch.methods.hpm.HPM`; copied as it is now.
        resolution: factor in (0, 1] by which its images are smaller; the map of difficulty is enlarged again.
    """

    network: Any

    def __init__(self, student: Any, resolution: float = 1.0) -> None:
        super().__init__()
        self.resolution = resolution
        unused = {id(getattr(student.host, name)): None for name in student.host.reconstruction_only}
        self.network = copy.deepcopy(student, unused)  # deepcopy takes what is in its memo for copied
        self.network.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Tensor, *, difficulty: bool = True, attention: bool = False) -> TeacherOutput:
        """Encode whole images ``[B, C, H, W]`` and predict their difficulty.

        Args:
            images: normalized.
            difficulty: predict the loss of every patch.
            attention: also return where the class token attends in the last block.
        """
        if self.resolution == 1.0:
            return self.network.see_whole(images, difficulty=difficulty, attention=attention)
        size = self.network.patch_size
        grid = images.shape[-2] // size, images.shape[-1] // size
        small = [max(1, round(side * self.resolution)) for side in grid]
        images = F.interpolate(images, size=[side * size for side in small], mode="area")
        output = self.network.see_whole(images, difficulty=difficulty)
        if output.difficulty is None:
            return output
        predicted = output.difficulty.unflatten(1, (1, *small))
        return output._replace(difficulty=F.interpolate(predicted, size=grid, mode="bilinear").flatten(1))

    @torch.no_grad()
    def predict_loss(self, images: Tensor) -> Tensor:
        """Predicted difficulty ``[B, N]`` of every patch of whole ``images [B, C, H, W]``, nothing masked."""
        return self.network.predict_loss(images)

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float) -> None:
        """Move every weight toward the student's by ``1 - momentum``, once an optimizer step (Eq. 1)."""
        theirs = dict(student.named_parameters())
        ours = dict(self.network.named_parameters())
        torch._foreach_lerp_(list(ours.values()), [theirs[name] for name in ours], 1.0 - momentum)


def linear_momentum(progress: float, start: float, end: float, warmup: float) -> float:
    """Momentum that rises linearly from ``start`` to ``end`` while ``progress`` goes from 0 to ``warmup``, then stays.

    All of ``progress`` and ``warmup`` in units of the whole training; the reference goes from 0.999 to 0.9999 within
    the first 100 epochs.
    """
    return ramp(progress, start, end, warmup)


def cosine_momentum(progress: float, start: float, end: float, warmup: float) -> float:
    """Momentum that rises along half a cosine (DINO, iBOT: from 0.996 to 1 over the whole training)."""
    return half_cosine(ramp(progress, 0.0, 1.0, warmup), start, end)
