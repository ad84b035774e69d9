"""Objectives of fine-tuning: targets and loss of a batch, and how a set is evaluated."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from hardpatch.data.targets import TargetTable
from hardpatch.finetune.augment import Mixer
from hardpatch.finetune.balance import loss_weights
from hardpatch.finetune.measure import ClassifierEvaluation, Predict, classify
from hardpatch.finetune.settings import FinetuneSettings
from hardpatch.finetune.target_measure import MultilabelEvaluation, RegressionEvaluation, measure_targets


class Evaluation(Protocol):
    """Result on a set of images."""

    @property
    def images(self) -> int:
        """Number of images."""

    @property
    def bad(self) -> Sequence[str]:
        """A line for each image that cannot be decoded."""

    @property
    def score(self) -> float:
        """Main number, higher is better: top-1, mean average precision or R^2."""

    def metrics(self) -> dict[str, float]:
        """Return numbers for the log."""


class ClassObjective:
    """One class for each image: cross-entropy with soft targets.

    Args:
        run: the settings.
        classes: names of the classes.
        counts: int64 ``[classes]``, training images of each class.
        val_labels: index in ``classes`` of each label of the validation set, on the device.
    """

    def __init__(
        self, run: FinetuneSettings, classes: tuple[str, ...], counts: Tensor | None, val_labels: Tensor
    ) -> None:
        self.names, self.val_labels = classes, val_labels
        weights = loss_weights(run.class_weights, classes, counts)
        self.weights = None if weights is None else weights.to(val_labels.device)
        self.mixer = Mixer(
            len(classes),
            mixup=run.mixup,
            cutmix=run.cutmix,
            probability=run.mix_prob,
            smoothing=run.smoothing,
            seed=run.seed,
        )

    def prepare(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return the images of a batch, which may be mixed, and their targets ``[B, classes]``."""
        return self.mixer(images, labels, step)

    def loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy over the images; each class counts with its weight."""
        return F.cross_entropy(scores, targets, weight=self.weights)

    def evaluate(self, predict: Predict, count: int, labels: Tensor | None = None) -> ClassifierEvaluation:
        """Evaluate the predictions of a set; ``labels`` are in place of ``val_labels``."""
        return classify(predict, self.val_labels if labels is None else labels, count)

    def described(self) -> dict[str, Any]:
        """Return plain values for the metadata of weights."""
        return {"task": "classes", "target_names": list(self.names)}


class TargetObjective:
    """Several labels or numbers for each image, whose label is its row in a table.

    Args:
        run: the settings.
        train: targets of the training images.
        val: targets of the validation images.
        units: mean and standard deviation of each target of a regression; None for several labels an image.
        device: of the training.
    """

    def __init__(
        self,
        run: FinetuneSettings,
        train: TargetTable,
        val: TargetTable,
        units: tuple[Sequence[float], Sequence[float]] | None,
        device: torch.device,
    ) -> None:
        self.run, self.task, self.names = run, run.task, train.names
        self.train, self.val = train.values.to(device), val.values.to(device)
        self.units = units
        self.std = None if units is None else torch.tensor(units[1], device=device)
        weights = None
        if run.task == "multilabel":
            weights = loss_weights(run.class_weights, self.names, train.values.sum(dim=0), len(train.values))
        self.weights = None if weights is None else weights.to(device)
        self.balanced = run.class_weights == ("balanced",)

    def prepare(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return the images of a batch and their targets ``[B, names]``."""
        return images, self.train[labels]

    def loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss over images and targets; of a regression in standard deviations of the targets."""
        if self.task == "multilabel":
            positive = self.weights if self.balanced else None
            weight = None if self.balanced else self.weights
            return F.binary_cross_entropy_with_logits(scores, targets, weight, pos_weight=positive)
        assert self.std is not None
        wanted = F.mse_loss if self.run.regression_loss == "mse" else F.l1_loss
        return wanted(scores / self.std, targets / self.std)

    def evaluate(
        self, predict: Predict, count: int, labels: Tensor | None = None
    ) -> MultilabelEvaluation | RegressionEvaluation:
        """Evaluate the predictions of the validation set."""
        return measure_targets(self.task, predict, self.val, self.names, self.loss)

    def described(self) -> dict[str, Any]:
        """Return plain values for the metadata of weights."""
        values: dict[str, Any] = {"task": self.task, "target_names": list(self.names)}
        if self.units is not None:
            values |= {"target_mean": list(self.units[0]), "target_std": list(self.units[1])}
        return values
