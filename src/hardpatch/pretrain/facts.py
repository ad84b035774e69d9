"""Facts of a run that its verdict rests on, beside the metrics of its checks."""

import math
from dataclasses import dataclass
from pathlib import Path

from hardpatch.configuration.hosts import HOSTS
from hardpatch.configuration.sections import RunConfig
from hardpatch.pretrain import rules


@dataclass(frozen=True)
class Facts:
    """Facts of a run that its checks do not tell."""

    target: str
    """what is reconstructed, in words"""
    moving: bool
    """the target changes with the training, so that losses cannot be compared over time"""
    held_out: bool
    """the checks look at images that are not trained on"""
    images: int
    """in the training set"""
    epochs: float
    steps: int
    batch_size: int
    lr: float
    """peak learning rate"""
    usual_lr: float
    """peak learning rate that a plan would choose"""
    mines: bool
    can_remember: bool
    """the host can mine by remembered predictions of masked patches"""
    folder: str
    start: str = "untrained"
    """what the first check measured, in words"""
    comparable_from: int = 0
    """step from which on losses tell the course of the training: before that, new parts of a model that started from
    existing weights learn alone"""
    initialized: bool = False
    """the training started from existing weights"""


def facts(run: RunConfig, folder: Path, images: int, total: int, held_out: bool) -> Facts:
    """Collect the facts of a run.

    Args:
        run: its configuration.
        folder: of the run.
        images: number in the training set.
        total: optimizer steps.
        held_out: the checks look at images that are not trained on.
    """
    host = HOSTS[run.method.host]
    return Facts(
        target=target_words(run),
        moving=host.uses_teacher or run.method.target == "teacher",
        held_out=held_out,
        images=images,
        epochs=total * run.batch_size / images,
        steps=total,
        batch_size=run.batch_size,
        lr=run.peak_lr,
        usual_lr=rules.rate(run.batch_size, run.encoder_shape["width"]),
        mines=run.mines,
        can_remember=host.drops_masked and not run.fast.remember and run.method.target != "teacher",
        folder=str(folder),
        start="untrained" if run.init.weights is None else "at the start",
        comparable_from=0 if run.init.weights is None else math.ceil(run.init.frozen * total),
        initialized=run.init.weights is not None,
    )


def target_words(run: RunConfig) -> str:
    """Describe what a run reconstructs."""
    method, host = run.method, HOSTS[run.method.host]
    if host.tokenizer:
        return "visual tokens"
    if host.uses_teacher:
        return "tokens of the teacher"
    if method.target == "normalized_pixels":
        return "pixels normalized patch by patch"
    features = {"teacher": "features of the teacher", "frozen": f"features of {method.frozen}"}
    return features.get(method.target, "pixels")
