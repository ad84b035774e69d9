"""The teacher: an exponential moving average of the student that says which patches will be hard."""

import copy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpatch.schedules import half_cosine, ramp


class TeacherOutput(NamedTuple):
    """What a look at whole images gives, nothing masked."""

    latent: Tensor
    """``[B, 1 + N, D]`` after the encoder's norm, class token first"""
    difficulty: Tensor | None
    """predicted loss of every patch, ``[B, N]``"""
    attention: Tensor | None
    """where the class token looks, ``[B, N]``"""


class Teacher(nn.Module):
    """``teacher <- momentum * teacher + (1 - momentum) * student`` (paper, Sec. 3.1), in eval mode, without gradient.

    It holds what :meth:`look` needs, encoder and loss predictor, and never the reconstructor. One look a step serves
    the masks, feature targets and iBOT.

    Args:
        student: a :class:`~hardpatch.methods.hpm.HPM`; copied as it is now.
        resolution: it looks at images smaller by this factor, in (0, 1]; the map is enlarged again.
    """

    network: Any

    def __init__(self, student: Any, resolution: float = 1.0) -> None:
        super().__init__()
        self.resolution = resolution
        unused = {id(getattr(student.host, name)): None for name in student.host.reconstruction_only}
        self.network = copy.deepcopy(student, unused)  # whatever deepcopy finds in its memo it does not copy
        self.network.requires_grad_(False).eval()

    @torch.no_grad()
    def look(self, images: Tensor, *, difficulty: bool = True, attention: bool = False) -> TeacherOutput:
        """See :meth:`HPM.look <hardpatch.methods.hpm.HPM.look>`."""
        if self.resolution == 1.0:
            return self.network.look(images, difficulty=difficulty, attention=attention)
        size = self.network.patch_size
        grid = images.shape[-2] // size, images.shape[-1] // size
        small = [max(1, round(side * self.resolution)) for side in grid]
        images = F.interpolate(images, size=[side * size for side in small], mode="area")
        sight = self.network.look(images, difficulty=difficulty)
        if sight.difficulty is None:
            return sight
        found = sight.difficulty.unflatten(1, (1, *small))
        return sight._replace(difficulty=F.interpolate(found, size=grid, mode="bilinear").flatten(1))

    @torch.no_grad()
    def predict_loss(self, images: Tensor) -> Tensor:
        """Predicted difficulty ``[B, N]`` of every patch of whole ``images [B, C, H, W]``, nothing masked."""
        return self.network.predict_loss(images)

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float) -> None:
        """Move every weight toward the student's by ``1 - momentum``, once an optimizer step."""
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
    """The same along half a cosine (DINO, iBOT: from 0.996 to 1 over the whole training)."""
    return half_cosine(ramp(progress, 0.0, 1.0, warmup), start, end)
