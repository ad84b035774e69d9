"""Names that settings choose from, each once. Nothing here imports torch.

The code that gives a name its meaning has a dictionary over the same type; ``tests/test_choices.py`` compares the two.
"""

from typing import Literal, TypedDict

HostName = Literal["mae", "simmim", "beit", "ibot"]
"""Hosts: the masked image models of :data:`hardpatch.configuration.hosts.HOSTS`."""

MaskName = Literal["random", "block", "inverse_block", "grid", "attention_high", "attention_low", "attention_hint"]
"""Strategies that mask the patches that are not mined: :data:`hardpatch.methods.masking.STRATEGIES`."""

MiningName = Literal["hard", "easy"]
"""Mine the patches with the highest predicted loss (argmax) or the lowest (argmin)."""

PredictingLossName = Literal["relative", "absolute", "absolute_standardized"]
"""Losses of the loss predictor: :data:`hardpatch.methods.losses.PREDICTING_LOSSES`."""

ReconstructionLossName = Literal["mse", "l1", "smooth_l1", "l2norm", "cosine"]
"""Losses of the reconstruction: :data:`hardpatch.methods.losses.RECONSTRUCTION_LOSSES`."""

PositionsName = Literal["sincos", "relative", "learned"]
"""Position encodings of the encoder."""

SizeName = Literal["tiny", "small", "base", "large", "huge"]
"""Encoder shapes: :data:`SIZES`."""

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
PrecisionName = Literal["auto", "fp32", "bf16", "fp16"]
StrategyName = Literal["ddp", "fsdp2"]
"""Weights of several processes: whole in each of them, or divided among them."""

DivergenceName = Literal["stop", "rollback"]
"""Response to a training that has diverged: end it, or go back to the last good checkpoint with a lower rate."""

ExtendName = Literal["auto", "rewarm", "hold", "no"]
"""Learning rate of the steps by which a resumed run is made longer: :mod:`hardpatch.train.extension`."""

ReportName = Literal["checks", "end", "no"]
"""Times at which a training writes its page: at evaluations and at the end, at the end only, never."""

WeightsName = Literal["auto", "student", "teacher", "random"]
"""Which weights of a run to use: the student, its moving average, or the random initialization. auto is the student; of
a training checkpoint of DINO, iBOT or DINOv2 it is the teacher, as in their own evaluations."""


class Architecture(TypedDict, total=False):
    """Facts about weights of another library that neither their shapes nor a ``config.json`` beside them say."""

    heads: int | None
    """attention heads of the encoder"""
    decoder_heads: int | None
    """likewise of the decoder"""
    image_size: tuple[int, int] | None
    """(height, width) in pixels that they were trained on"""


PoolName = Literal["mean", "class"]
"""Which token stands for an image: the mean of the patch tokens, or the class token."""

PagesName = Literal["error", "first", "all", "channels"]
"""Files of several pages or frames: refuse them, read the first, read each as an image, or read pages as channels."""

EncodingName = Literal["keep", "jpeg", "png", "webp", "tiff"]
"""Encodings of the images in shards: their own files where they are not resized, or one of these."""

ShuffleName = Literal["auto", "samples", "row_groups"]
"""Orders of training: all images shuffled, or row groups of Parquet files, a few of which are mixed at a time."""

MasksName = Literal["auto", "polygons", "boxes", "none"]
"""Masks that a detector is trained on: :func:`hardpatch.detect.masks.choose_masks`."""

FreezeName = Literal["encoder"]
"""Parts of a network that a training on labels may freeze, beside a number of blocks."""

TaskName = Literal["classes", "multilabel", "regression"]
"""Tasks of fine-tuning: one class for each image, any number of them, or numbers."""
SamplingName = Literal["natural", "balanced"]
"""Sampling of the training images: each once in an epoch, or all classes equally often."""
RegressionLossName = Literal["mse", "l1"]
"""Losses of a regression."""

BALANCED = "balanced"
"""Value of ``class_weights`` and ``sampling`` by which all classes count equally, however frequent they are."""

OptimizerName = Literal["adamw", "sgd"]
"""Optimizers of a training on labels."""

SIZES: dict[SizeName, dict[str, int]] = {
    "tiny": {"width": 192, "depth": 12, "heads": 3},
    "small": {"width": 384, "depth": 12, "heads": 6},
    "base": {"width": 768, "depth": 12, "heads": 12},
    "large": {"width": 1024, "depth": 24, "heads": 16},
    "huge": {"width": 1280, "depth": 32, "heads": 16},
}
"""Encoder shapes by name (MAE and DeiT)."""
