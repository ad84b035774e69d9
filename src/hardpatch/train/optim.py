"""Optimiser groups, and everything that changes as training goes on."""

import math
from typing import Any, NamedTuple

from torch import nn

from hardpatch.config import RunConfig
from hardpatch.curriculum import linear_alpha
from hardpatch.models.teacher import linear_momentum


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters in two groups: weight decay on matrices and tokens, none on biases and norms."""
    from timm.optim._param_groups import param_groups_weight_decay

    return param_groups_weight_decay(model, weight_decay)


def learning_rate(progress: float, peak: float, minimum: float, warmup: float) -> float:
    """Linear warm-up from 0 to ``peak``, then half a cosine down to ``minimum``.

    Args:
        progress: share of the training that is done before this step, in [0, 1].
        peak: learning rate after the warm-up.
        minimum: learning rate at the end.
        warmup: share of the training spent warming up, in [0, 1].
    """
    if progress < warmup:
        return peak * progress / warmup
    cosine = 0.5 * (1.0 + math.cos(math.pi * (progress - warmup) / max(1.0 - warmup, 1e-12)))
    return minimum + (peak - minimum) * cosine


class Schedule(NamedTuple):
    """The values of one step."""

    lr: float
    alpha: float
    """mined share of the masked patches"""
    momentum: float
    """of the teacher"""


def schedule(run: RunConfig, progress: float) -> Schedule:
    """What holds when the share ``progress`` in [0, 1] of a run is done."""
    optim, method = run.optim, run.method
    peak = optim.lr if optim.lr is not None else optim.base_lr * run.batch_size / 256
    mining = method.predicting_loss != "none"
    return Schedule(
        lr=learning_rate(progress, peak, optim.min_lr, optim.warmup),
        alpha=linear_alpha(progress, method.alpha_start, method.alpha_end) if mining else 0.0,
        momentum=linear_momentum(progress, method.momentum_start, method.momentum_end, method.momentum_warmup),
    )
