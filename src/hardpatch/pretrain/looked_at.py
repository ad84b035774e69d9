"""Images that the checks of a run look at: held-out ones, as many of the training, and labeled ones."""

import logging
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from hardpatch.configuration.sections import RunConfig
from hardpatch.data.augment import EvalTransform
from hardpatch.data.batch import Batch
from hardpatch.data.crop import torch_type
from hardpatch.data.loader import eval_batches
from hardpatch.data.order import evenly_spread
from hardpatch.data.sources import Source, Subset
from hardpatch.data.workers import resolve_workers
from hardpatch.measure.labels import eval_transform, open_labeled
from hardpatch.methods.hpm import HPM

NEIGHBORS, MOST_NEIGHBORS = 2, 5000
"""Labeled images beside each one that a check looks at, and at most."""
LEAST_LABELED = 10
"""Least number of labeled images to look at, and of others beside them, with which an accuracy is measured."""
CACHE_BYTES = 1 << 29
"""Memory up to which decoded images are kept from one check to the next."""
BATCH = 128

log = logging.getLogger("hardpatch")


class ImageSet:
    """Some images, resized and center-cropped to the size of a model; decoded once if they are not too many.

    Args:
        source: the images.
        transform: makes them as large as the model's.
        workers: processes that decode.
    """

    def __init__(self, source: Source, transform: EvalTransform, workers: int) -> None:
        self.source, self.transform, self.workers = source, transform, workers
        self._kept: list[Batch] | None = None

    def __len__(self) -> int:
        return len(self.source)

    def batches(self) -> Iterable[Batch]:
        """Return all images in order; files that cannot be decoded are left out, and said once."""
        if self._kept is not None:
            return self._kept
        pixels = self.transform.reading.number * math.prod(self.transform.image_size)
        small = len(self) * pixels * torch_type(self.transform.reading).itemsize <= CACHE_BYTES
        # a few images are decoded sooner than processes are started
        workers = 0 if len(self) <= BATCH else self.workers
        batches = eval_batches(self.source, self.transform, batch_size=BATCH, workers=workers)
        if small:
            self._kept = list(batches)
            if bad := sum(len(batch.bad) for batch in self._kept):
                log.warning("checks: %d of %d images they look at cannot be decoded, left out", bad, len(self))
        return self._kept if small and self._kept is not None else batches


class LabeledSets(NamedTuple):
    """Labeled images whose features are classified."""

    neighbors: ImageSet
    queries: ImageSet
    classes: int
    mapping: torch.Tensor | None = None
    """int64, label of the neighbors for each label of the queries; None if both number their classes alike"""
    in_halves: bool = False
    """both are mixed, and each half of them is classified by the other: more images, so a smaller sampling error"""


class LookedAt(NamedTuple):
    """Images of the checks of a run."""

    images: ImageSet
    """held-out ones if there are any, else some of the training"""
    held_out: bool
    trained: ImageSet | None
    """half as many of the training; None unless the others are held out"""
    labeled: LabeledSets | None
    notes: tuple[str, ...]
    """what was chosen, a line each"""


def looked_at(run: RunConfig, model: HPM, trained: Source, held: Source | None) -> LookedAt:
    """Choose the images of the checks, always the same ones of a set.

    Args:
        run: its configuration.
        model: whose size and reading the images get.
        trained: images that are trained on.
        held: images that are not; None if there are none.
    """
    transform = eval_transform(model, None)
    workers, count = resolve_workers(run.data.workers), run.verdict.images

    def chosen(source: Source, indices: Sequence[int]) -> ImageSet:
        return ImageSet(Subset(source, indices), transform, workers)

    order = np.random.default_rng(1).permutation(len(trained)).tolist()
    if held is None:
        images, rest = chosen(trained, sorted(order[:count])), order[count:]
        same = None
        note = (
            f"checks look at {len(images)} images that are also trained on (data.hold_out 0), so that overfitting is "
            "not measured"
        )
    else:
        images, rest = chosen(held, evenly_spread(len(held), count)), order
        same = chosen(trained, sorted(order[: -(-len(images) // 2)]))
        note = (
            f"data.hold_out: {len(held)} images are held out and {len(trained)} trained on; checks look at "
            f"{len(images)} and {len(same)} of them"
        )
    if run.knn.train is not None:
        labeled = _given_sets(run, model)
        of_labels = (
            f"checks classify {len(labeled.queries)} images of --knn.val by {len(labeled.neighbors)} of --knn.train"
        )
        return LookedAt(images, held is not None, same, labeled, (note, of_labels))
    neighbors = chosen(trained, sorted(rest[: min(NEIGHBORS * count, MOST_NEIGHBORS)]))
    own = _own_labels(images, neighbors)
    if own is None:
        return LookedAt(images, held is not None, same, None, (note,))
    of_labels = (
        f"labels of --data are used by the checks alone, which classify {len(images) + len(neighbors)} images, each "
        f"half by the other{'' if held is None else f' ({len(images)} are held out)'}"
    )
    return LookedAt(images, held is not None, same, own, (note, of_labels))


def _given_sets(run: RunConfig, model: HPM) -> LabeledSets:
    """Sample the labeled sets of section ``knn``."""
    assert run.knn.train is not None
    assert run.knn.val is not None
    options = ("--knn.train", "--knn.val")
    sources, (classes, mapping) = open_labeled(
        run.knn.train, run.knn.val, run.data.columns, reading=model.reading, options=options
    )
    counts = min(NEIGHBORS * run.verdict.images, MOST_NEIGHBORS), run.verdict.images
    workers = resolve_workers(run.data.workers)
    sets = []
    for source, count, option in zip(sources, counts, options, strict=True):
        order = np.random.default_rng(1).permutation(len(source))[:count]
        transform = eval_transform(model, source, option)
        sets.append(ImageSet(Subset(source, np.sort(order).tolist()), transform, workers))
    return LabeledSets(sets[0], sets[1], len(classes), mapping)


def _own_labels(queries: ImageSet, neighbors: ImageSet) -> LabeledSets | None:
    """Take the labels of the data itself, if all of the chosen images have one and there are two classes or more."""
    classes = queries.source.classes
    if classes is None or len(classes) < 2 or min(len(queries), len(neighbors)) < LEAST_LABELED:
        return None
    of_queries, found = ({images.source.label(i) for i in range(len(images))} for images in (queries, neighbors))
    if None in found | of_queries or len(found) < 2:
        return None
    return LabeledSets(neighbors, queries, len(classes), in_halves=True)
