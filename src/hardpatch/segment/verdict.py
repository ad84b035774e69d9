"""Verdict on a segmenter: its predictions compared with those of one class everywhere."""

from collections.abc import Sequence
from typing import Any

from hardpatch.data.names import some
from hardpatch.segment.measure import Measures
from hardpatch.train.result import Verdict

FOUND = 0.01
"""Share of a class's pixels that must be predicted correctly for the class to count as predicted."""
MARGIN = 0.1
"""Part of the way from the mIoU of one class everywhere to 1 from which on a segmenter has learned."""


def majority(measures: Measures, names: Sequence[str], train_pixels: Sequence[int]) -> dict[str, Any]:
    """Return the measures of a prediction of the most frequent class of the training set everywhere.

    Args:
        measures: of the segmenter, for the pixels of each class.
        names: of the classes.
        train_pixels: number of pixels of each class in the training set.

    Returns:
        ``class``, ``miou`` and ``pixel_accuracy``.
    """
    best = max(range(len(names)), key=lambda k: train_pixels[k])
    share = measures.pixels[best] / sum(measures.pixels)
    counted = sum(pixels > 0 or k == best for k, pixels in enumerate(measures.pixels))
    return {"class": names[best], "miou": share / counted, "pixel_accuracy": share}


def verdict(measures: Measures, names: Sequence[str], trivial: dict[str, Any]) -> Verdict:
    """Return whether a segmenter learned anything, and why.

    Args:
        measures: on the validation images.
        names: of the classes.
        trivial: of :func:`majority`.
    """
    true = [k for k, pixels in enumerate(measures.pixels) if pixels]
    found = [k for k in true if measures.accuracy[k] > FOUND]
    reasons = []
    if len(found) < min(2, len(true)):
        top = max(range(len(names)), key=lambda k: measures.predicted[k])
        share = measures.predicted[top] / sum(measures.predicted)
        only = f"predicts one class only ({names[top]}, {share:.1%} of the pixels)"
        reasons.append(f"{only}: mIoU {measures.miou:.1%} is not a result")
    elif len(found) < len(true):
        missed = [names[k] for k in true if k not in found]
        reasons.append(f"predicts {len(found)} of {len(true)} classes; without {some(missed)}")
    numbers = f"mIoU {trivial['miou']:.1%} and pixel accuracy {trivial['pixel_accuracy']:.1%}"
    reasons.append(f"{trivial['class']} everywhere has {numbers}")
    if len(true) < 2:
        return Verdict("no", (*reasons, "--val has one class only"))
    if len(found) < 2 or measures.miou <= trivial["miou"]:
        return Verdict("no", tuple(reasons))
    little = measures.miou < trivial["miou"] + MARGIN * (1 - trivial["miou"])
    return Verdict("barely" if little or 2 * len(found) < len(true) else "yes", tuple(reasons))
