"""Verdict on a detector: its average precision compared with that of the same box in every image."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hardpatch.data.names import some
from hardpatch.detect.annotations import AnnotationSet
from hardpatch.detect.measure import Precision, average_precision
from hardpatch.train.result import Verdict

NOTHING, LITTLE = 0.005, 0.05
"""Box AP below which a detector has learned nothing, and below which it has barely learned."""
LEAST_SCORE = 0.05
"""Score below which torchvision's detectors return nothing."""


def typical_box(train: AnnotationSet, val: AnnotationSet) -> float | None:
    """Return the box AP of a detector that finds one object of the most frequent class in every image.

    Its box is the median of the boxes of that class in ``train``, relative to the image. None without objects in
    ``val``.
    """
    boxes = defaultdict[int, list[tuple[float, ...]]](list)
    for image in train.images:
        for obj in image.objects:
            if not obj.crowd:
                left, top, width, height = obj.box
                boxes[obj.category].append(
                    (left / image.width, top / image.height, width / image.width, height / image.height)
                )
    category = max(boxes, key=lambda number: len(boxes[number]))
    median = np.median(boxes[category], axis=0)
    results = [
        {
            "image_id": image.id,
            "category_id": category,
            "score": 1.0,
            "bbox": (median * [image.width, image.height, image.width, image.height]).tolist(),
        }
        for image in val.images
    ]
    return average_precision(val.ground_truth(), results, ("box",))["box"]["AP"]


def verdict(
    precision: Precision,
    detections: Sequence[Mapping[str, Any]],
    val: AnnotationSet,
    typical: float | None,
    training: str,
) -> Verdict:
    """Return whether a detector learned anything, and why.

    Args:
        precision: on ``val``.
        detections: the COCO results.
        val: the validation set.
        typical: box AP of :func:`typical_box`.
        training: its length, for the reader, and that of the presets.
    """
    ap = precision["box"]["AP"]
    if ap is None:
        return Verdict("no", ("--val has no objects: average precision has no value",))
    reasons = []
    true = Counter(obj.category for obj in val.objects)
    found = {result["category_id"] for result in detections} & true.keys()
    if not detections:
        reasons.append(f"no detection above {LEAST_SCORE} in {len(val.images)} images")
    elif len(found) < len(true):
        missed = [val.categories[category] for category in sorted(true.keys() - found)]
        reasons.append(f"detects {len(found)} of {len(true)} classes; without {some(missed)}")
    learned_nothing = ap < max(NOTHING, typical or 0.0)
    if learned_nothing:
        reasons.append(f"AP {ap:.2%}: the detector learned nothing yet ({training})")
    reasons.append(f"the same box of the most frequent class in every image has AP {typical or 0.0:.2%}")
    if learned_nothing:
        return Verdict("no", tuple(reasons))
    return Verdict("barely" if ap < LITTLE or 2 * len(found) < len(true) else "yes", tuple(reasons))
