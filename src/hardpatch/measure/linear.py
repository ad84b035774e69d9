"""Quick linear probe on frozen features, with many learning rates trained at once.

As in MAE (He et al., 2022, Appendix A.1) and HPM: batch normalization without parameters, then one linear layer. Unlike
in those papers the features are computed only once, so there is no augmentation, and the best of several learning rates
is chosen on the validation images. :func:`hardpatch.finetune.run.train_linear_probe` is the protocol of HPM's Table S3.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpatch.errors import UserError
from hardpatch.measure.features import Features, ProgressCallback
from hardpatch.measure.knn import check_labels, top5_hits
from hardpatch.schedules import learning_rate

BASE_LRS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Default learning rates to try, for 256 images per step."""
Optimizer = Literal["sgd", "lars"]


@dataclass(frozen=True)
class LinearRow:
    """Accuracies of one learning rate, as fractions of the validation images."""

    base_lr: float
    top1: float
    top5: float


@dataclass(frozen=True)
class LinearResult:
    """Result of :func:`linear_probe`."""

    rows: tuple[LinearRow, ...]
    """in the order of ``base_lrs``"""
    optimizer: Optimizer
    epochs: int
    batch_size: int
    """the size used, which may be smaller than requested: see ``note``"""
    train_images: int
    val_images: int
    note: str
    """a line about settings that were adjusted, or an empty string"""

    @property
    def best(self) -> LinearRow:
        """Row with the highest top-1 accuracy; the first such rate. Chosen on the validation set, as is customary."""
        return max(self.rows, key=lambda row: row.top1)

    @property
    def best_lr(self) -> float:
        """Base learning rate of the best row."""
        return self.best.base_lr

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
        return {"best_lr": self.best_lr, "top1": self.top1, "top5": self.top5, **asdict(self)}


class LinearHeads:
    """Linear classifiers that share their input and their first weights, one for each learning rate.

    No gradient of one head depends on another, so each ends exactly where it would have ended if trained alone.

    Args:
        count: number of heads.
        classes: number of classes.
        width: number of features.
        generator: on the CPU, for the first weights (normal, standard deviation 0.01).
        device: where to train.
    """

    def __init__(
        self, count: int, classes: int, width: int, generator: torch.Generator, device: torch.device | str
    ) -> None:
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6).to(device)  # eps as in MAE
        initial = torch.empty(classes, width).normal_(std=0.01, generator=generator).to(device)
        self.weights = [nn.Parameter(initial.clone()) for _ in range(count)]
        self.biases = [nn.Parameter(torch.zeros(classes, device=device)) for _ in range(count)]
        self.device = device

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the sum of the cross-entropies of all heads for ``features [B, D]`` and ``labels [B]``, a scalar."""
        inputs = self.norm(features)
        return torch.stack([F.cross_entropy(F.linear(inputs, *head), labels) for head in self._heads()]).sum()

    @torch.inference_mode()
    def rows(self, base_lrs: Sequence[float], val: Features) -> tuple[LinearRow, ...]:
        """Measure the accuracies of each head on ``val``."""
        self.norm.eval()
        correct = torch.zeros(len(self.weights), 2, dtype=torch.int64, device=self.device)
        for features, labels in zip(val.features.split(4096), val.labels.split(4096), strict=True):
            inputs, labels = self.norm(features.to(self.device)), labels.to(self.device)
            for index, head in enumerate(self._heads()):
                hits = top5_hits(F.linear(inputs, *head), labels)
                correct[index] += torch.stack([hits[:, 0].sum(), hits.sum()])
        accuracies = (correct.double() / len(val.features)).tolist()
        return tuple(LinearRow(lr, top1, top5) for lr, (top1, top5) in zip(base_lrs, accuracies, strict=True))

    def _heads(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        return list(zip(self.weights, self.biases, strict=True))


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
    progress: ProgressCallback | None = None,
) -> LinearResult:
    """Train one linear head for each learning rate, all on the same batches.

    The rate is ``base_lr * batch_size / 256`` with linear warmup and half-cosine decay; the momentum is 0.9.

    Args:
        train: features with labels in ``0 .. classes - 1``; see :func:`~hardpatch.measure.features.align_labels`.
        val: likewise.
        classes: the number of classes.
        generator: on the CPU, for the first weights and the order of the images.
        base_lrs: the learning rates to try, for 256 images per step.
        optimizer: ``"sgd"`` as in HPM and MoCo v3, suited to sets of any size; ``"lars"`` as in MAE, which with
            ``base_lrs=[0.1]`` suits large sets only: its steps are too small for a few thousand images.
        epochs: passes over the training set.
        warmup_epochs: of those; None is a ninth (10 of 90).
        batch_size: lowered to a tenth of a small training set, but not below 64; the incomplete last batch is dropped.
        device: where to compute. All of ``train`` is moved there.
        progress: called after each epoch with (epochs done, epochs).

    Raises:
        UserError: if a set is empty, a label is out of range, the training set has only one image (which cannot be
            normalized), or a setting is not positive.
    """
    check_labels(train, val, classes)
    heads, batch = train_heads(
        train,
        classes=classes,
        generator=generator,
        base_lrs=base_lrs,
        optimizer=optimizer,
        epochs=epochs,
        warmup_epochs=warmup_epochs,
        batch_size=batch_size,
        device=device,
        progress=progress,
    )
    images = len(train.features)
    note = f"batch_size {batch_size} lowered to {batch} for {images} training images" if batch < batch_size else ""
    return LinearResult(heads.rows(base_lrs, val), optimizer, epochs, batch, images, len(val.features), note)


def train_heads(
    train: Features,
    *,
    classes: int,
    generator: torch.Generator,
    base_lrs: Sequence[float] = BASE_LRS,
    optimizer: Optimizer = "sgd",
    epochs: int = 90,
    warmup_epochs: float | None = None,
    batch_size: int = 16384,
    device: torch.device | str = "cpu",
    progress: ProgressCallback | None = None,
) -> tuple[LinearHeads, int]:
    """Train the heads of :func:`linear_probe`, whose arguments these are; returns them and the batch size used."""
    warmup_epochs = epochs / 9 if warmup_epochs is None else warmup_epochs
    images, width = train.features.shape
    _check_settings(images, base_lrs, epochs, warmup_epochs, batch_size)
    batch = min(batch_size, max(images // 10, 64), images)

    heads = LinearHeads(len(base_lrs), classes, width, generator, device)
    optim = _optimizer(optimizer, heads.weights, heads.biases)
    peaks = [lr * batch / 256 for lr in base_lrs] * 2  # groups of the weights, then of the biases
    features, labels = train.features.to(device), train.labels.to(device)
    for epoch in range(epochs):
        order = torch.randperm(images, generator=generator).to(device)
        batches = order[: images // batch * batch].split(batch)
        for step, indices in enumerate(batches):
            done = (epoch * len(batches) + step) / (epochs * len(batches))
            for group, peak in zip(optim.param_groups, peaks, strict=True):
                group["lr"] = learning_rate(done, peak, 0.0, warmup_epochs / epochs)
            optim.zero_grad()
            heads.loss(features[indices], labels[indices]).backward()
            optim.step()
        if progress is not None:
            progress(epoch + 1, epochs)
    return heads, batch


def _check_settings(images: int, base_lrs: Sequence[float], epochs: int, warmup_epochs: float, batch_size: int) -> None:
    if images < 2:
        raise UserError("train: expected at least two images, got one")
    if not base_lrs or min(base_lrs) <= 0:
        raise UserError(f"base_lrs: expected numbers above 0, got {list(base_lrs)}")
    if epochs < 1 or not 0 <= warmup_epochs < epochs or batch_size < 2:
        raise UserError(
            "expected epochs >= 1, 0 <= warmup_epochs < epochs and batch_size >= 2, "
            f"got {epochs}, {warmup_epochs} and {batch_size}"
        )


def _optimizer(kind: Optimizer, weights: list[nn.Parameter], biases: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Put each tensor into a group of its own, with its own learning rate and, for LARS, its own trust ratio."""
    if kind == "sgd":
        return torch.optim.SGD([{"params": [tensor]} for tensor in [*weights, *biases]], lr=0.0, momentum=0.9)
    if kind != "lars":
        raise UserError(f"optimizer: expected 'sgd' or 'lars', got {kind!r}")
    from timm.optim.lars import Lars

    # As in MAE and MoCo v3, biases take the plain step; `always_adapt` scales weights even without weight decay.
    groups = [{"params": [weight], "always_adapt": True} for weight in weights]
    lars: torch.optim.Optimizer = Lars([*groups, *({"params": [bias]} for bias in biases)], lr=0.0, momentum=0.9)
    return lars
