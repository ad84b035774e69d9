"""The teacher: an exponential moving average of the student that says which patches will be hard."""

import copy
from typing import Any

import torch
from torch import Tensor, nn


class Teacher(nn.Module):
    """``teacher <- momentum * teacher + (1 - momentum) * student`` (paper, Sec. 3.1), in eval mode, without gradient.

    It holds what ``predict_loss`` needs, encoder and loss predictor, and never the reconstructor.

    Args:
        student: a :class:`~hardpatch.methods.hpm.HPM`; copied as it is now.
    """

    network: Any

    def __init__(self, student: Any) -> None:
        super().__init__()
        unused = {id(getattr(student.host, name)): None for name in student.host.reconstruction_only}
        self.network = copy.deepcopy(student, unused)  # whatever deepcopy finds in its memo it does not copy
        self.network.requires_grad_(False).eval()

    @torch.no_grad()
    def predict_loss(self, images: Tensor) -> Tensor:
        """Predicted difficulty ``[B, N]`` of every patch of whole ``images [B, C, H, W]``, nothing masked."""
        return self.network.predict_loss(images)

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float) -> None:
        """Move every weight towards the student's by ``1 - momentum``, once an optimiser step."""
        theirs = dict(student.named_parameters())
        ours = dict(self.network.named_parameters())
        torch._foreach_lerp_(list(ours.values()), [theirs[name] for name in ours], 1.0 - momentum)


def linear_momentum(progress: float, start: float, end: float, warmup: float) -> float:
    """Momentum that rises linearly from ``start`` to ``end`` while ``progress`` goes from 0 to ``warmup``, then stays.

    All of ``progress`` and ``warmup`` in units of the whole training; the reference goes from 0.999 to 0.9999 within
    the first 100 epochs.
    """
    if warmup <= 0.0 or progress >= warmup:
        return end
    return start + (end - start) * progress / warmup
