"""Accuracies of a classifier, and its confusion matrix as numbers and as a picture."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor

from hardpatch.data.augment import EvalTransform
from hardpatch.data.loader import eval_batches
from hardpatch.data.sources import Source
from hardpatch.figures import legible
from hardpatch.finetune.model import Classifier
from hardpatch.measure.labels import crop_fraction

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONFUSIONS_LISTED = 20
"""Number of the most frequent confusions that ``result.json`` lists."""
NAMED_CLASSES, NUMBERED_CLASSES = 100, 15
"""Largest number of classes for which the picture shows their names, and for which it shows numbers of images."""


@dataclass(frozen=True)
class ClassifierEvaluation:
    """Result of a classifier on labeled images."""

    confusion: Tensor
    """int64 ``[classes, classes]``: images by true class (row) and predicted class (column)"""
    top5: float
    """share of the images whose class is among the five (or all, if there are fewer) with the highest scores"""
    loss: float
    """mean cross-entropy, without smoothing"""

    bad: tuple[str, ...] = ()
    """a line for each image that cannot be decoded"""

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self.confusion.sum())

    @property
    def top1(self) -> float:
        """Share of the images whose class has the highest score."""
        return float(self.confusion.trace()) / self.images

    @property
    def score(self) -> float:
        """The main number: top-1."""
        return self.top1

    def metrics(self) -> dict[str, float]:
        """Return numbers for the log."""
        return {"val_loss": self.loss, "top1": self.top1, "top5": self.top5}


def whole_image(size: tuple[int, int], model: Classifier) -> EvalTransform:
    """Return the transform of evaluation: large images are cropped to the center, small ones are seen whole."""
    return EvalTransform(size, model.reading, crop_fraction(size))


Predict = Iterator[tuple[Tensor, Tensor, list[str]]]
"""Outputs of a network for a set, batch by batch: float32 ``[B, outputs]``; labels of the images in the set, int64
``[B]``, both on the device; and a line for each image that could not be decoded."""


def predictions(
    model: Classifier,
    source: Source,
    fabric: Fabric,
    *,
    size: tuple[int, int],
    batch_size: int,
    workers: int,
    dropped: Callable[[Tensor, Tensor], Tensor | None] = lambda images, indices: None,
) -> Predict:
    """Yield the outputs for all images of a set; those that cannot be decoded are left out.

    Args:
        model: in eval mode, on the device.
        source: labeled images.
        fabric: device and precision.
        size: (height, width) of the crops in pixels.
        batch_size: images at once.
        workers: processes that decode.
        dropped: patches that the classifier does not see, from images ``[B, C, H, W]`` and their indices ``[B]``.
    """
    device = fabric.device
    for batch in eval_batches(
        source,
        whole_image(size, model),
        batch_size=batch_size,
        workers=workers,
        pin_memory=device.type == "cuda",
    ):
        with torch.inference_mode():
            images = model.normalize(batch.images.to(device, non_blocking=True))
            hidden = dropped(images, batch.indices.to(device, non_blocking=True))
            with fabric.autocast():
                scores = model(images, hidden).float()
        yield scores, batch.labels.to(device, non_blocking=True), batch.bad


@torch.inference_mode()
def classify(predict: Predict, labels: Tensor, count: int) -> ClassifierEvaluation:
    """Compare the predictions of a set with its classes.

    Args:
        predict: of :func:`predictions`.
        labels: class of each label of the set, int64 on the device.
        count: number of classes.
    """
    device = labels.device
    confusion = torch.zeros(count * count, dtype=torch.int64, device=device)
    sums = torch.zeros(2, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
    bad: list[str] = []
    for scores, of_set, lines in predict:
        truth = labels[of_set]
        likeliest = scores.topk(min(5, count), dim=1).indices
        cells = truth * count + likeliest[:, 0]
        confusion.scatter_add_(0, cells, torch.ones_like(cells))
        sums += torch.stack([F.cross_entropy(scores, truth, reduction="sum"), (likeliest == truth.unsqueeze(1)).sum()])
        bad.extend(lines)
    matrix = confusion.cpu().view(count, count)
    loss, top5 = (sums / int(matrix.sum())).tolist()
    return ClassifierEvaluation(matrix, top5, loss, tuple(bad))


def report(
    evaluation: ClassifierEvaluation, classes: Sequence[str], best_top1: float, best_epoch: float
) -> dict[str, Any]:
    """Return plain values for ``result.json``.

    Accuracies are shares in [0, 1], None for a class without validation images.

    Args:
        evaluation: of the last epoch.
        classes: names of the classes, in the order of the confusion matrix.
        best_top1: best accuracy of all evaluations.
        best_epoch: epoch of that evaluation.
    """
    images, correct = evaluation.confusion.sum(dim=1).tolist(), evaluation.confusion.diag().tolist()
    wrong = evaluation.confusion.clone().fill_diagonal_(0)
    counts, cells = wrong.flatten().topk(min(CONFUSIONS_LISTED, wrong.numel()))
    return {
        "top1": evaluation.top1,
        "top5": evaluation.top5,
        "val_loss": evaluation.loss,
        "best_top1": best_top1,
        "best_epoch": best_epoch,
        "per_class": [
            {"name": name, "images": count, "top1": hits / count if count else None}
            for name, count, hits in zip(classes, images, correct, strict=True)
        ],
        "confusions": [
            {"class": classes[cell // len(classes)], "predicted": classes[cell % len(classes)], "images": count}
            for count, cell in zip(counts.tolist(), cells.tolist(), strict=True)
            if count
        ],
    }


def confusion_figure(confusion: Tensor, classes: Sequence[str]) -> "Figure":
    """Draw a confusion matrix ``[classes, classes]``: rows are true classes, columns predicted ones.

    Colors are shares of a row.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    count = len(classes)
    shares = (confusion / confusion.sum(dim=1, keepdim=True).clamp_min(1)).numpy()
    side = min(13.0, 4.0 + 0.15 * count)  # inches
    figure = Figure(figsize=(side + 1, side), dpi=110, layout=ConstrainedLayoutEngine(), facecolor="white")
    axes = figure.add_subplot()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if count <= NAMED_CLASSES:
        size = min(8.0, 55 * side / count)  # points: rows must not run into each other
        names = [name if len(name) <= 20 else f"{name[:19]}…" for name in map(legible, classes)]
        axes.set_xticks(range(count), names, rotation=90, fontsize=size, parse_math=False)
        axes.set_yticks(range(count), names, fontsize=size, parse_math=False)
    if count <= NUMBERED_CLASSES:
        for row in range(count):
            for column in range(count):
                color = "white" if shares[row, column] > 0.5 else "#333333"
                axes.text(
                    column, row, f"{int(confusion[row, column])}", ha="center", va="center", color=color, fontsize=8
                )
    figure.colorbar(picture, ax=axes, label="share of the class's images", shrink=0.8)
    return figure
