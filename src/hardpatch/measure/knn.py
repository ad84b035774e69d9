"""Weighted k-NN classification on frozen features, as in DINO.

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

DINO_K = 20
"""Number of neighbors for which DINO reports its results."""

CHUNK_ELEMENTS = 2**25
"""Similarities computed at once: 128 MiB in float32."""


@dataclass(frozen=True)
class KnnRow:
    """Accuracies at one k, as fractions of the validation images."""

    k: int
    top1: float
    top5: float


@dataclass(frozen=True)
class KnnResult:
    """Result of :func:`knn_accuracy`.

    HPM reports the best of k = 10, 20, 100 and 200 (Section A.1), which is chosen on the validation images. DINO
    reports k = 20.
    """

    rows: tuple[KnnRow, ...]
    """by increasing k"""
    train_images: int
    val_images: int
    note: str
    """a line about settings that were adjusted, or an empty string"""

    @property
    def best(self) -> KnnRow:
        """Row with the highest top-1 accuracy; the smallest such k."""
        return max(self.rows, key=lambda row: (row.top1, -row.k))

    @property
    def dino(self) -> KnnRow | None:
        """Row of k = 20, for which DINO reports its results; None if that k was not requested."""
        return next((row for row in self.rows if row.k == DINO_K), None)

    @property
    def best_k(self) -> int:
        """Number of neighbors of the best row."""
        return self.best.k

    @property
    def top1(self) -> float:
        """Top-1 accuracy of the best row."""
        return self.best.top1

    @property
    def top5(self) -> float:
        """Top-5 accuracy of the best row."""
        return self.best.top5

    def to_dict(self) -> dict[str, Any]:
        """Return all values, ready for JSON."""
        dino = None if self.dino is None else asdict(self.dino)
        return {"best_k": self.best_k, "top1": self.top1, "top5": self.top5, "dino": dino, **asdict(self)}


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
    """Classify by a vote of the k most similar training images, with weights ``exp(cosine / temperature)``.

    Args:
        train: features with labels in ``0 .. classes - 1``; see :func:`~hardpatch.measure.features.align_labels`.
        val: likewise.
        classes: the number of classes.
        ks: numbers of neighbors; one above the number of training images is lowered to it, and ``note`` says so.
        temperature: of the votes; 0.07 in DINO.
        device: where to compute. All of ``train`` is moved there, ``val`` in chunks.

    Returns:
        Top-1 and top-5 accuracy for each k. A class without votes is never predicted; DINO's script fills the top 5
        with such classes in arbitrary order.

    Raises:
        UserError: if a set is empty, a label or a k is out of range, or the temperature is not positive.
    """
    check_labels(train, val, classes)
    if not ks or min(ks) < 1:
        raise UserError(f"ks: expected whole numbers from 1, got {list(ks)}")
    if temperature <= 0:
        raise UserError(f"temperature: expected a number above 0, got {temperature}")
    images = len(train.features)
    counts = sorted({min(k, images) for k in ks})
    lowered = sorted({k for k in ks if k > images})
    note = f"k = {', '.join(map(str, lowered))} lowered to the {images} training images" if lowered else ""

    bank = F.normalize(train.features.to(device), dim=1)
    bank_labels = train.labels.to(device)
    correct = torch.zeros(2, len(counts), dtype=torch.int64, device=device)
    chunk = max(1, CHUNK_ELEMENTS // max(images, classes))
    for queries, labels in zip(val.features.split(chunk), val.labels.split(chunk), strict=True):
        similarity, neighbors = (F.normalize(queries.to(device), dim=1) @ bank.T).topk(counts[-1], dim=1)
        # Relative to the nearest neighbor: the order of the votes stays, and no low temperature overflows.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        neighbor_labels, labels = bank_labels[neighbors], labels.to(device)
        votes = torch.zeros(len(queries), classes, device=device)
        for row, (start, k) in enumerate(zip([0, *counts], counts, strict=False)):
            votes.scatter_add_(1, neighbor_labels[:, start:k], weights[:, start:k])
            hits = top5_hits(votes.masked_fill(votes == 0, -torch.inf), labels)
            correct[0, row] += hits[:, 0].sum()
            correct[1, row] += hits.sum()
    top1, top5 = (correct.double() / len(val.features)).tolist()
    return KnnResult(tuple(map(KnnRow, counts, top1, top5)), images, len(val.features), note)


def top5_hits(scores: Tensor, labels: Tensor) -> Tensor:
    """Compare the best five classes of ``scores [B, C]`` with the label ``[B]``: bool ``[B, min(5, C)]``, best first.

    A class with score minus infinity never matches.
    """
    best = scores.topk(min(5, scores.shape[1]), dim=1)
    return (best.indices == labels.unsqueeze(1)) & (best.values > -torch.inf)


def check_labels(train: Features, val: Features, classes: int) -> None:
    """Check that both sets have images, features of one width, and labels in ``0 .. classes - 1``.

    Raises:
        UserError: if they do not.
    """
    for argument, (features, labels, *_) in (("train", train), ("val", val)):
        if not len(features):
            raise UserError(f"{argument}: expected at least one image, got none")
        if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            got = f"{int(labels.min())} .. {int(labels.max())}"
            raise UserError(f"{argument}: expected labels in 0 .. {classes - 1}, got {got}")
    if train.features.shape[1] != val.features.shape[1]:
        got = f"{train.features.shape[1]} and {val.features.shape[1]}"
        raise UserError(f"train, val: expected features of one width, got {got}")
