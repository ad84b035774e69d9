"""Detections in COCO's layout, and their average precision by pycocotools."""

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import paste_masks_in_image  # type: ignore[import-untyped]

from hardpatch.detect.annotations import AnnotationSet
from hardpatch.detect.batches import DetectionBatch, Sample
from hardpatch.detect.masks import box_polygon, mask_tools

METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
"""COCO's average precision: mean over the IoU thresholds from 0.50 to 0.95, at 0.50, at 0.75; and the mean for objects
below 32^2, from 32^2 to 96^2, and above 96^2 pixels."""
PIXELS_AT_ONCE = 1 << 26
"""Pixels of the masks that are pasted at a time; a hundred in a large image would not fit into memory."""
KINDS = {"box": "bbox", "mask": "segm"}
"""Kinds of detections, with pycocotools' names."""

Precision = dict[str, dict[str, float | None]]
"""Values of the :data:`METRICS` for ``box`` and, if masks are measured, ``mask``, in [0, 1]; None if there are no
objects of that size."""


class Detections(NamedTuple):
    """Result of :func:`detect`."""

    results: list[dict[str, Any]]
    """COCO results: ``image_id``, ``category_id``, ``score``, ``bbox`` (left, top, width, height in pixels of the
    original image) and, of a detector with masks, ``segmentation`` (compressed run lengths)"""
    indices: set[int]
    """indices of the images that were evaluated"""
    bad: list[str]
    """entries "path: reason" of the images that could not be used"""


@torch.inference_mode()
def detect(detector: nn.Module, batches: Iterable[DetectionBatch], annotations: AnnotationSet) -> Detections:
    """Detect objects in images.

    Args:
        detector: :func:`~hardpatch.detect.model.mask_rcnn` in eval mode.
        batches: :func:`~hardpatch.detect.batches.evaluation_batches` of ``annotations``.
        annotations: source of the image sizes, image ids and category ids.
    """
    device = next(detector.parameters()).device
    results: list[dict[str, Any]] = []
    indices, bad = set(), []
    for batch in batches:
        bad += batch.bad
        images = [sample.image.to(device, non_blocking=True) for sample in batch.samples]
        if not images:
            continue
        for sample, output in zip(batch.samples, detector(images), strict=True):
            results += in_coco_layout({name: values.cpu() for name, values in output.items()}, sample, annotations)
            indices.add(sample.image_index)
    return Detections(results, indices, bad)


def in_coco_layout(output: Mapping[str, Tensor], sample: Sample, annotations: AnnotationSet) -> list[dict[str, Any]]:
    """Convert the detections of one image to COCO results.

    Args:
        output: ``boxes``, ``labels``, ``scores`` and, if it has a mask head, ``masks`` of
            :func:`~hardpatch.detect.model.mask_rcnn`.
        sample: the image that the detector got.
        annotations: the set that the sample is from.

    Returns:
        Entries of :attr:`Detections.results`.
    """
    image = annotations.images[sample.image_index]
    found = detected_objects(output, sample, (image.height, image.width), annotations.category_ids)
    return [{"image_id": image.id, **entry} for entry in found]


def detected_objects(
    output: Mapping[str, Tensor], sample: Sample, size: tuple[int, int], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Convert the detections of one image to COCO results without an image id; see :func:`in_coco_layout`.

    Args:
        output: of the detector.
        sample: the image that the detector got.
        size: (height, width) of the original image.
        category_ids: of the labels, which run from 1.
    """
    ratio = torch.tensor([size[1] / sample.image.shape[2], size[0] / sample.image.shape[1]] * 2)
    boxes = output["boxes"] * ratio
    encoded = _encoded(output["masks"], boxes, size) if "masks" in output else [{}] * len(boxes)
    boxes[:, 2:] -= boxes[:, :2]
    return [
        {"category_id": category_ids[label - 1], "bbox": box, "score": score, **segmentation}
        for label, box, score, segmentation in zip(
            output["labels"].tolist(), boxes.tolist(), output["scores"].tolist(), encoded, strict=True
        )
    ]


def _encoded(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Return the entry ``segmentation`` of each detection."""
    at_once = max(1, PIXELS_AT_ONCE // (size[0] * size[1]))
    encoded = []
    for some_masks, some_boxes in zip(masks.split(at_once), boxes.split(at_once), strict=True):
        pasted = paste_masks_in_image(some_masks, some_boxes, size)[:, 0] >= 0.5
        encoded += mask_tools().encode(np.asfortranarray(pasted.permute(1, 2, 0).numpy().astype(np.uint8)))
    return [
        {"segmentation": {"size": list(size), "counts": run_lengths["counts"].decode("ascii")}}
        for run_lengths in encoded
    ]


def average_precision(
    ground_truth: dict[str, Any], results: Sequence[Mapping[str, Any]], kinds: Sequence[str] = tuple(KINDS)
) -> Precision:
    """Compute the average precision of boxes and masks, as COCO defines it.

    For masks, detections within the box of an object without a mask count neither as right nor as wrong.

    Args:
        ground_truth: :meth:`~hardpatch.detect.annotations.AnnotationSet.ground_truth`.
        results: :attr:`Detections.results`.
        kinds: what to measure, of :data:`KINDS`.

    Raises:
        UserError: if pycocotools is not installed.
    """
    mask_tools()
    from pycocotools.coco import COCO  # type: ignore[import-untyped]
    from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]

    precision: Precision = {}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        ground_truth, results = _numbered(ground_truth, results)
        for kind in kinds:
            truth = COCO()
            truth.dataset = ground_truth if kind == "box" else _with_all_masks(ground_truth)
            truth.createIndex()
            if not results:  # loadRes fails
                any_object = any(not annotation["iscrowd"] for annotation in truth.dataset["annotations"])
                precision[kind] = dict.fromkeys(METRICS, 0.0 if any_object else None)
                continue
            # pycocotools takes the size of a detection from its box if it has one: masks must come without.
            other = {"box": "segmentation", "mask": "bbox"}[kind]
            of_kind = [{key: value for key, value in result.items() if key != other} for result in results]
            evaluation = COCOeval(truth, truth.loadRes(of_kind), KINDS[kind])
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            values = evaluation.stats[: len(METRICS)].tolist()
            precision[kind] = {name: None if ap < 0 else ap for name, ap in zip(METRICS, values, strict=True)}
    return precision


def _numbered(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return both with images and categories numbered from 1.

    pycocotools sorts their ids with NumPy, which makes text of text among numbers, and floats of large numbers.
    """
    lists = {"image_id": ground_truth["images"], "category_id": ground_truth["categories"]}
    numbers = {key: {entry["id"]: k for k, entry in enumerate(entries, 1)} for key, entries in lists.items()}

    def numbered(entry: Mapping[str, Any]) -> dict[str, Any]:
        return {**entry, **{key: ids[entry[key]] for key, ids in numbers.items()}}

    images, categories = ([{**entry, "id": k} for k, entry in enumerate(part, 1)] for part in lists.values())
    annotations = [numbered(annotation) for annotation in ground_truth["annotations"]]
    truth = {**ground_truth, "images": images, "categories": categories, "annotations": annotations}
    return truth, [numbered(result) for result in results]


def _with_all_masks(ground_truth: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ground truth with the box of each object without a mask as a crowd."""
    annotations = [
        annotation
        if "segmentation" in annotation
        else {**annotation, "iscrowd": 1, "segmentation": box_polygon(annotation["bbox"])}
        for annotation in ground_truth["annotations"]
    ]
    return {**ground_truth, "annotations": annotations}
