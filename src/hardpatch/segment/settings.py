"""Settings of segmentation and their presets.

Nothing here imports torch, so that ``--help`` answers at once.
"""

from dataclasses import dataclass, replace
from typing import Literal

from hardpatch.ranges import (
    BATCH,
    BELOW_ONE,
    BLOCKS,
    CHANNELS,
    LEAST_RATE,
    PAIR_OF_RATIOS,
    POSITIVE,
    RATE,
    SHARE,
    SIDE,
    STEPS,
    Range,
)
from hardpatch.train.settings import TrainingSettings, check_loop, expect, setting


@dataclass(frozen=True)
class SegmentSettings(TrainingSettings):
    """Training of UperNet, by default as HPM's paper (A.3) and mmsegmentation's configuration of MAE on ADE20K."""

    steps: int | None = setting(80_000, "optimizer steps; this or epochs", STEPS)
    batch_size: int = setting(16, "crops of an optimizer step", BATCH)
    layer_decay: float | None = setting(
        0.65, "factor of the learning rate from each layer to the one below it; 1 for random weights", SHARE
    )
    val_every: float | None = setting(12.7, "epochs between evaluations; there is always one at the end", POSITIVE)
    lr: float | None = setting(
        None, "peak learning rate of the heads; null: 1e-4, and 2e-5 for encoders of 24 blocks or more (ViT-L)", RATE
    )
    min_lr: float = setting(0.0, "learning rate at the end", LEAST_RATE)
    warmup_steps: int = setting(1500, "steps in which the learning rate rises from 0", Range(0, 2**40, whole=True))
    power: float = setting(1.0, "power of the polynomial by which the learning rate falls", Range(0, 1_000, above=True))
    crop: tuple[int, ...] = setting((512, 512), "height and width of the crops and of the sliding window, pixels", SIDE)
    short_side: int = setting(512, "shorter side of images before the random scale and in evaluation, pixels", SIDE)
    scale: tuple[float, ...] = setting((0.5, 2.0), "range of the random scale", PAIR_OF_RATIOS)
    cat_max_ratio: float = setting(0.75, "crops in which one class has more than this share are redrawn", SHARE)
    photometric: bool = setting(True, "vary brightness, contrast, saturation and hue")
    channels: int = setting(768, "channels of the heads", CHANNELS)
    blocks: tuple[int, ...] | None = setting(
        None,
        "four blocks, counted from 1, after which features are taken; null: 4 6 8 12 of 12, 8 12 16 24 of 24, "
        "else 1/4, 2/4, 3/4 and 4/4 of the depth",
        BLOCKS,
    )
    train_positions: bool = setting(True, "train the absolute positions, on the crop's grid of patches")
    relative_positions: bool = setting(
        True, "add a relative position bias to every block, zero at first; an encoder that has one keeps its own"
    )
    layer_scale: bool = setting(True, "add layer scale to every block, 1 at first")
    dropout: float = setting(0.1, "dropout of channels before the classifiers", BELOW_ONE)
    auxiliary_weight: float = setting(0.4, "weight of the auxiliary head's loss", Range(0, 1_000))
    inference: Literal["whole", "slide"] = setting("slide", "the whole image at once, or a sliding window")
    stride: tuple[int, ...] = setting((341, 341), "stride of the sliding window, pixels", SIDE)


PRESETS = {
    "small": SegmentSettings(
        steps=2000,
        batch_size=8,
        crop=(96, 96),
        short_side=96,
        channels=64,
        lr=2e-3,
        layer_decay=0.75,
        train_positions=False,
        relative_positions=False,
        layer_scale=False,
        warmup_steps=100,
        inference="whole",
        stride=(64, 64),
        val_every=50.0,
    ),
    "hpm": SegmentSettings(),
}
"""``small`` is this project's choice for small networks on a CPU and was not tuned; ``hpm`` needs a GPU."""
RENAMED = {
    "paper": "is now hpm, with 768 channels, other blocks, relative positions, layer scale, trained positions and "
    "80,000 steps; a run that began with the old paper resumes without --preset"
}
"""Presets of earlier versions, and the line that says where they went."""
FEW_STEPS = 300
"""Steps below which a run says that its result will mean little; 500 on 60 scenes gave a mIoU of 31 %."""
LARGE = 24
"""Blocks from which on an encoder counts as ViT-L."""


def resolved(run: SegmentSettings, depth: int) -> SegmentSettings:
    """Return the settings with the learning rate for an encoder of ``depth`` blocks, if none is set (HPM, A.3)."""
    return run if run.lr is not None else replace(run, lr=2e-5 if depth >= LARGE else 1e-4)


def check(run: SegmentSettings, patch_size: int, images: int) -> None:
    """Refuse settings that cannot work.

    Args:
        run: the settings, :func:`resolved`.
        patch_size: of the encoder, pixels.
        images: number of images in the training set.

    Raises:
        UserError: for the first such setting.
    """
    check_loop(run)
    expect(
        run,
        "batch_size",
        "2 or more images a micro-batch, for batch norm",
        run.batch_size >= 2 * run.accumulation_steps,
    )
    assert run.lr is not None
    expect(run, "min_lr", f"from 0 to the learning rate {run.lr:g}", run.min_lr <= run.lr)
    steps = run.total_steps(images)
    fewer = f"fewer than the {steps} steps"
    if run.steps is None:
        fewer += f" of epochs {run.epochs}, batch_size {run.batch_size}, least_steps {run.least_steps}"
    expect(run, "warmup_steps", fewer, run.warmup_steps < steps)
    for name in ("scale", "crop", "stride"):
        expect(run, name, "two numbers", len(getattr(run, name)) == 2)
    fits = all(side >= patch_size and side % patch_size == 0 for side in run.crop)
    expect(run, "crop", f"multiples of the patch size {patch_size}", fits)
    fits = all(1 <= stride <= side for stride, side in zip(run.stride, run.crop, strict=True))
    expect(run, "stride", f"from 1 to the crop's {' '.join(map(str, run.crop))}", fits or run.inference == "whole")
