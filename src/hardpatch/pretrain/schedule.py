"""Optimizer groups, and everything that changes as training goes on."""

import random
from typing import NamedTuple

from hardpatch.methods.curriculum import linear_alpha
from hardpatch.methods.distillation import teacher_temperature
from hardpatch.methods.teacher import cosine_momentum, linear_momentum
from hardpatch.pretrain.sections import RunConfig
from hardpatch.schedules import half_cosine, learning_rate


class Schedule(NamedTuple):
    """The values of one step."""

    lr: float
    weight_decay: float
    alpha: float
    """mined share of the masked patches"""
    mask_ratio: float
    momentum: float
    """of the teacher"""
    teacher_temperature: float
    """of host ibot"""

    def told(self, run: RunConfig) -> dict[str, float]:
        """What a line of metrics says: without what a run does not have or never changes."""
        row = self._asdict()
        if run.optim.weight_decay_end is None:
            del row["weight_decay"]
        if not run.method.mask_ratio_spread:
            del row["mask_ratio"]
        if run.method.host != "ibot":
            del row["teacher_temperature"]
        return row


def schedule(run: RunConfig, step: int, total: int) -> Schedule:
    """What holds for the optimizer step after ``step`` of ``total``."""
    optim, method, ibot = run.optim, run.method, run.ibot
    progress = step / total
    peak = optim.lr if optim.lr is not None else optim.base_lr * run.batch_size / 256
    mining = method.predicting_loss != "none"
    momentum = {"linear": linear_momentum, "cosine": cosine_momentum}[method.momentum_schedule]
    last = optim.weight_decay if optim.weight_decay_end is None else optim.weight_decay_end
    spread = method.mask_ratio_spread
    return Schedule(
        lr=learning_rate(progress, peak, optim.min_lr, optim.warmup),
        weight_decay=half_cosine(progress, optim.weight_decay, last),
        alpha=linear_alpha(progress, method.alpha_start, method.alpha_end) if mining else 0.0,
        # one ratio for the whole batch, so that all images have as many masked patches
        mask_ratio=method.mask_ratio + (random.Random(f"{run.seed} {step}").uniform(-spread, spread) if spread else 0),
        momentum=momentum(progress, method.momentum_start, method.momentum_end, method.momentum_warmup),
        teacher_temperature=teacher_temperature(
            progress,
            ibot.teacher_temperature_start,
            ibot.teacher_temperature_end,
            ibot.teacher_temperature_warmup,
        ),
    )
