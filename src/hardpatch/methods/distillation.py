"""Self-distillation over K prototypes: the losses of iBOT (Zhou et al., ICLR 2022), which extends DINO.

The teacher's logits are centered and sharpened to probabilities, the student learns them by cross-entropy: for the
class token across the views of an image, for masked patches within a view. Several views lie in one tensor, views first
(V views, G of them global, B images, N patches, K prototypes).

In a step the losses come first and the centers are moved afterwards: the reference sharpens with the centers that the
steps before have left. Everything runs in float32, under autocast too, and nothing waits for the device.
"""

import math

import torch
from torch import Tensor

from hardpatch.schedules import ramp

STUDENT_TEMPERATURE = 0.1
CENTRE_MOMENTUM = 0.9


@torch.no_grad()
def sharpen(logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    """The teacher's probabilities ``softmax((logits - center) / temperature)``, without gradient.

    ``logits [..., K]`` and a center that broadcasts, ``[K]``; returns float32 ``[..., K]``. Centring keeps one
    prototype from taking all, sharpening keeps them from all being equal (Caron et al. 2021, Section 3.1).
    """
    return ((logits.float() - center) / temperature).softmax(dim=-1)


def cross_entropy(logits: Tensor, probabilities: Tensor, temperature: float = STUDENT_TEMPERATURE) -> Tensor:
    """Of the student's ``logits [..., K]`` under the teacher's ``probabilities [..., K]``: unreduced ``[...]``, in
    nats.
    """
    return -(probabilities * _log_probabilities(logits, temperature)).sum(dim=-1)


def class_loss(student: Tensor, teacher: Tensor, temperature: float = STUDENT_TEMPERATURE) -> Tensor:
    """Class tokens across views (L_[CLS]): the mean over images and pairs of a teacher's and another student's view.

    Args:
        student: logits of all views ``[V, B, K]``, the teacher's G views first and in the teacher's order.
        teacher: probabilities of the global views ``[G, B, K]``, from :func:`sharpen`.
        temperature: the student's.

    Returns:
        A scalar.

    Raises:
        ValueError: for shapes that do not go together or that leave no pair of different views.
    """
    views, global_views = len(student), len(teacher)
    if student.shape[1:] != teacher.shape[1:] or not 1 <= global_views <= views or views < 2:
        raise ValueError(
            "student: expected logits [V, B, K] of at least 2 views, those of the teacher's [G, B, K] first, got "
            f"{list(student.shape)} with a teacher of {list(teacher.shape)}"
        )
    log_student = _log_probabilities(student, temperature)
    # Cross-entropy is linear in either argument: the sum over all pairs is one of sums, less the pairs of a view with
    # itself.
    every = (teacher.sum(dim=0) * log_student.sum(dim=0)).sum()
    same = (teacher * log_student[:global_views]).sum()
    pairs = global_views * (views - 1)
    return (same - every) / (pairs * student.shape[1])


def patch_loss(losses: Tensor, mask: Tensor) -> Tensor:
    """Masked patches within a view (L_MIM): the mean over the masked patches of an image, then over images and views.

    An image without a masked patch counts as an image of loss 0, as in the reference implementation. Where every image
    has M masked patches and only these were computed, ``cross_entropy(...).mean()`` over ``[..., M]`` is the same
    number.

    Args:
        losses: one for each patch ``[..., N]``, from :func:`cross_entropy`.
        mask: bool ``[..., N]``, True = masked.

    Returns:
        A scalar.
    """
    return (torch.where(mask, losses, 0.0).sum(dim=-1) / mask.sum(dim=-1).clamp(min=1)).mean()


@torch.no_grad()
def update_center(center: Tensor, logits: Tensor, momentum: float = CENTRE_MOMENTUM) -> None:
    """``center <- momentum * center + (1 - momentum) * mean of the teacher's logits``, in place.

    Args:
        center: float32 ``[K]``, or with leading dimensions of 1.
        logits: ``[..., K]`` before sharpening; the mean is over all that leads: views and images for class tokens,
            patches too, masked or not, for patch tokens.
        momentum: share of the center that stays.
    """
    center.lerp_(logits.float().flatten(end_dim=-2).mean(dim=0), 1.0 - momentum)


def teacher_temperature(progress: float, start: float, end: float, warmup: float) -> float:
    """Linear from ``start`` to ``end`` over the first ``warmup`` of the training, then ``end``.

    Both ``progress`` and ``warmup`` are shares of the training, in [0, 1]. A high temperature at the beginning makes
    the training unstable (Caron et al. 2021).
    """
    return ramp(progress, start, end, warmup)


@torch.no_grad()
def usage_entropy(probabilities: Tensor) -> Tensor:
    """How evenly the K prototypes are used: the entropy of the mean of ``probabilities [..., K]`` over ``log K``.

    A scalar in [0, 1]: 1 where all are used alike, 0 where everything has collapsed onto one.
    """
    mean = probabilities.float().flatten(end_dim=-2).mean(dim=0)
    return torch.special.entr(mean).sum() / math.log(max(2, len(mean)))


@torch.no_grad()
def token_entropy(tokens: Tensor, vocabulary: int) -> Tensor:
    """:func:`usage_entropy` of whole tokens, int64 of any shape in [0, ``vocabulary``). A scalar in [0, 1]."""
    # not by bincount, which waits for the device to learn the largest token
    counts = torch.zeros(vocabulary, dtype=torch.int64, device=tokens.device)
    flat = tokens.flatten()
    counts.scatter_add_(0, flat, torch.ones_like(flat))
    return usage_entropy((counts / max(1, len(flat))).unsqueeze(0))


def _log_probabilities(logits: Tensor, temperature: float) -> Tensor:
    return (logits.float() / temperature).log_softmax(dim=-1)
