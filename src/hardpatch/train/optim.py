"""Optimiser groups, and everything that changes as training goes on."""

from typing import Any, NamedTuple

from torch import nn

from hardpatch.config import RunConfig
from hardpatch.curriculum import linear_alpha
from hardpatch.models.teacher import linear_momentum
from hardpatch.schedules import learning_rate


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters in two groups: weight decay on matrices and tokens, none on biases and norms."""
    from timm.optim import param_groups_weight_decay

    return param_groups_weight_decay(model, weight_decay)


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
