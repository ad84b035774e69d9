"""Evaluation of segmentation: whole-image and sliding-window inference, and measures of one confusion matrix."""

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hardpatch.data.bad_files import BadFiles, nothing_decodable
from hardpatch.segment.batches import evaluation_pairs
from hardpatch.segment.data import IGNORED, SegmentationSet
from hardpatch.segment.model import UperNet

WINDOWS_AT_ONCE = 8
VALUES_AT_ONCE = 1 << 27
"""Logits that are resized at a time; those of many classes in a large image would not fit into memory."""


@dataclass(frozen=True)
class Inference:
    """Settings of inference on an image of any size.

    Args:
        short_side: pixels to which the shorter side of the image is resized first.
        mode: ``whole`` image at once, or ``slide`` a window over it and average the logits where windows overlap.
        window: (height, width) of the window in pixels, multiples of the patch size.
        stride: (vertical, horizontal) stride of the window, pixels.
    """

    short_side: int
    mode: Literal["whole", "slide"]
    window: tuple[int, int]
    stride: tuple[int, int]


class Confusion:
    """Confusion matrix of pixels, on the device until it is read.

    Args:
        classes: number of classes.
        device: of the tensors to count.
    """

    def __init__(self, classes: int, device: torch.device) -> None:
        self.classes = classes
        self.counts = torch.zeros(classes * classes + 1, dtype=torch.int64, device=device)

    def add(self, truth: Tensor, predicted: Tensor) -> None:
        """Count the pixels of two integer tensors of one shape.

        Pixels whose ``truth`` is :data:`~hardpatch.segment.data.IGNORED` are not counted.
        """
        truth, predicted = truth.flatten().long(), predicted.flatten().long()
        # Ignored pixels go into a cell of their own: selecting pixels by a mask would wait for the device.
        cells = torch.where(truth == IGNORED, self.classes**2, truth * self.classes + predicted)
        self.counts.scatter_add_(0, cells, torch.ones_like(cells))

    def matrix(self) -> Tensor:
        """Return the matrix, int64 ``[classes, classes]`` on the CPU: rows are true, columns predicted classes."""
        return self.counts[:-1].reshape(self.classes, self.classes).cpu()


@dataclass(frozen=True)
class Measures:
    """Measures of a confusion matrix, in [0, 1]; the means leave out classes that have no value (NaN)."""

    miou: float
    """mean of ``iou``"""
    mean_accuracy: float
    """mean of ``accuracy``"""
    pixel_accuracy: float
    """share of the pixels that are predicted correctly"""
    iou: tuple[float, ...]
    """intersection over union of each class; NaN where it is neither true nor predicted anywhere"""
    accuracy: tuple[float, ...]
    """share of each class's pixels that are predicted correctly; NaN where it has none"""
    pixels: tuple[int, ...]
    """number of true pixels of each class"""
    predicted: tuple[int, ...]
    """number of pixels that are predicted to be of each class"""

    def headline(self) -> dict[str, float]:
        """Return the three numbers over all classes, by name."""
        return {"miou": self.miou, "mean_accuracy": self.mean_accuracy, "pixel_accuracy": self.pixel_accuracy}

    def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """Return plain values for JSON, with the class ``names``; NaN becomes None."""
        rows = zip(names, self.iou, self.accuracy, self.pixels, self.predicted, strict=True)
        return {
            **self.headline(),
            "per_class": [
                {"name": name, "iou": _plain(iou), "accuracy": _plain(accuracy), "pixels": true, "predicted": predicted}
                for name, iou, accuracy, true, predicted in rows
            ],
        }


def measures(matrix: Tensor) -> Measures:
    """Compute measures from int64 ``[classes, classes]``, rows true and columns predicted."""
    matrix = matrix.double()
    correct, true, predicted = matrix.diag(), matrix.sum(dim=1), matrix.sum(dim=0)
    iou = correct / (true + predicted - correct)
    accuracy = correct / true
    return Measures(
        miou=float(iou.nanmean()),
        mean_accuracy=float(accuracy.nanmean()),
        pixel_accuracy=float(correct.sum() / true.sum()),
        iou=tuple(iou.tolist()),
        accuracy=tuple(accuracy.tolist()),
        pixels=tuple(int(count) for count in true),
        predicted=tuple(int(count) for count in predicted),
    )


def predict_logits(model: UperNet, images: Tensor, inference: Inference) -> Tensor:
    """Return the logits of each pixel: uint8 ``[B, C, H, W]`` to float32 ``[B, classes, H, W]``.

    Sides that are not a multiple of the patch size are padded with the mean, at the bottom and on the right.

    Args:
        model: on the device of the images, in eval mode.
        images: with a shorter side of ``inference.short_side`` pixels.
        inference: whole image or sliding window.
    """
    height, width = images.shape[2:]
    patch = model.encoder.patch_size
    pixels = F.pad(model.normalize(images), (0, -width % patch, 0, -height % patch))
    if inference.mode == "whole":
        logits = _at_pixels(model, pixels)
    else:
        window = [min(side, size) for side, size in zip(inference.window, pixels.shape[2:], strict=True)]
        boxes = [
            (slice(top, top + window[0]), slice(left, left + window[1]))
            for top in window_starts(pixels.shape[2], window[0], inference.stride[0])
            for left in window_starts(pixels.shape[3], window[1], inference.stride[1])
        ]
        logits = pixels.new_zeros(len(images), model.classes, *pixels.shape[2:])
        overlaps = pixels.new_zeros(pixels.shape[2:])
        for first in range(0, len(boxes), WINDOWS_AT_ONCE):
            group = boxes[first : first + WINDOWS_AT_ONCE]
            windows = _at_pixels(model, torch.cat([pixels[:, :, rows, columns] for rows, columns in group]))
            for (rows, columns), part in zip(group, windows.split(len(images)), strict=True):
                logits[:, :, rows, columns] += part
                overlaps[rows, columns] += 1
        logits = logits / overlaps
    return logits[:, :, :height, :width]


def class_map(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Return the class with the highest logit at each pixel of (height, width) ``size``.

    Args:
        logits: ``[B, classes, h, w]``, which are resized bilinearly.
        size: of the result.

    Returns:
        int64 ``[B, H, W]``, the first of several equal classes.
    """
    count = max(1, VALUES_AT_ONCE // (len(logits) * size[0] * size[1]))
    best, winner = _resize(logits[:, :count], size).max(dim=1)
    for first in range(count, logits.shape[1], count):
        values, index = _resize(logits[:, first : first + count], size).max(dim=1)
        winner = torch.where(values > best, index + first, winner)
        best = torch.maximum(values, best)
    return winner


def window_starts(size: int, window: int, stride: int) -> list[int]:
    """Return where windows start along a side: every ``stride`` pixels, the last one moved back into the image."""
    count = max(0, math.ceil((size - window) / stride)) + 1
    return [min(number * stride, size - window) for number in range(count)]


class EvaluationResult(NamedTuple):
    """Result of :func:`evaluate`."""

    measures: Measures
    maps: dict[int, Tensor]
    """predicted classes of the images in ``keep``, uint8 ``[H, W]``, by index; not of those that cannot be decoded"""


@torch.no_grad()
def evaluate(
    model: UperNet,
    pairs: SegmentationSet,
    inference: Inference,
    *,
    device: torch.device,
    workers: int = 0,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    keep: Collection[int] = (),
    bad_files: BadFiles | None = None,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> EvaluationResult:
    """Segment every image and compare at the size of its label map; the model is in eval mode meanwhile.

    Args:
        model: on the device.
        pairs: images and label maps.
        inference: whole image or sliding window.
        device: of the model.
        workers: processes that decode; 0 decodes in this one.
        autocast: context of the network's precision; logits are float32.
        keep: indices of images whose predictions are returned.
        bad_files: counts pairs that cannot be decoded, which are left out; by default none is allowed.
        progress: called with the number of images done and the number of all.

    Raises:
        UserError: if too many pairs cannot be decoded, or all of them.
    """
    training = model.training
    model.eval()
    confusion = Confusion(model.classes, device)
    maps = {}
    bad: list[str] = []
    for i, pair in enumerate(evaluation_pairs(pairs, inference.short_side, model.reading, workers)):
        if pair.bad:
            bad.append(pair.bad)
            continue
        with autocast():
            logits = predict_logits(model, pair.image.unsqueeze(0).to(device), inference)
        predicted = class_map(logits, pair.labels.shape)[0]
        confusion.add(pair.labels.to(device), predicted)
        if i in keep:
            maps[i] = predicted.byte().cpu()
        progress(i + 1, len(pairs))
    model.train(training)
    bad_files = BadFiles(len(pairs), 0.0, "--max_bad_fraction") if bad_files is None else bad_files
    bad_files.update(bad)
    if len(bad) == len(pairs):
        raise nothing_decodable(len(pairs), bad)
    return EvaluationResult(measures(confusion.matrix()), maps)


def _at_pixels(model: UperNet, pixels: Tensor) -> Tensor:
    return _resize(model(pixels).main, pixels.shape[2:])


def _resize(logits: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(logits.float(), size=tuple(size), mode="bilinear", align_corners=False)


def _plain(number: float) -> float | None:
    return None if math.isnan(number) else number
