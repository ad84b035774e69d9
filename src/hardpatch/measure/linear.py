"""The linear probe: how well one linear layer tells classes apart on frozen features, many learning rates at once.

As in MAE (He et al., 2022, Appendix A.1) and HPM (Table S3): batch normalization without parameters, then the layer.
The features are computed once and kept, so there is no augmentation, which those papers have while probing.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpatch.errors import UserError
from hardpatch.measure.features import Features, Progress
from hardpatch.measure.knn import check_labels, right_at
from hardpatch.schedules import learning_rate

BASE_LRS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
Optimizer = Literal["sgd", "lars"]


@dataclass(frozen=True)
class LinearRow:
    """Accuracies of one learning rate, as fractions of the validation images."""

    base_lr: float
    top1: float
    top5: float


@dataclass(frozen=True)
class LinearResult:
    """What :func:`linear_probe` found."""

    rows: tuple[LinearRow, ...]
    """In the order of the learning rates given."""
    optimizer: Optimizer
    epochs: int
    batch_size: int
    """The one used: see ``note``."""
    train_images: int
    val_images: int
    note: str
    """What was changed of the wish, in one line; empty where nothing was."""

    @property
    def best(self) -> LinearRow:
        """The row with the highest top-1, of the first such rate. Chosen on the validation set, as is the custom."""
        return max(self.rows, key=lambda row: row.top1)

    @property
    def best_lr(self) -> float:
        return self.best.base_lr

    @property
    def top1(self) -> float:
        return self.best.top1

    @property
    def top5(self) -> float:
        return self.best.top5

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {"best_lr": self.best_lr, "top1": self.top1, "top5": self.top5, **asdict(self)}


def linear_probe(
    train: Features,
    val: Features,
    *,
    classes: int,
    generator: torch.Generator,
    base_lrs: Sequence[float] = BASE_LRS,
    optimizer: Optimizer = "sgd",
    epochs: int = 90,
    warmup_epochs: float | None = None,
    batch_size: int = 16384,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> LinearResult:
    """Train one linear head for each learning rate, all side by side in a single pass over the features an epoch.

    The heads start alike, see the same batches and share the batch normalization, which has no parameters: each ends
    exactly where it would have ended alone. The rate is ``base_lr * batch / 256``, warmed up linearly and brought to 0
    by half a cosine, momentum is 0.9 and there is no weight decay.

    Args:
        train, val: features with labels in ``0 .. classes - 1``; see :func:`~hardpatch.measure.features.align_labels`.
        classes: how many there are.
        generator: on the CPU, for the first weights (normal, 0.01) and the order of the images.
        base_lrs: the learning rates to try, for 256 images a step.
        optimizer: ``"sgd"`` as in MoCo v3, good for sets of any size; ``"lars"`` for the papers' protocol, which with
            ``base_lrs=[0.1]`` is made for large sets: its steps are too small for a few thousand images.
        epochs: passes over the training set.
        warmup_epochs: of them; None for a ninth (10 of 90).
        batch_size: lowered to a tenth of a small training set, though not below 64, so that an epoch has some steps.
            The last, incomplete batch of an epoch is dropped.
        device: where to compute. ``train`` is moved there whole.
        progress: called after each epoch with (epochs done, epochs).

    Raises:
        UserError: if a set is empty, a label out of range, the training set has one image only (which cannot be
            normalized), or a setting is not positive.
    """
    check_labels(train, val, classes)
    warmup_epochs = epochs / 9 if warmup_epochs is None else warmup_epochs
    if not base_lrs or min(base_lrs) <= 0:
        raise UserError(f"base_lrs: expected numbers above 0, got {list(base_lrs)}")
    if epochs < 1 or not 0 <= warmup_epochs < epochs or batch_size < 2:
        raise UserError(
            "expected epochs >= 1, 0 <= warmup_epochs < epochs and batch_size >= 2, "
            f"got {epochs}, {warmup_epochs} and {batch_size}"
        )
    images, width = train.features.shape
    if images < 2:
        raise UserError("train: expected at least two images, got one")
    batch = min(batch_size, max(images // 10, 64), images)
    note = f"batch_size {batch_size} lowered to {batch} for {images} training images" if batch < batch_size else ""

    norm = nn.BatchNorm1d(width, affine=False, eps=1e-6).to(device)  # eps as in MAE
    first = torch.empty(classes, width).normal_(std=0.01, generator=generator).to(device)
    weights = [nn.Parameter(first.clone()) for _ in base_lrs]
    biases = [nn.Parameter(torch.zeros(classes, device=device)) for _ in base_lrs]
    optim = _optimizer(optimizer, weights, biases)
    peaks = [lr * batch / 256 for lr in base_lrs] * 2  # the weights' groups, then the biases'

    features, labels = train.features.to(device), train.labels.to(device)
    steps = images // batch
    for epoch in range(epochs):
        order = torch.randperm(images, generator=generator).to(device)
        for step, chosen in enumerate(order[: steps * batch].split(batch)):
            done = (epoch * steps + step) / (epochs * steps)
            for group, peak in zip(optim.param_groups, peaks, strict=True):
                group["lr"] = learning_rate(done, peak, 0.0, warmup_epochs / epochs)
            inputs, wanted = norm(features[chosen]), labels[chosen]
            # A sum: no head's gradient depends on another head.
            losses = [F.cross_entropy(F.linear(inputs, *head), wanted) for head in zip(weights, biases, strict=True)]
            optim.zero_grad()
            torch.stack(losses).sum().backward()
            optim.step()
        if progress is not None:
            progress(epoch + 1, epochs)

    rows = _accuracies(norm.eval(), weights, biases, val, device)
    return LinearResult(
        rows=tuple(LinearRow(lr, *row) for lr, row in zip(base_lrs, rows, strict=True)),
        optimizer=optimizer,
        epochs=epochs,
        batch_size=batch,
        train_images=images,
        val_images=len(val.features),
        note=note,
    )


def _optimizer(kind: Optimizer, weights: list[nn.Parameter], biases: list[nn.Parameter]) -> torch.optim.Optimizer:
    """One group for each tensor, since each has its own rate, and under LARS its own trust ratio."""
    if kind == "sgd":
        return torch.optim.SGD([{"params": [tensor]} for tensor in [*weights, *biases]], lr=0.0, momentum=0.9)
    if kind != "lars":
        raise UserError(f"optimizer: expected 'sgd' or 'lars', got {kind!r}")
    from timm.optim.lars import Lars

    # As in MAE and MoCo v3, biases take the plain step: `always_adapt` is what scales without weight decay.
    groups = [{"params": [weight], "always_adapt": True} for weight in weights]
    lars: torch.optim.Optimizer = Lars([*groups, *({"params": [bias]} for bias in biases)], lr=0.0, momentum=0.9)
    return lars


@torch.inference_mode()
def _accuracies(
    norm: nn.Module, weights: list[nn.Parameter], biases: list[nn.Parameter], val: Features, device: torch.device | str
) -> list[tuple[float, float]]:
    """(top-1, top-5) of each head."""
    right = torch.zeros(len(weights), 2, dtype=torch.int64, device=device)
    for features, labels in zip(val.features.split(4096), val.labels.split(4096), strict=True):
        inputs, wanted = norm(features.to(device)), labels.to(device)
        for head, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            ranked: Tensor = right_at(F.linear(inputs, weight, bias), wanted)
            right[head] += torch.stack([ranked[:, 0].sum(), ranked.sum()])
    return [(top1, top5) for top1, top5 in (right.double() / len(val.features)).tolist()]
