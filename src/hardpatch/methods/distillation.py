"""Self-distillation over K prototypes: the losses of iBOT (Zhou et al., ICLR 2022), which extends DINO.

The teacher's logits are centered and sharpened to probabilities, which the student learns by cross-entropy: for the
class token across the views of an image, for masked patches within a view. Several views lie in one tensor, views first
(V views, G of them global, B images, N patches, K prototypes).

In a step the targets are sharpened first and the centers are moved afterwards, as in the reference implementation.
Everything is computed in float32, also under autocast, and nothing waits for the device.
"""

import math

import torch
from torch import Tensor

from hardpatch.processes import average
from hardpatch.schedules import ramp

STUDENT_TEMPERATURE = 0.1
CENTER_MOMENTUM = 0.9


@torch.no_grad()
def sharpen(logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    """Compute the teacher's probabilities ``softmax((logits - center) / temperature)``, without gradient.

    Centering prevents that one prototype wins every token, sharpening prevents that all are equally likely (Caron et
    al. 2021, Section 3.1).

    Args:
        logits: ``[..., K]``.
        center: ``[K]``, or with leading dimensions of 1.
        temperature: of the softmax; the lower, the sharper.

    Returns:
        float32 ``[..., K]``.
    """
    return ((logits.float() - center) / temperature).softmax(dim=-1)


def cross_entropy(logits: Tensor, probabilities: Tensor, temperature: float = STUDENT_TEMPERATURE) -> Tensor:
    """Cross-entropy of the student's logits under the teacher's probabilities, both ``[..., K]``: ``[...]`` in nats."""
    return -(probabilities * _log_probabilities(logits, temperature)).sum(dim=-1)


def class_loss(student: Tensor, teacher: Tensor, temperature: float = STUDENT_TEMPERATURE) -> Tensor:
    """Loss of class tokens across views (L_[CLS]): the mean over images and pairs of a teacher and a student view.

    A pair is of two different views of the same image.

    Args:
        student: logits of all views ``[V, B, K]``, the G global views first, in the teacher's order.
        teacher: probabilities of the global views ``[G, B, K]``, from :func:`sharpen`.
        temperature: of the student's softmax.

    Returns:
        A scalar.

    Raises:
        ValueError: if the shapes do not match, or there is no pair of different views.
    """
    views, global_views = len(student), len(teacher)
    if student.shape[1:] != teacher.shape[1:] or not 1 <= global_views <= views or views < 2:
        raise ValueError(
            "student: expected logits [V, B, K] of at least 2 views, those of the teacher's [G, B, K] first, got "
            f"{list(student.shape)} with a teacher of {list(teacher.shape)}"
        )
    log_student = _log_probabilities(student, temperature)
    # Cross-entropy is linear in both arguments: the sum over all pairs is a product of two sums, less the pairs of a
    # view with itself.
    every = (teacher.sum(dim=0) * log_student.sum(dim=0)).sum()
    same = (teacher * log_student[:global_views]).sum()
    pairs = global_views * (views - 1)
    return (same - every) / (pairs * student.shape[1])


def patch_loss(losses: Tensor, mask: Tensor) -> Tensor:
    """Loss of masked patches within a view (L_MIM): mean over the masked patches of an image, then over images.

    An image without masked patches has loss 0, as in the reference implementation. If every image has M masked patches,
    the mean of the losses ``[..., M]`` of these is the same number.

    Args:
        losses: loss of each patch ``[..., N]``, from :func:`cross_entropy`.
        mask: bool ``[..., N]``, True = masked.

    Returns:
        A scalar.
    """
    return (torch.where(mask, losses, 0.0).sum(dim=-1) / mask.sum(dim=-1).clamp(min=1)).mean()


@torch.no_grad()
def update_center(center: Tensor, logits: Tensor, momentum: float = CENTER_MOMENTUM) -> None:
    """Move the center in place: ``center <- momentum * center + (1 - momentum) * mean of the teacher's logits``.

    Args:
        center: float32 ``[K]``, or with leading dimensions of 1.
        logits: ``[..., K]``, before sharpening. The mean is over all leading dimensions: views and images for class
            tokens; views, images and all patches for patch tokens; and over all processes.
        momentum: share of the center that stays.
    """
    center.lerp_(average(logits.float().flatten(end_dim=-2).mean(dim=0)), 1.0 - momentum)


def teacher_temperature(progress: float, start: float, end: float, warmup: float) -> float:
    """Compute the teacher's temperature: linear from ``start`` to ``end`` during ``warmup``, then constant.

    ``progress`` and ``warmup`` are shares of the training, in [0, 1]. A high temperature at the beginning makes the
    training unstable (Caron et al. 2021).
    """
    return ramp(progress, start, end, warmup)


@torch.no_grad()
def usage_entropy(probabilities: Tensor) -> Tensor:
    """Entropy of the mean of ``probabilities [..., K]`` divided by ``log K``: how evenly the K prototypes are used.

    A scalar in [0, 1], over all processes: 1 if all are used equally often, 0 if only one is used (a collapse).
    """
    mean = average(probabilities.float().flatten(end_dim=-2).mean(dim=0))
    return torch.special.entr(mean).sum() / math.log(max(2, len(mean)))


@torch.no_grad()
def token_entropy(tokens: Tensor, vocabulary: int) -> Tensor:
    """Usage entropy of tokens, int64 of any shape in [0, ``vocabulary``): a scalar, see :func:`usage_entropy`."""
    # not by bincount, which waits for the device to read the largest token
    counts = torch.zeros(vocabulary, dtype=torch.int64, device=tokens.device)
    flat = tokens.flatten()
    counts.scatter_add_(0, flat, torch.ones_like(flat))
    return usage_entropy((counts / max(1, len(flat))).unsqueeze(0))


def _log_probabilities(logits: Tensor, temperature: float) -> Tensor:
    return (logits.float() / temperature).log_softmax(dim=-1)
