"""How a segmenter is trained and judged: the settings and their presets.

Nothing here imports torch, so that the command line answers at once.
"""

import math
from dataclasses import dataclass
from typing import Literal

from hardpatch.train.settings import expect, setting


@dataclass(frozen=True)
class SegmentationRun:
    """The defaults are those of mmsegmentation's configuration of MAE with ViT-B on ADE20K, after BEiT's, save for
    ``channels`` (there 768) and ``blocks`` (there 4, 6, 8 and 12)."""

    steps: int = setting(160_000, "optimizer steps")
    batch_size: int = setting(16, "crops of a step")
    crop: tuple[int, ...] = setting((512, 512), "height and width of the crops and of the sliding window, pixels")
    short_side: int = setting(512, "of images before the random scale, and when they are judged, pixels")
    scale: tuple[float, ...] = setting((0.5, 2.0), "range of the random scale")
    cat_max_ratio: float = setting(0.75, "crops in which one class has more than this share are drawn anew")
    flip: float = setting(0.5, "probability of a horizontal flip")
    photometric: bool = setting(True, "vary brightness, contrast, saturation and hue")
    channels: int = setting(512, "of the head")
    blocks: tuple[int, ...] | None = setting(
        None, "four blocks, counted from 1, after which features are taken; None: 1/4, 2/4, 3/4 and 4/4 of the depth"
    )
    dropout: float = setting(0.1, "of channels before the classifiers")
    auxiliary_weight: float = setting(0.4, "of the auxiliary head's loss")
    lr: float = setting(1e-4, "peak learning rate of the heads")
    layer_decay: float = setting(0.65, "a layer learns with this share of the rate of the one above it")
    weight_decay: float = setting(0.05, "of matrices; vectors and the class token have none")
    warmup_steps: int = setting(1500, "in which the learning rate rises from 0")
    power: float = setting(1.0, "of the polynomial by which the learning rate falls")
    min_lr: float = setting(0.0, "learning rate at the end")
    drop_path: float = setting(0.1, "of the last block, linearly less in those before")
    inference: Literal["whole", "slide"] = setting("slide", "the whole image at once, or a window slid over it")
    stride: tuple[int, ...] = setting((341, 341), "of the sliding window, pixels")
    precision: Literal["auto", "fp32", "bf16"] = setting("auto", "auto is bf16 on a GPU that has it, else fp32")
    val_every: int = setting(16_000, "steps between two measurements on the validation images")
    log_every: int = setting(50, "steps between two lines of metrics")
    seed: int = setting(0, "of the heads, the crops and what is dropped")


PRESETS = {
    "paper": SegmentationRun(),
    "small": SegmentationRun(
        steps=2000,
        batch_size=8,
        crop=(96, 96),
        short_side=96,
        channels=64,
        lr=2e-3,
        layer_decay=0.75,
        warmup_steps=100,
        inference="whole",
        stride=(64, 64),
        val_every=500,
    ),
}
"""``paper`` wants a GPU; ``small`` is this project's choice for small networks on a CPU and was not tuned."""

FREE_TO_CHANGE = ("val_every", "log_every")
"""Settings that a run may change when it goes on."""


def check_run(run: SegmentationRun, patch_size: int) -> None:
    """Refuse settings that make no sense.

    Raises:
        UserError: names the first.
    """
    for name in ("steps", "short_side", "channels", "val_every", "log_every"):
        expect(run, name, "a whole number from 1", getattr(run, name) >= 1)
    expect(run, "batch_size", "2 or more, which batch norm needs", run.batch_size >= 2)
    expect(run, "seed", "0 or more", run.seed >= 0)
    expect(run, "cat_max_ratio", "a share above 0", 0 < run.cat_max_ratio <= 1)
    expect(run, "flip", "a probability in [0, 1]", 0 <= run.flip <= 1)
    for name in ("dropout", "drop_path"):
        expect(run, name, "a probability below 1", 0 <= getattr(run, name) < 1)
    expect(run, "layer_decay", "a number above 0 and up to 1", 0 < run.layer_decay <= 1)
    for name in ("lr", "power"):
        expect(run, name, "a number above 0", 0 < getattr(run, name) < math.inf)
    for name in ("weight_decay", "auxiliary_weight"):
        expect(run, name, "0 or more", 0 <= getattr(run, name) < math.inf)
    expect(run, "min_lr", f"from 0 to the learning rate {run.lr:g}", 0 <= run.min_lr <= run.lr)
    expect(run, "warmup_steps", f"fewer than the {run.steps} steps", 0 <= run.warmup_steps < run.steps)
    for name in ("scale", "crop", "stride"):
        expect(run, name, "two numbers", len(getattr(run, name)) == 2)
    expect(run, "scale", "two numbers above 0, the lower first", 0 < run.scale[0] <= run.scale[1] < math.inf)
    fits = all(side >= patch_size and side % patch_size == 0 for side in run.crop)
    expect(run, "crop", f"multiples of the patch size {patch_size}", fits)
    fits = all(1 <= stride <= side for stride, side in zip(run.stride, run.crop, strict=True))
    expect(run, "stride", f"from 1 to the crop's {' '.join(map(str, run.crop))}", fits or run.inference == "whole")
