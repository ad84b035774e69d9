"""Values that change during training, as functions of its progress."""

import random
from typing import NamedTuple

from hardpatch.configuration.sections import RunConfig
from hardpatch.methods.curriculum import linear_alpha
from hardpatch.methods.teacher import cosine_momentum, linear_momentum
from hardpatch.schedules import half_cosine, learning_rate, ramp, step_decay
from hardpatch.train.extension import course as course_of


class Schedule(NamedTuple):
    """Values for one step."""

    progress: float
    """fraction of the training that is done, in [0, 1]"""
    lr: float
    weight_decay: float
    alpha: float
    """mined fraction of the masked patches"""
    mask_ratio: float
    momentum: float
    """of the teacher"""
    encoder_factor: float = 1.0
    """factor of the learning rate of an encoder that started from existing weights; 0 while it is frozen"""

    def metrics(self, run: RunConfig) -> dict[str, float]:
        """Return the values for a line of metrics, without those that are constant in the run."""
        row = self._asdict()
        del row["progress"]
        if run.init.weights is None:
            del row["encoder_factor"]
        if run.optim.weight_decay_end is None:
            del row["weight_decay"]
        if not run.method.mask_ratio_spread:
            del row["mask_ratio"]
        return row


def schedule(run: RunConfig, step: int, total: int) -> Schedule:
    """Return the values for the optimizer step after ``step`` of ``total``."""
    optim, method = run.optim, run.method
    course = course_of(total, run.extensions)
    progress = course.progress(step)
    momentum = {"linear": linear_momentum, "cosine": cosine_momentum}[method.momentum_schedule]
    last_decay = optim.weight_decay if optim.weight_decay_end is None else optim.weight_decay_end
    spread = method.mask_ratio_spread
    return Schedule(
        progress=progress,
        lr=course.rate(step, lambda step, total: scheduled_lr(run, step / total)),
        weight_decay=half_cosine(progress, optim.weight_decay, last_decay),
        alpha=linear_alpha(progress, method.alpha_start, method.alpha_end) if run.has_predictor else 0.0,
        # one ratio for the whole batch, so that all images have the same number of masked patches
        mask_ratio=method.mask_ratio + (random.Random(f"{run.seed} {step}").uniform(-spread, spread) if spread else 0),
        momentum=momentum(progress, method.momentum_start, method.momentum_end, method.momentum_warmup),
        encoder_factor=encoder_factor(run, progress),
    )


def encoder_factor(run: RunConfig, progress: float) -> float:
    """Return the factor of the encoder's learning rate: 0 while it is frozen, then rising to 1 within a warm-up."""
    frozen = 0.0 if run.init.weights is None else run.init.frozen
    if not frozen:
        return 1.0
    return 0.0 if progress < frozen else ramp(progress - frozen, 0.0, 1.0, run.optim.warmup)


def scheduled_lr(run: RunConfig, progress: float) -> float:
    """Return the learning rate at ``progress`` in [0, 1], after ``optim.schedule``."""
    optim = run.optim
    if optim.schedule == "constant":
        return ramp(progress, 0.0, run.peak_lr, optim.warmup)
    if optim.schedule == "step":
        return step_decay(progress, run.peak_lr, optim.warmup, optim.step_at, optim.step_factor)
    return learning_rate(progress, run.peak_lr, optim.min_lr, optim.warmup)
