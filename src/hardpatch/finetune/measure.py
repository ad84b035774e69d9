"""What a classifier takes for what: measures, the most frequent mistakes and a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONFUSIONS_TOLD = 20
"""The most frequent mistakes that ``accuracy.json`` names."""
NAMED_CLASSES, NUMBERED_CLASSES = 100, 15
"""Up to so many classes the confusion picture has their names, and the numbers of images."""


@dataclass(frozen=True)
class Evaluation:
    """What a classifier makes of labeled images."""

    confusion: Tensor
    """int64 ``[classes, classes]``: images of a class (row) that were taken for another (column)"""
    top5: float
    """share of the images whose class is among the five (or all, if there are fewer) with the highest scores"""
    loss: float
    """mean cross-entropy, without smoothing"""

    @property
    def images(self) -> int:
        """How many there were."""
        return int(self.confusion.sum())

    @property
    def top1(self) -> float:
        """Share of the images whose class has the highest score."""
        return float(self.confusion.trace()) / self.images


def report(found: Evaluation, classes: Sequence[str], best_top1: float, best_epoch: float) -> dict[str, Any]:
    """What ``accuracy.json`` holds: accuracies are shares in [0, 1], None for a class without validation images."""
    images, right = found.confusion.sum(dim=1).tolist(), found.confusion.diag().tolist()
    wrong = found.confusion.clone().fill_diagonal_(0)
    counts, places = wrong.flatten().topk(min(CONFUSIONS_TOLD, wrong.numel()))
    return {
        "top1": found.top1,
        "top5": found.top5,
        "val_loss": found.loss,
        "images": found.images,
        "best_top1": best_top1,
        "best_epoch": best_epoch,
        "classes": [
            {"name": name, "images": count, "top1": hits / count if count else None}
            for name, count, hits in zip(classes, images, right, strict=True)
        ],
        "confusions": [
            {"class": classes[place // len(classes)], "taken_for": classes[place % len(classes)], "images": count}
            for count, place in zip(counts.tolist(), places.tolist(), strict=True)
            if count
        ],
    }


def confusion_figure(confusion: Tensor, classes: Sequence[str]) -> "Figure":
    """Rows are true classes, columns what they were taken for, in shares of the row."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    count = len(classes)
    shares = (confusion / confusion.sum(dim=1, keepdim=True).clamp_min(1)).numpy()
    side = min(13.0, 4.0 + 0.15 * count)  # inches
    figure = Figure(figsize=(side + 1, side), dpi=110, layout=ConstrainedLayoutEngine(), facecolor="white")
    axes = figure.add_subplot()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    if count <= NAMED_CLASSES:
        size = min(8.0, 55 * side / count)  # points: rows must not run into each other
        names = [name if len(name) <= 20 else f"{name[:19]}…" for name in classes]
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
