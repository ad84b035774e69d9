"""Settings of fine-tuning and of the trained linear probe, and their presets.

This module does not import torch, so that the command line responds at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hardpatch.choices import BALANCED, OptimizerName, PoolName, RegressionLossName, SamplingName, TaskName
from hardpatch.errors import UserError
from hardpatch.ranges import (
    BATCH,
    BELOW_ONE,
    COUNT,
    FRACTION,
    INSIDE,
    LEAST_RATE,
    PAIR_OF_RATIOS,
    PAIR_OF_SHARES,
    PASSES,
    POSITIVE,
    RATE,
    SHARE,
    SIDE,
    Range,
)
from hardpatch.train.settings import TrainingSettings, check_loop, expect, setting


@dataclass(frozen=True)
class FinetuneSettings(TrainingSettings):
    """Settings of fine-tuning; the defaults are the paper's for ViT-B on ImageNet-1K (Table S2)."""

    epochs: float | None = setting(100.0, "passes over the training images; this or steps", PASSES)
    batch_size: int = setting(1024, "images of an optimizer step", BATCH)
    layer_decay: float | None = setting(
        None,
        "factor of the learning rate from each layer to the one below it; null is 0.8, and 1 for random weights",
        SHARE,
    )
    val_every: float | None = setting(1.0, "epochs between evaluations; there is always one at the end", POSITIVE)
    base_lr: float = setting(5e-4, "peak learning rate for a batch of 256; it is scaled with the batch", RATE)
    lr: float | None = setting(None, "peak learning rate, in place of base_lr", RATE)
    min_lr: float = setting(1e-6, "learning rate at the end", LEAST_RATE)
    warmup_epochs: float | None = setting(
        5.0, "epochs over which the learning rate rises from 0; null is a tenth of the training", Range(0, 1_000_000)
    )
    betas: tuple[float, float] = setting((0.9, 0.999), "AdamW betas; the first is the momentum of sgd", BELOW_ONE)
    optimizer: OptimizerName = setting("adamw", "optimizer")
    frozen: bool = setting(
        False, "train a linear layer on batch-normalized features only; the encoder stays as it is, in eval mode"
    )
    pool: PoolName = setting("mean", "what the linear layer sees: the mean of the patch tokens, or the class token")
    image_size: int | tuple[int, int] | None = setting(
        None, "side, or height and width, of the crops in pixels; null is that of pre-training", SIDE
    )
    task: TaskName = setting(
        "classes", "one class for each image, any number of them (multilabel), or numbers (regression)"
    )
    class_weights: tuple[str, ...] | None = setting(
        None, "weights in the loss: balanced, or NAME=WEIGHT for some classes, the others have 1"
    )
    sampling: SamplingName = setting(
        "natural", "draw each image once in an epoch, or (balanced) all classes equally often, with replacement"
    )
    regression_loss: RegressionLossName = setting("mse", "loss of a regression, of standardized targets")
    patience: int | None = setting(
        None, "evaluations without a better result after which the training ends and its best weights count", COUNT
    )
    val_share: float = setting(
        0.2, "without --val: share of --train that is held out to evaluate on", Range(0, 0.5, above=True)
    )
    smoothing: float = setting(0.1, "label smoothing: share of the target that is spread over all classes", BELOW_ONE)
    mixup: float = setting(
        0.8, "alpha of mixup, 0 is off; with CutMix on, too, each batch has one of the two", Range(0, 1_000)
    )
    cutmix: float = setting(1.0, "alpha of CutMix, 0 is off", Range(0, 1_000))
    mix_prob: float = setting(1.0, "probability with which a batch is mixed", FRACTION)
    randaugment: float = setting(
        9.0, "mean magnitude of RandAugment, 0 to 10, 0 is off; two operations an image", Range(0, 10)
    )
    randaugment_std: float = setting(0.5, "standard deviation of its magnitude", Range(0, 1_000))
    erase: float = setting(0.25, "probability of random erasing: a rectangle of noise", FRACTION)
    crop_scale: tuple[float, float] = setting(
        (0.08, 1.0), "random resized crop: range of the share of the area", PAIR_OF_SHARES
    )
    crop_ratio: tuple[float, float] = setting(
        (3 / 4, 4 / 3), "random resized crop: range of the aspect ratio", PAIR_OF_RATIOS
    )
    ema: float | None = setting(
        None, "decay of a moving average of the weights, which is then evaluated; null keeps none", INSIDE
    )
    probe: bool = setting(
        False,
        "train a linear layer on frozen features first, begin from it, and keep it if the training does not improve it",
    )
    probe_only: bool = setting(False, "stop after that linear layer")
    held_out: float = setting(
        0.2,
        "with a probe: share of --train that picks its learning rate and decides at the end what is kept",
        Range(0, 0.5, above=True),
    )

    @property
    def balances(self) -> bool:
        """True if all classes are drawn equally often."""
        return self.sampling == "balanced"

    @property
    def counts_classes(self) -> bool:
        """True if the weights of the classes, or the images that are drawn, depend on how frequent each class is."""
        return self.balances or tuple(self.class_weights or ()) == (BALANCED,)

    @property
    def probes(self) -> bool:
        """True if the run begins with a probe."""
        return self.probe or self.probe_only

    @property
    def decay_per_layer(self) -> float:
        """Layer decay that is used: by default 0.8, and 1 for random weights, whose lower layers must learn as well."""
        if self.layer_decay is not None:
            return self.layer_decay
        return 1.0 if self.weights == "random" else 0.8

    @property
    def crop_size(self) -> tuple[int, int] | None:
        """(height, width) of the crops in pixels; None for that of pre-training."""
        side = self.image_size
        return (side, side) if isinstance(side, int) else side

    @property
    def peak_lr(self) -> float:
        """Peak learning rate: ``lr`` if it is set, else ``base_lr`` scaled with the batch."""
        return self.lr if self.lr is not None else self.base_lr * self.batch_size / 256


_SMALL = FinetuneSettings(
    batch_size=128,
    base_lr=1e-3,
    randaugment=6.0,
    mixup=0.2,
    cutmix=0.5,
    mix_prob=0.5,
    erase=0.0,
    crop_scale=(0.2, 1.0),
    val_every=5.0,
)
_TINY = FinetuneSettings(
    epochs=200.0,
    batch_size=64,
    base_lr=2e-3,
    warmup_epochs=10.0,
    randaugment=4.0,
    mixup=0.0,
    cutmix=0.5,
    mix_prob=0.5,
    erase=0.0,
    crop_scale=(0.35, 1.0),
    val_every=10.0,
)

AUTO = "auto"
"""Name of the preset whose settings follow the number of images."""
LEAST_STEPS, EPOCHS, MOST_EPOCHS = 2000, 50, 400
"""Length of ``auto``: so many steps at least and so many epochs, but never more than the last number of epochs."""
PEAK_LR = 5e-4
"""Peak learning rate of ``auto``, whatever its batch."""
FEW_STEPS = 300
"""Steps below which a training is called short however large its batches are."""
BY_SIZE = (
    *("steps", "batch_size", "base_lr", "val_every", "held_out"),
    *("randaugment", "mixup", "cutmix", "mix_prob", "erase", "crop_scale"),
)
"""Settings that ``auto`` takes from the number of images."""


def by_size(images: int) -> FinetuneSettings:
    """Return the preset ``auto`` for a training set.

    It begins with a linear probe, trains the whole network from there, and keeps what is better on a part of the
    training set that is held out. The augmentation is that of ``tiny``, ``small`` or ``paper``.

    Args:
        images: number of images in the training set.
    """
    like, batch, held_out = next(row[1:] for row in _SIZES if images < row[0])
    learned_from = max(1, round(images * (1 - held_out)))
    batch = min(batch, max(2, learned_from // 2 * 2))
    steps = max(LEAST_STEPS, EPOCHS * learned_from // batch)
    steps = max(1, min(steps, MOST_EPOCHS * learned_from // batch))
    return replace(
        like,
        epochs=None,
        steps=steps,
        batch_size=batch,
        base_lr=float(f"{PEAK_LR * 256 / batch:.4g}"),
        warmup_epochs=None,
        val_every=float(f"{steps * batch / learned_from / 10:.3g}"),  # ten times
        probe=True,
        held_out=held_out,
    )


_SIZES: tuple[tuple[float, FinetuneSettings, int, float], ...] = (
    (2_000, _TINY, 32, 0.2),
    (10_000, _TINY, 64, 0.2),
    (200_000, _SMALL, 128, 0.1),
    (float("inf"), FinetuneSettings(), 256, 0.05),
)
"""Sets of fewer images than this take the augmentation of a preset, a batch size, and a held-out share."""

PRESETS: dict[str, FinetuneSettings] = {
    AUTO: by_size(5000),
    "small": _SMALL,
    "tiny": _TINY,
    "paper": FinetuneSettings(),
    "paper_large": FinetuneSettings(epochs=50.0),
}
"""``auto`` for sets of any size (see :func:`by_size`; the entry is that of 5,000 images), ``small`` for about 10,000 to
100,000 small images, ``tiny`` for a few thousand.

These three are this project's choice. With batches of 1,024 small sets give too few steps, and the paper's augmentation
is too strong for small networks. ``paper`` and ``paper_large`` are Table S2: ImageNet with ViT-B and with ViT-L.
"""

PROBES: dict[str, FinetuneSettings] = {
    "paper": FinetuneSettings(
        frozen=True,
        optimizer="sgd",
        epochs=100.0,
        batch_size=4096,
        base_lr=1e-3,
        min_lr=0.0,
        warmup_epochs=10.0,
        weight_decay=0.0,
        drop_path=0.0,
        smoothing=0.0,
        mixup=0.0,
        cutmix=0.0,
        mix_prob=0.0,
        randaugment=0.0,
        erase=0.0,
        val_every=None,
    )
}
"""The trained linear probe: Table S3, and Section A.1 for what it leaves out (mixup, CutMix, drop path).

The table says RandomResizedCrop only. Its scale (0.08 to 1), the flip and the final learning rate of 0 are those of the
linear-probe code of MAE and of HPM. That code clips a crop that does not fit to the image; here another is drawn.
"""

ONE_CLASS: dict[str, Any] = {"mixup": 0.0, "cutmix": 0.0, "smoothing": 0.0, "probe": False, "probe_only": False}
"""Settings that only make sense for one class an image, and their values for other tasks."""

SCRATCH = {"weights": "random", "layer_decay": 0.8}
"""Supervised training from random weights, beside the preset ``paper``: the paper takes over its fine-tuning settings,
layer decay included (Section A.1). Without these, random weights have a layer decay of 1, which suits them better."""


def check(run: FinetuneSettings, images: int) -> None:
    """Refuse values that cannot work; the image size is checked when the network is built.

    Args:
        run: the settings.
        images: number of images in the training set.

    Raises:
        UserError: names the first such value.
    """
    check_loop(run)
    expect(run, "min_lr", f"from 0 to the peak learning rate {run.peak_lr:g}", run.min_lr <= run.peak_lr)
    if run.frozen:
        expect(run, "freeze", "0 with --frozen, which trains no part of the encoder anyway", run.freeze == 0)
        expect(run, "probe", "not with --frozen, which trains such a layer on crops", not run.probes)
        expect(run, "batch_size", "2 or more, to normalize features over the batch", run.batch_size >= 2)
        expect(run, "accumulation_steps", "1: a frozen encoder needs little memory", run.accumulation_steps == 1)
    if (run.mixup or run.cutmix) and run.batch_size % 2:
        raise UserError(
            f"--batch_size: mixup and CutMix pair the images of a batch, expected an even number, got "
            f"{run.batch_size}; or give --mixup 0 --cutmix 0"
        )
    epochs = run.epochs if run.epochs is not None else run.total_steps(images) * run.batch_size / images
    if run.warmup_epochs is not None and run.warmup_epochs > epochs:
        raise UserError(
            f"--warmup_epochs: expected at most the {epochs:g} epochs of the training, got {run.warmup_epochs:g}; "
            "null is a tenth of them"
        )


def check_task(run: FinetuneSettings) -> None:
    """Refuse settings that do not suit the task, before any image is looked at.

    Raises:
        UserError: names the first such setting.
    """
    expect(
        run, "sampling", "natural with several labels or numbers an image", run.task == "classes" or not run.balances
    )
    expect(run, "class_weights", "null for a regression", run.task != "regression" or not run.class_weights)
    expect(
        run,
        "val_every",
        "epochs between evaluations with --patience",
        run.val_every is not None or run.patience is None,
    )


def of_task(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a new run with those switched off that only make sense for one class an image.

    Raises:
        UserError: if one of them is asked for.
    """
    values = dict(values)
    given = values.get("class_weights")
    if isinstance(given, str):
        values["class_weights"] = (given,)
    elif isinstance(given, Mapping):
        values["class_weights"] = tuple(f"{name}={weight}" for name, weight in given.items())
    if values.get("task", "classes") == "classes":
        return values
    for name, off in ONE_CLASS.items():
        if values.get(name, off) != off:
            raise UserError(f"--{name}: expected with --task classes only, got {values[name]} with {values['task']}")
    return {**ONE_CLASS, **values}


def short_of(run: FinetuneSettings, steps: int, images: int, classes: int) -> str | None:
    """Return a line about a training with less than half of the steps that ``auto`` would take, else None.

    Args:
        run: the settings.
        steps: optimizer steps of the run.
        images: number of images in the training set, those that are held out included.
        classes: number of classes.
    """
    auto = by_size(images)
    assert auto.steps is not None
    few = steps < FEW_STEPS or 2 * steps * run.batch_size < auto.steps * auto.batch_size
    if run.frozen or run.probe_only or 2 * steps >= auto.steps or not few:
        return None
    epochs = steps * run.batch_size / images
    return (
        f"{images / classes:.0f} images per class and {epochs:.3g} epochs are {steps:,} steps of {run.batch_size}: "
        f"few to learn from; --preset {AUTO} takes {auto.steps:,} of {auto.batch_size}"
    )
