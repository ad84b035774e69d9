"""How a detector is built and trained: ViTDet's recipe, and one for a first look."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from hardpatch.train.settings import expect, setting

DROPS = (8 / 9, 26 / 27)
"""Shares of the training after which the learning rate is divided by 10."""


@dataclass(frozen=True)
class DetectionRun:
    """The defaults are ViTDet's for ViT-B on COCO: its Appendix A.2, and the configuration ``mask_rcnn_vitdet_b_100ep``
    of detectron2."""

    image_size: int = setting(1024, "side of the canvas, pixels")
    batch_size: int = setting(64, "images of an optimizer step")
    accumulation_steps: int = setting(1, "pieces that a batch goes through the network in")
    epochs: float = setting(100.0, "passes over the training images")
    steps: int | None = setting(None, "optimizer steps, in place of epochs")
    lr: float = setting(1e-4, "peak learning rate of the heads")
    layer_decay: float = setting(0.7, "factor of the learning rate from each block to the one below it")
    weight_decay: float = setting(0.1, "of AdamW")
    drop_path: float = setting(0.1, "of the last block, rising linearly from 0 in the first")
    warmup_steps: int = setting(250, "with a rising learning rate, at most a tenth of the steps")
    clip: float | None = setting(None, "largest norm of the gradient")
    jitter: tuple[float, float] = setting((0.1, 2.0), "range of the longer side over the canvas; 1 1 just fits")
    flip: float = setting(0.5, "probability of a horizontal flip")
    window: int = setting(14, "side of the attention windows, patches")
    global_blocks: int = setting(4, "blocks that attend over the whole image")
    channels: int = setting(256, "of the pyramid and of the heads' convolutions")
    head_width: int = setting(1024, "of the linear layer for the boxes")
    rois: int = setting(512, "boxes of an image that the heads are trained on at a time")
    anchor_scale: float = setting(8.0, "side of the anchors over the stride of their map")
    precision: Literal["auto", "fp32", "bf16"] = setting(
        "auto", "of encoder and pyramid; the heads are fp32 (auto: bf16 on CUDA)"
    )
    val_every: int | None = setting(None, "steps between measurements; there is always one at the end")
    log_every: int = setting(50, "steps between lines of metrics")
    seed: int = setting(0, "of the heads, the order, the crops and drop path")


PRESETS = {
    "paper": DetectionRun(),
    "small": DetectionRun(
        image_size=256,
        batch_size=4,
        epochs=30.0,
        lr=2e-4,
        layer_decay=0.8,
        weight_decay=0.05,
        drop_path=0.0,
        clip=1.0,
        jitter=(0.8, 1.25),
        window=8,
        channels=128,
        head_width=256,
        rois=128,
        anchor_scale=4.0,
        log_every=20,
    ),
}
"""``paper`` wants a large GPU and ``accumulation_steps``, or several; ``small`` is for a first look. Large-scale jitter
would leave little to see of images of 256 px, and its anchors are as much smaller as they are."""

FREE_TO_CHANGE = ("accumulation_steps", "precision", "val_every", "log_every")
"""Settings that a run may change when it goes on."""


def check_run(run: DetectionRun) -> None:
    """Refuse settings that make no sense in themselves.

    Raises:
        UserError: names the first.
    """
    least = dict.fromkeys(
        ("batch_size", "accumulation_steps", "channels", "head_width", "rois", "log_every", "window"), 1
    )
    for name, lowest in {**least, "warmup_steps": 0, "seed": 0}.items():
        expect(run, name, f"{lowest} or more", getattr(run, name) >= lowest)
    for name in ("lr", "epochs", "anchor_scale", "clip", "steps", "val_every"):
        number = getattr(run, name)
        expect(run, name, "a number above 0", number is None or 0 < number < math.inf)
    expect(run, "layer_decay", "a number above 0, up to 1", 0 < run.layer_decay <= 1)
    expect(run, "flip", "a number from 0 to 1", 0 <= run.flip <= 1)
    expect(run, "drop_path", "a number from 0, below 1", 0 <= run.drop_path < 1)
    expect(run, "weight_decay", "a number from 0", 0 <= run.weight_decay < math.inf)
    expect(run, "jitter", "two numbers above 0, the lower first", 0 < run.jitter[0] <= run.jitter[1] < math.inf)
    expect(
        run, "accumulation_steps", f"up to {run.batch_size} pieces, a batch", run.accumulation_steps <= run.batch_size
    )


def total_steps(run: DetectionRun, images: int) -> int:
    """Optimizer steps of a run."""
    return run.steps or max(1, round(run.epochs * images / run.batch_size))


def step_learning_rate(step: int, total: int, run: DetectionRun) -> float:
    """For the optimizer step after ``step`` of ``total``: linear from a thousandth of the peak while warming up, then
    the peak, divided by 10 after each of :data:`DROPS`."""
    warmup = min(run.warmup_steps, total // 10)
    if step < warmup:
        return run.lr * (0.001 + 0.999 * step / warmup)
    return run.lr * 0.1 ** sum(step >= share * total for share in DROPS)


def from_dict(values: Mapping[str, Any]) -> DetectionRun:
    """The run of :func:`~hardpatch.train.settings.to_dict`."""
    return with_values(DetectionRun(), values)


def with_values(run: DetectionRun, values: Mapping[str, Any]) -> DetectionRun:
    """The run with other values, lists for tuples."""
    changed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return replace(run, **changed)
