"""Results of fine-tuning on several labels or numbers an image: average precision; R^2 and mean absolute error."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hardpatch.choices import TaskName
from hardpatch.errors import UserError
from hardpatch.finetune.measure import Predict


@dataclass(frozen=True)
class MultilabelEvaluation:
    """Result on images with any number of labels each."""

    names: tuple[str, ...]
    average_precision: tuple[float | None, ...]
    """of each class; None for a class without a positive image, where it is not defined"""
    positives: tuple[int, ...]
    images: int
    loss: float
    bad: tuple[str, ...] = ()

    @property
    def score(self) -> float:
        """Mean average precision over the classes that have a positive image."""
        defined = [value for value in self.average_precision if value is not None]
        return sum(defined) / len(defined)

    @property
    def chance(self) -> float:
        """Mean share of positives over the same classes, which random scores reach."""
        defined = [count for count in self.positives if count]
        return sum(defined) / len(defined) / self.images

    def metrics(self) -> dict[str, float]:
        """Return numbers for the log."""
        return {"val_loss": self.loss, "map": self.score}

    def report(self) -> dict[str, Any]:
        """Return plain values for ``result.json``."""
        rows = zip(self.names, self.positives, self.average_precision, strict=True)
        return {
            **self.metrics(),
            "chance_map": self.chance,
            "without_positives": [name for name, count in zip(self.names, self.positives, strict=True) if not count],
            "per_class": [{"name": name, "positives": count, "ap": value} for name, count, value in rows],
        }

    def line(self) -> str:
        """Return the result in words."""
        without = [name for name, count in zip(self.names, self.positives, strict=True) if not count]
        left_out = f"; {len(without)} classes without a positive image are left out of the mean" if without else ""
        return f"mAP {self.score:.2%} (random scores {self.chance:.2%}{left_out})"


@dataclass(frozen=True)
class RegressionEvaluation:
    """Result on numbers, in the units of the data."""

    names: tuple[str, ...]
    r2: tuple[float | None, ...]
    """1 minus the squared error over that of the mean of the set; None for a number that is the same in all images"""
    mae: tuple[float, ...]
    """mean absolute error"""
    images: int
    loss: float
    bad: tuple[str, ...] = ()

    @property
    def score(self) -> float:
        """Mean R^2 over the targets that vary; the loss with a minus sign where none does."""
        defined = [value for value in self.r2 if value is not None]
        return sum(defined) / len(defined) if defined else -self.loss

    def metrics(self) -> dict[str, float]:
        """Return numbers for the log."""
        named = {f"mae_{name}": value for name, value in zip(self.names, self.mae, strict=True)}
        return {"val_loss": self.loss, "r2": self.score, **named}

    def report(self) -> dict[str, Any]:
        """Return plain values for ``result.json``."""
        rows = zip(self.names, self.r2, self.mae, strict=True)
        per_target = [{"name": name, "r2": r2, "mae": mae} for name, r2, mae in rows]
        return {"val_loss": self.loss, "r2": self.score, "per_target": per_target}

    def line(self) -> str:
        """Return the result in words."""
        rows = zip(self.names, self.r2, self.mae, strict=True)
        each = ", ".join(f"{name} {_text(r2)} (mean absolute error {mae:.4g})" for name, r2, mae in rows)
        return f"R^2 {self.score:.4f}: {each}"


def _text(r2: float | None) -> str:
    return "undefined, as all values are the same" if r2 is None else f"{r2:.4f}"


def measure_targets(
    task: TaskName,
    predict: Predict,
    table: Tensor,
    names: Sequence[str],
    loss: Callable[[Tensor, Tensor], Tensor],
) -> MultilabelEvaluation | RegressionEvaluation:
    """Compare the predictions of a set with its targets.

    Args:
        task: ``multilabel`` or ``regression``.
        predict: yields outputs and rows of the table; see :data:`~hardpatch.finetune.measure.Predict`.
        table: targets, float32 ``[images, names]``.
        names: of the targets.
        loss: of outputs and targets.

    Raises:
        UserError: if no class has a positive image.
    """
    parts, rows, bad = [], [], list[str]()
    for scores, labels, lines in predict:
        parts.append(scores)
        rows.append(labels)
        bad += lines
    scores, targets = torch.cat(parts), table[torch.cat(rows)]
    mean_loss = float(loss(scores, targets))
    if task == "multilabel":
        positives = targets.sum(dim=0).long()
        if not bool(positives.any()):
            raise UserError("--val: expected a positive image of some class, no image has a label")
        precision = [average_precision(scores[:, k], targets[:, k]) for k in range(len(names))]
        return MultilabelEvaluation(
            tuple(names), tuple(precision), tuple(positives.tolist()), len(scores), mean_loss, tuple(bad)
        )
    scores, targets = scores.cpu().double(), targets.cpu().double()
    error, around_mean = (scores - targets).square().sum(dim=0), (targets - targets.mean(dim=0)).square().sum(dim=0)
    constant = (targets == targets[:1]).all(dim=0)
    r2 = [None if same else float(1 - e / m) for same, e, m in zip(constant, error, around_mean, strict=True)]
    mae = (scores - targets).abs().mean(dim=0).tolist()
    return RegressionEvaluation(tuple(names), tuple(r2), tuple(mae), len(scores), mean_loss, tuple(bad))


def average_precision(scores: Tensor, truth: Tensor) -> float | None:
    """Return the average precision of one class: the mean precision at the positive images.

    Args:
        scores: ``[B]``, higher for more probable.
        truth: ``[B]``, 1 for positive images.

    Returns:
        A number in [0, 1]; None without a positive image, or where a score is NaN or infinite.
    """
    if not bool(truth.any()) or not bool(scores.isfinite().all()):
        return None
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(truth.cpu().numpy(), scores.cpu().numpy()))
