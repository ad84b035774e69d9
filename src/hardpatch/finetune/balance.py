"""Sets whose classes are not equally frequent: weights of the classes in the loss, and balanced sampling."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hardpatch.choices import BALANCED
from hardpatch.data.names import some
from hardpatch.data.sources import Source
from hardpatch.errors import UserError, did_you_mean, shown


def class_counts(source: Source, classes: int) -> Tensor:
    """Count the images of each class: int64 ``[classes]``; images without a label do not count."""
    labels = [source.label(i) for i in range(len(source))]
    return torch.bincount(torch.tensor([label for label in labels if label is not None]), minlength=classes)


def loss_weights(
    given: Sequence[str] | None, classes: Sequence[str], counts: Tensor | None, images: int | None = None
) -> Tensor | None:
    """Return the weight of each class in the loss, float32 ``[classes]``, or None for equal ones.

    Balanced weights of one class an image are ``images / (classes * count)``, as scikit-learn's, whose mean over the
    images is 1. With several labels an image (``images`` is given) they are negatives over positives,
    for the positives.

    Args:
        given: ``balanced``, or ``NAME=WEIGHT`` for some classes; the others have 1.
        classes: names of the classes.
        counts: images of each class, for balanced weights.
        images: number of images of a set with several labels an image.

    Raises:
        UserError: for a class that the set lacks, or a weight that is none.
    """
    if not given:
        return None
    if list(given) == [BALANCED]:
        assert counts is not None
        present = counts.double().clamp_min(1)  # a class without images meets no image
        if images is not None:
            return ((images - counts).double() / present).clamp_min(1e-6).float()
        return (counts.sum() / ((counts > 0).sum() * present)).float()
    weights = torch.ones(len(classes))
    number = {name: k for k, name in enumerate(classes)}
    for entry in given:
        name, mark, text = entry.rpartition("=")
        if not mark:
            raise UserError(
                f"--class_weights: expected balanced or NAME=WEIGHT for some classes, got {shown(repr(entry))}"
            )
        if name not in number:
            raise UserError(
                f"--class_weights: the training set has no class {name!r}{did_you_mean(name, list(classes))}; its "
                f"classes are {some(list(classes), repr, 5)}"
            )
        try:
            weight = float(text)
        except ValueError:
            weight = math.nan
        if not 0 <= weight < 1e6:
            raise UserError(f"--class_weights: expected a number from 0 for {name!r}, got {shown(repr(text))}")
        weights[number[name]] = weight
    if not bool(weights.any()):
        raise UserError("--class_weights: expected a weight above 0 for some class, all are 0")
    return weights


def image_weights(source: Source, classes: int) -> npt.NDArray[np.float64]:
    """Return how often each image is drawn, so that all classes are equally frequent: float64 ``[images]``."""
    counts = class_counts(source, classes).double()
    labels = [source.label(i) for i in range(len(source))]
    return np.array([0.0 if label is None else 1 / float(counts[label]) for label in labels])


def balance_line(counts: Tensor, classes: Sequence[str]) -> str:
    """Return the numbers of images of the smallest and the largest class in words."""
    used = counts.nonzero().flatten()
    small, large = used[counts[used].argmin()], used[counts[used].argmax()]
    return (
        f"{int(counts[small]):,} images of the smallest class, {classes[int(small)]}, "
        f"{int(counts[large]):,} of the largest, {classes[int(large)]}"
    )
