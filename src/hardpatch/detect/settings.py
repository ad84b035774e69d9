"""Settings of detection and their presets: ViTDet's recipe, HPM's shorter one, and one for small sets.

This file does not import torch, so that the command line starts quickly.
"""

from dataclasses import dataclass

from hardpatch.choices import MasksName
from hardpatch.ranges import BATCH, CHANNELS, DECAY, PAIR_OF_RATIOS, PASSES, RATE, SHARE, SIDE, WIDTH, Range
from hardpatch.train.settings import TrainingSettings, check_loop, setting

ANNOTATIONS = (
    "COCO JSON, a folder of Pascal VOC XML or YOLO text files, VOC's ImageSets/Main/*.txt, or YOLO's data.yaml"
)
"""Paths that :func:`~hardpatch.detect.read.read_annotations` reads."""
DROPS = (8 / 9, 26 / 27)
"""Fractions of the training after which the learning rate is divided by 10."""


@dataclass(frozen=True)
class DetectSettings(TrainingSettings):
    """Settings of a Mask R-CNN; the defaults are ViTDet's for ViT-B on COCO.

    They are those of its Appendix A.2 and of detectron2's configuration ``mask_rcnn_vitdet_b_100ep``.
    """

    epochs: float | None = setting(100.0, "passes over the training images; this or steps", PASSES)
    batch_size: int = setting(64, "images of an optimizer step", BATCH)
    layer_decay: float | None = setting(
        0.7, "factor of the learning rate from each layer to the one below it; 1 for random weights", SHARE
    )
    weight_decay: float = setting(0.1, "weight decay of matrices; vectors and the class token have none", DECAY)
    lr: float = setting(1e-4, "peak learning rate of the heads", RATE)
    warmup_steps: int = setting(
        250, "steps with a rising learning rate, at most a tenth of the training", Range(0, 2**40, whole=True)
    )
    image_size: int = setting(1024, "side of the square canvas that images are put on, in pixels", SIDE)
    jitter: tuple[float, float] = setting(
        (0.1, 2.0), "range of the longer side of an image, relative to the canvas", PAIR_OF_RATIOS
    )
    window: int = setting(14, "side of an attention window, in patches", SIDE)
    global_blocks: int = setting(4, "blocks that attend over the whole image", Range(0, 1_000, whole=True))
    channels: int = setting(256, "channels of the pyramid and of the heads' convolutions", CHANNELS)
    head_width: int = setting(1024, "width of the linear layer for the boxes", WIDTH)
    rois: int = setting(512, "boxes per image on which the heads are trained", Range(1, 65_536, whole=True))
    anchor_scale: float = setting(
        8.0, "side of the anchors, relative to the stride of their map", Range(0, 1_000, above=True)
    )
    sampling_ratio: int = setting(
        0, "points of RoIAlign along each side of a cell; 0 adapts them to the box", Range(0, 64, whole=True)
    )
    masks: MasksName = setting(
        "auto",
        "masks to train: polygons of the annotations (auto: none if there are none), boxes where there is no polygon, "
        "or none: a detector of boxes",
    )
    train_positions: bool = setting(True, "train the absolute positions")
    relative_positions: bool = setting(
        True, "add decomposed relative positions to every block, zero at first; not if the encoder has a relative bias"
    )


PRESETS = {
    "small": DetectSettings(
        image_size=256,
        batch_size=4,
        epochs=30.0,
        least_steps=2000,
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
        sampling_ratio=2,
        train_positions=False,
        relative_positions=False,
        log_every=20,
    ),
    "hpm": DetectSettings(epochs=12.0, batch_size=16),
    "vitdet": DetectSettings(),
}
"""Settings by name: ``small`` for small sets; ``vitdet``; ``hpm``, the same in the length of HPM's A.2.

The last two need a large GPU and ``accumulation_steps``. On a canvas of 256 px, large-scale jitter would make objects
too small, and anchors are smaller in proportion.
"""
FEW_STEPS = 1000
"""Steps below which a run says that its result will mean little."""
MORE_STEPS = "--preset small takes 2,000 or more"
RENAMED = {
    "paper": "could mean two papers: take hpm (12 epochs, batch 16) or vitdet (100 epochs, batch 64), which it was; "
    "both have trained and relative positions and sampling ratio 0 now; a run that began with paper resumes "
    "without --preset"
}
"""Presets of earlier versions, and the line that says where they went."""
BEFORE = {"sampling_ratio": 2, "train_positions": False, "relative_positions": False}
"""Settings of detectors that were saved before these settings existed."""


def check(run: DetectSettings) -> None:
    """Refuse settings that cannot work.

    Raises:
        UserError: names the first such setting.
    """
    check_loop(run)


def step_learning_rate(step: int, total: int, run: DetectSettings) -> float:
    """Return the learning rate of the step after ``step`` of ``total``.

    It rises linearly from a thousandth of the peak during the warm-up. After each of :data:`DROPS` it is divided by 10.
    """
    warmup = min(run.warmup_steps, total // 10)
    if step < warmup:
        return run.lr * (0.001 + 0.999 * step / warmup)
    return run.lr * 0.1 ** sum(step >= share * total for share in DROPS)
