"""How well the nearest training images tell a class: weighted k-NN on frozen features, as in DINO.

Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021, after Wu et al. 2018.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hardpatch.errors import UserError
from hardpatch.measure.features import Features

CHUNK_ELEMENTS = 2**25
"""Similarities held at once: 128 MiB in float32."""


@dataclass(frozen=True)
class KnnRow:
    """Accuracies at one k, as fractions of the validation images."""

    k: int
    top1: float
    top5: float


@dataclass(frozen=True)
class KnnResult:
    """What :func:`knn_accuracy` found."""

    rows: tuple[KnnRow, ...]
    """By increasing k."""
    train_images: int
    val_images: int
    note: str
    """What was changed of the wish, in one line; empty where nothing was."""

    @property
    def best(self) -> KnnRow:
        """The row with the highest top-1, of the smallest such k."""
        return max(self.rows, key=lambda row: (row.top1, -row.k))

    @property
    def best_k(self) -> int:
        return self.best.k

    @property
    def top1(self) -> float:
        return self.best.top1

    @property
    def top5(self) -> float:
        return self.best.top5

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {"best_k": self.best_k, "top1": self.top1, "top5": self.top5, **asdict(self)}


@torch.inference_mode()
def knn_accuracy(
    train: Features,
    val: Features,
    *,
    classes: int,
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    device: torch.device | str = "cpu",
) -> KnnResult:
    """Let the k most similar training images vote on the class, with weights ``exp(cosine / temperature)``.

    Args:
        train, val: features with labels in ``0 .. classes - 1``; see :func:`~hardpatch.measure.features.align_labels`.
        classes: how many there are.
        ks: numbers of neighbors; one above the number of training images is lowered to it, and ``note`` says so.
        temperature: of the votes; 0.07 in DINO.
        device: where to compute. ``train`` is moved there whole, ``val`` in pieces.

    Returns:
        Top-1 and top-5 for each k. A class without a vote is nobody's choice; DINO's script lets such classes fill
        the top 5 in whatever order sorting leaves them.

    Raises:
        UserError: if a set is empty, a label or a k is out of range, or the temperature is not positive.
    """
    check_labels(train, val, classes)
    if not ks or min(ks) < 1:
        raise UserError(f"ks: expected whole numbers from 1, got {list(ks)}")
    if temperature <= 0:
        raise UserError(f"temperature: expected a number above 0, got {temperature}")
    images = len(train.features)
    wanted = sorted({min(k, images) for k in ks})
    capped = sorted({k for k in ks if k > images})
    note = f"k = {', '.join(map(str, capped))} lowered to the {images} training images" if capped else ""

    bank = F.normalize(train.features.to(device), dim=1)
    bank_labels = train.labels.to(device)
    right = torch.zeros(2, len(wanted), dtype=torch.int64, device=device)
    chunk = max(1, CHUNK_ELEMENTS // max(images, classes))
    for queries, labels in zip(val.features.split(chunk), val.labels.split(chunk), strict=True):
        similarity, neighbors = (F.normalize(queries.to(device), dim=1) @ bank.T).topk(wanted[-1], dim=1)
        # Against the nearest neighbor: the same order of votes, and no overflow however low the temperature.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        labels_of_neighbors, labels = bank_labels[neighbors], labels.to(device)
        votes = torch.zeros(len(queries), classes, device=device)
        for row, (start, k) in enumerate(zip([0, *wanted], wanted, strict=False)):
            votes.scatter_add_(1, labels_of_neighbors[:, start:k], weights[:, start:k])
            ranked = right_at(votes.masked_fill(votes == 0, -torch.inf), labels)
            right[0, row] += ranked[:, 0].sum()
            right[1, row] += ranked.sum()
    top1, top5 = (right.double() / len(val.features)).tolist()
    return KnnResult(tuple(map(KnnRow, wanted, top1, top5)), images, len(val.features), note)


def right_at(scores: Tensor, labels: Tensor) -> Tensor:
    """Bool ``[B, min(5, C)]``: whether the label ``[B]`` is the first, second, ... choice of ``scores [B, C]``.

    A class with score minus infinity is nobody's choice.
    """
    best = scores.topk(min(5, scores.shape[1]), dim=1)
    return (best.indices == labels.unsqueeze(1)) & (best.values > -torch.inf)


def check_labels(train: Features, val: Features, classes: int) -> None:
    """Raise a UserError unless both sets have images, of one width, with labels in ``0 .. classes - 1``."""
    for argument, (features, labels, *_) in (("train", train), ("val", val)):
        if not len(features):
            raise UserError(f"{argument}: expected at least one image, got none")
        if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            got = f"{int(labels.min())} .. {int(labels.max())}"
            raise UserError(f"{argument}: expected labels in 0 .. {classes - 1}, got {got}")
    if train.features.shape[1] != val.features.shape[1]:
        got = f"{train.features.shape[1]} and {val.features.shape[1]}"
        raise UserError(f"train, val: expected features of one width, got {got}")
