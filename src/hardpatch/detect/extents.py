"""Place of objects in their images: pixels instead of fractions, and objects without an extent left out."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hardpatch.detect.annotations import AnnotatedImage, AnnotatedObject, AnnotationSet
from hardpatch.detect.fields import plural, refusal, whole_number
from hardpatch.detect.masks import MOST_PIXELS, compressed, overlong, run_lengths
from hardpatch.errors import UserError

NO_BOX = "without a box"
NO_EXTENT = "without width or height"
OUTSIDE = "outside their image"
REPEATED = "repeated"
OVERLONG = "with polygons more than a million pixels long or away"
OF_BAD_IMAGES = "of images that cannot be used"
REASONS = (NO_BOX, NO_EXTENT, OUTSIDE, REPEATED, OVERLONG, OF_BAD_IMAGES)
"""Reasons for which objects are left out."""

Size = tuple[int, int]
"""Height and width in pixels."""


def place(annotations: AnnotationSet, sizes: Mapping[str, Size]) -> AnnotationSet:
    """Give every object its place in its image, in pixels.

    Objects without an extent are left out and counted. A box that reaches over the edge by more than a pixel is cut
    there.

    Args:
        annotations: as read.
        sizes: (height, width) by file, of the images whose size the annotations do not have.

    Raises:
        UserError: if run lengths do not fit their image, names the annotation; if all boxes are fractions.
    """
    left_out, images = Counter(annotations.left_out), []
    placed: list[tuple[tuple[float, float, float, float], int, int]] = []
    cut = apart = 0
    for image in annotations.images:
        height, width = (image.height, image.width) if image.has_size else sizes[image.file]
        sized = replace(image, height=height, width=width, objects=[])
        for raw in image.objects:
            obj = _in_pixels(raw, width, height) if annotations.relative else raw
            reason = _no_extent(obj, width, height) or (OVERLONG if overlong(obj.segmentation) else "")
            if reason:
                left_out[reason] += 1
                continue
            placed.append((obj.box, width, height))
            obj = _with_checked_mask(obj, sized, annotations.path)
            inside = _cut(obj, width, height)
            cut += inside is not obj
            apart += _apart(inside)
            sized.objects.append(inside)
        images.append(sized)
    notes = list(annotations.notes)
    unknown = sum(not image.has_size for image in annotations.images)
    if unknown and not annotations.relative:
        notes.append(f"the annotations have no size of {plural(unknown, 'image')}: taken from the file")
    if cut:
        notes.append(f"{plural(cut, 'box')} over the edge of the image by more than a pixel, cut there")
    notes += _doubts(annotations, placed, cut)
    if apart:
        notes.append(f"{plural(apart, 'object')} with polygons that do not touch the box: are both in pixels?")
    return replace(annotations, images=images, left_out=left_out, notes=tuple(notes), relative=False)


def _doubts(
    annotations: AnnotationSet, placed: Sequence[tuple[tuple[float, float, float, float], int, int]], cut: int
) -> list[str]:
    """Ask about boxes that look like corners, where ``cut`` boxes reach over the edge of their image.

    Args:
        annotations: as read.
        placed: box, and width and height of its image.
        cut: number of boxes that reach over the edge.

    Raises:
        UserError: if all boxes are within a pixel of the upper left corner, as fractions are.
    """
    boxes = [box for box, _, _ in placed]
    if placed and all(max(x + w, y + h) <= 1 < min(width, height) for (x, y, w, h), width, height in placed):
        raise UserError(
            f"{annotations.path}: expected boxes in pixels, and all {len(boxes)} are within one pixel of the upper "
            f"left corner, such as {list(boxes[0])}: if they are fractions, multiply them by width and height of the "
            "image"
        )
    half = 0.5 if annotations.relative else 0.0  # YOLO writes the center
    first = [(x + half * w, y + half * h, w, h) for x, y, w, h in boxes]
    if cut * 4 <= len(boxes) or not all(w > x >= 0 and h > y >= 0 for x, y, w, h in first):
        return []
    numbers = "center x, center y" if annotations.relative else "left, top"
    return [
        f"{cut} of {plural(len(boxes), 'box')} reach over the edge, and in all of them the third and fourth number are "
        f"larger than the first and second: are they left, top, right, bottom? expected {numbers}, width, height"
    ]


def without_images(annotations: AnnotationSet, indices: Mapping[int, object]) -> AnnotationSet:
    """Return the set without the images at ``indices``, whose objects are counted as left out."""
    rest, left_out = annotations.without(indices), Counter(annotations.left_out)
    left_out[OF_BAD_IMAGES] += sum(len(annotations.images[index].objects) for index in indices)
    return replace(rest, left_out=left_out)


def _in_pixels(obj: AnnotatedObject, width: int, height: int) -> AnnotatedObject:
    """Return an object whose box and polygons are fractions in pixels."""
    left, top, wide, high = obj.box
    box = (left * width, top * height, wide * width, high * height)
    polygons = obj.segmentation
    if polygons is not None:
        polygons = [
            [value * side for value, side in zip(polygon, (width, height) * (len(polygon) // 2), strict=True)]
            for polygon in polygons
        ]
    return obj._replace(box=box, segmentation=polygons, area=box[2] * box[3])


def _no_extent(obj: AnnotatedObject, width: int, height: int) -> str:
    """Return the reason why an object has no extent in its image, empty if it has."""
    left, top, wide, high = obj.box
    if wide <= 0 or high <= 0:
        return NO_EXTENT
    inside = left < width and top < height and left + wide > 0 and top + high > 0
    return "" if inside else OUTSIDE


def _cut(obj: AnnotatedObject, width: int, height: int) -> AnnotatedObject:
    """Cut a box that reaches over the edge by more than a pixel; less is rounding."""
    left, top, wide, high = obj.box
    right, bottom = left + wide, top + high
    if min(left, top) >= -1 and right <= width + 1 and bottom <= height + 1:
        return obj
    left, top, right, bottom = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
    # an area of numbers so large that their product is none is that of what is left
    area = obj.area if math.isfinite(obj.area) else (right - left) * (bottom - top)
    return obj._replace(box=(left, top, right - left, bottom - top), area=area)


def _apart(obj: AnnotatedObject) -> bool:
    """Return True if the polygons of an object do not touch its box."""
    if not isinstance(obj.segmentation, list):
        return False
    (left, top, width, height), box = box_around(obj.segmentation), obj.box
    return left > box[0] + box[2] or left + width < box[0] or top > box[1] + box[3] or top + height < box[1]


def _with_checked_mask(obj: AnnotatedObject, image: AnnotatedImage, path: str) -> AnnotatedObject:
    """Return the object with the size of its run lengths as plain numbers; without a mask that has no pixel.

    Raises:
        UserError: if the run lengths are not those of a mask of the image's size.
    """
    encoded = obj.segmentation
    if not isinstance(encoded, dict):
        return obj  # polygons, whose numbers their reader has checked
    subject, shape = f"{path}: {obj.name}", [image.height, image.width]
    size = encoded["size"]
    plain = [whole_number(side) for side in size] if isinstance(size, list) and len(size) == 2 else None
    if plain is None or None in plain:
        raise refusal(subject, "segmentation.size", "[height, width]", size)
    if plain != shape:
        raise UserError(f"{subject}: its mask has {plain} pixels, image {image.id} has {shape}")
    if shape[0] * shape[1] > MOST_PIXELS:
        raise refusal(subject, "segmentation.size", f"a mask of at most {MOST_PIXELS:,} pixels", size)
    lengths = run_lengths(encoded["counts"])
    if lengths is None or sum(lengths) != shape[0] * shape[1]:
        expected = f"run lengths of {shape[0]} x {shape[1]} = {shape[0] * shape[1]} pixels"
        raise refusal(subject, "segmentation.counts", expected, encoded["counts"])
    if not any(lengths[1::2]):
        return obj._replace(segmentation=None)
    counts = lengths if isinstance(encoded["counts"], list) else compressed(lengths)
    return obj._replace(segmentation={"counts": counts, "size": shape})


def rotated_boxes(count: int) -> str:
    """Return the line about boxes that are rotated."""
    return f"{plural(count, 'box')} rotated: taken as the upright box around it"


def around_rotated(box: tuple[float, float, float, float], degrees: float) -> tuple[float, float, float, float]:
    """Return the upright box around a box (left, top, width, height) that is rotated about its center."""
    if not degrees:
        return box
    left, top, width, height = box
    cosine, sine = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    wide, high = width * cosine + height * sine, width * sine + height * cosine
    return left + (width - wide) / 2, top + (height - high) / 2, wide, high


def with_area(polygons: Sequence[list[float]]) -> list[list[float]]:
    """Return the polygons that have three corners or more, and an area."""
    return [polygon for polygon in polygons if len(polygon) >= 6 and min(box_around([polygon])[2:]) > 0]


def box_around(polygons: Sequence[Sequence[float]]) -> tuple[float, float, float, float]:
    """Return the box (left, top, width, height) around polygons ``[x, y, x, y, ...]``."""
    x = [value for polygon in polygons for value in polygon[::2]]
    y = [value for polygon in polygons for value in polygon[1::2]]
    return min(x), min(y), max(x) - min(x), max(y) - min(y)
