"""Masks of objects: their encodings, and which masks a detector is trained on."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hardpatch.choices import MasksName
from hardpatch.detect.annotations import AnnotatedImage, AnnotatedObject, AnnotationSet
from hardpatch.errors import UserError

MOST_PIXELS = (1 << 31) - 1
"""Pixels of a mask that run lengths may have: pycocotools counts them in 32 bits."""
LONGEST = 1_000_000
"""Length of a polygon in pixels. pycocotools writes down every fifth of a pixel of it, unchecked, and its numbers run
over at 400 million, which ends the process."""


def mask_tools() -> Any:
    """Return the module ``pycocotools.mask``.

    Raises:
        UserError: if pycocotools is not installed.
    """
    try:
        from pycocotools import mask  # type: ignore[import-untyped]
    except ImportError:
        raise UserError("detection needs pycocotools: pip install hardpatch[detect]") from None
    return mask


def object_mask(obj: AnnotatedObject, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Decode the mask of an object that has one, 1 = object: uint8 ``[height, width]``, the size of its image."""
    tools = mask_tools()
    encoded = obj.segmentation
    if isinstance(encoded, list):
        encoded = tools.merge(tools.frPyObjects(encoded, height, width))
    elif isinstance(encoded["counts"], list):
        encoded = tools.frPyObjects(encoded, height, width)
    return decode_mask(encoded)


def decode_mask(encoded: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
    """Decode a mask from its compressed run lengths, 1 = object: uint8 ``[height, width]``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools uses NumPy's interface from before 2.0
        return mask_tools().decode(encoded)


def run_lengths(counts: Any) -> list[int] | None:
    """Return the lengths of the runs down the columns, from COCO's ``counts``; None if they cannot be read.

    pycocotools does not check them: runs that end too early would leave random pixels in the mask.
    """
    if isinstance(counts, list):
        lengths = counts
    elif isinstance(counts, str) and counts.isascii():
        lengths = _decompressed(counts)
    else:
        return None
    plain = all(isinstance(length, int) and not isinstance(length, bool) and length >= 0 for length in lengths)
    return lengths if plain else None


def _decompressed(text: str) -> list[int]:
    """Decode COCO's text: numbers in groups of five bits, each relative to the last but one."""
    lengths: list[int] = []
    value = shift = 0
    for character in text.encode("ascii"):
        if shift > 60:  # longer than any number of 64 bits
            return [-1]
        group = character - 48
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:  # negative
            value -= 1 << shift
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
        value = shift = 0
    return lengths if not shift else [-1]


def compressed(lengths: list[int]) -> str:
    """Encode checked run lengths as COCO's text.

    Another text may mean the same here and something else to pycocotools, whose numbers run over.
    """
    text = bytearray()
    for k, length in enumerate(lengths):
        value = length - lengths[k - 2] if k > 2 else length
        while True:
            group, value = value & 31, value >> 5
            more = value != (-1 if group & 16 else 0)
            text.append(48 + (group | 32 * more))
            if not more:
                break
    return text.decode("ascii")


def overlong(segmentation: Any) -> bool:
    """Return True for polygons of which one is longer than :data:`LONGEST`, or as far away from the image."""
    return isinstance(segmentation, list) and any(map(_overlong, segmentation))


def _overlong(polygon: list[float]) -> bool:
    reach = max(max(polygon), -min(polygon))
    if reach > LONGEST:
        return True
    if len(polygon) * reach <= LONGEST:  # as nearly always
        return False
    corners = np.array(polygon, dtype=np.float64).reshape(-1, 2)
    return bool(np.abs(corners - np.roll(corners, 1, axis=0)).max(1).sum() > LONGEST)


def box_polygon(box: tuple[float, float, float, float]) -> list[list[float]]:
    """Return a box (left, top, width, height) as COCO polygons: one, with four corners."""
    left, top, width, height = box
    right, bottom = left + width, top + height
    return [[left, top, right, top, right, bottom, left, bottom]]


class ChosenMasks(NamedTuple):
    """Result of :func:`choose_masks`."""

    train: AnnotationSet
    val: AnnotationSet
    trained: bool
    """True if the detector has a mask head"""
    measured: bool
    """True if the average precision of masks can be measured on ``val``"""
    lines: list[str]
    """what is done, for the user"""


def choose_masks(choice: MasksName, train: AnnotationSet, val: AnnotationSet) -> ChosenMasks:
    """Decide which masks are trained and measured.

    Args:
        choice: ``auto`` trains masks if an object of ``train`` has one, ``polygons`` insists on it, ``boxes`` gives
            objects without a mask their box as their mask, ``none`` trains no masks.
        train: annotations to learn from.
        val: annotations to evaluate on.

    Raises:
        UserError: for ``polygons`` if no object of ``train`` has a mask.
    """
    lacking = [_without_mask(annotations) for annotations in (train, val)]
    total = [len(annotations.objects) for annotations in (train, val)]
    if choice == "none":
        return ChosenMasks(_boxes_only(train), _boxes_only(val), False, False, ["no mask head; box AP only"])
    if choice == "boxes":
        line = (
            f"{lacking[0]} of {total[0]} objects of --train and {lacking[1]} of {total[1]} of --val, which have no "
            "usable polygon, take their box as their mask; mask AP is measured against it"
        )
        if not any(lacking):
            line = "trained on the polygons or run lengths: every object has one, and no box is taken as a mask"
        return ChosenMasks(_box_masks(train), _box_masks(val), True, True, [line])
    if lacking[0] == total[0]:
        if choice == "polygons":
            raise UserError(
                f"--masks polygons: none of the {total[0]} objects of {train.path} has a usable polygon; "
                "take --masks boxes (the box is the mask) or --masks none (a detector of boxes)"
            )
        line = (
            f"none of the {total[0]} objects of --train has a usable polygon: a box head only, no mask head, box AP "
            "only (--masks boxes would take boxes as masks)"
        )
        return ChosenMasks(_boxes_only(train), _boxes_only(val), False, False, [line])
    lines = ["trained on the polygons or run lengths of every object"]
    if lacking[0]:
        lines = [
            f"{lacking[0]} of {total[0]} objects of --train have no usable polygon: they train the boxes and are left "
            "out of the mask loss (--masks boxes would take their box, --masks none trains boxes only)"
        ]
    measured = lacking[1] < total[1] or not total[1]
    if lacking[1] and measured:
        lines.append(
            f"{lacking[1]} of {total[1]} objects of --val have no usable polygon: mask AP counts detections there "
            "neither as right nor as wrong"
        )
    elif lacking[1]:
        lines.append(f"none of the {total[1]} objects of --val has a usable polygon: mask AP is not measured")
    return ChosenMasks(train, val, True, measured, lines)


def _without_mask(annotations: AnnotationSet) -> int:
    return sum(obj.segmentation is None for obj in annotations.objects)


def _boxes_only(annotations: AnnotationSet) -> AnnotationSet:
    return _changed(annotations, lambda obj: obj._replace(segmentation=None))


def _box_masks(annotations: AnnotationSet) -> AnnotationSet:
    return _changed(
        annotations,
        lambda obj: obj._replace(segmentation=box_polygon(obj.box)) if obj.segmentation is None else obj,
    )


def _changed(annotations: AnnotationSet, change: Any) -> AnnotationSet:
    """Apply ``change`` to every object."""
    images: list[AnnotatedImage] = [
        replace(image, objects=[change(obj) for obj in image.objects]) for image in annotations.images
    ]
    return replace(annotations, images=images)
