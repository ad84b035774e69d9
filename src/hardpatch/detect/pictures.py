"""Pictures of annotated and detected objects."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from hardpatch.data.reading import RGB, Reading, to_bytes
from hardpatch.detect.annotations import AnnotationSet
from hardpatch.detect.images import read_image
from hardpatch.detect.masks import decode_mask, object_mask
from hardpatch.figures import channels_caption, to_rgb

SCORE = 0.5
"""Lowest score of the detections that are drawn."""
HEIGHT = 300
"""Pixels of a row."""
COLORS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
"""Okabe and Ito's colors for the color-blind, one for each category in turn."""


class DrawnObject(NamedTuple):
    """Annotated or detected object."""

    category: int
    """category id"""
    box: Sequence[float]
    """left, top, width, height in pixels"""
    mask: NDArray[np.uint8] | None
    """``[H, W]``, 1 = object; None if there is only a box"""
    score: float | None
    """confidence of a detection in [0, 1]; None for an annotation"""


def detection_sheet(
    annotations: AnnotationSet,
    folder: str | Path,
    results: Sequence[Mapping[str, Any]],
    number: int = 8,
    reading: Reading = RGB,
) -> Image.Image:
    """Draw annotated objects and detections side by side, one image in a row.

    Args:
        annotations: the images, all of which can be used.
        folder: folder of the images.
        results: COCO results; those with a score of :data:`SCORE` or more are drawn.
        number: images to draw, evenly spread over the set.
        reading: channels, type and range of the images.
    """
    indices = sorted({round(k * (len(annotations.images) - 1) / max(number - 1, 1)) for k in range(number)})
    rows = []
    for image in (annotations.images[index] for index in indices):
        pixels = to_rgb(to_bytes(read_image(image, folder, reading), reading))
        annotated = [
            DrawnObject(
                obj.category,
                obj.box,
                None if obj.segmentation is None else object_mask(obj, image.height, image.width),
                None,
            )
            for obj in image.objects
            if not obj.crowd
        ]
        detected = drawn_detections(result for result in results if result["image_id"] == image.id)
        rows.append([draw_objects(pixels, objects, annotations.categories) for objects in (annotated, detected)])
    font = _font(14)
    captions = f"annotated{channels_caption(reading.channels)}", f"detected, score {SCORE} or more"
    widths = [
        max(*(row[side].width for row in rows), round(font.getlength(caption))) for side, caption in enumerate(captions)
    ]
    title, gap = 24, 6
    sheet = Image.new("RGB", (sum(widths) + 3 * gap, title + len(rows) * (HEIGHT + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for left, caption in zip((gap, widths[0] + 2 * gap), captions, strict=True):
        draw.text((left, 4), caption, fill="#333333", font=font)
    for row_number, row in enumerate(rows):
        top = title + row_number * (HEIGHT + gap)
        for picture, left in zip(row, (gap, widths[0] + 2 * gap), strict=True):
            sheet.paste(picture, (left, top))
    return sheet


def drawn_detections(results: Iterable[Mapping[str, Any]]) -> list[DrawnObject]:
    """Return those of an image's COCO results that are drawn, the surest last."""
    return [
        DrawnObject(
            result["category_id"],
            result["bbox"],
            decode_mask(result["segmentation"]) if "segmentation" in result else None,
            result["score"],
        )
        for result in sorted(results, key=lambda result: result["score"])
        if result["score"] >= SCORE
    ]


def draw_objects(
    pixels: NDArray[np.uint8], objects: Sequence[DrawnObject], categories: Mapping[int, str]
) -> Image.Image:
    """Draw masks, boxes and names over an image, resized to a height of :data:`HEIGHT` pixels.

    Args:
        pixels: ``[H, W, 3]``.
        objects: in that image.
        categories: names by id, in the order of the colors.
    """
    colors = {category: COLORS[number % len(COLORS)] for number, category in enumerate(categories, 1)}
    shaded = pixels.astype(np.float32)
    for obj in objects:
        if obj.mask is None:
            continue
        tint = np.array(colors[obj.category], dtype=np.float32)
        shaded = np.where(obj.mask[..., None] > 0, 0.5 * shaded + 0.5 * tint, shaded)
    ratio = HEIGHT / pixels.shape[0]
    picture = Image.fromarray(shaded.astype(np.uint8)).resize((max(1, round(pixels.shape[1] * ratio)), HEIGHT))
    draw, font = ImageDraw.Draw(picture), _font(12)
    for category, (left, top, width, height), _, score in objects:
        color = colors[category]
        corner = (left * ratio, top * ratio)
        draw.rectangle((*corner, (left + width) * ratio, (top + height) * ratio), outline=color, width=2)
        label = categories[category] + ("" if score is None else f" {score:.2f}")
        overhang = max(0, draw.textbbox(corner, label, font=font)[2] + 2 - picture.width)
        corner = (corner[0] - overhang, corner[1])
        text = draw.textbbox(corner, label, font=font)
        draw.rectangle((text[0] - 1, text[1] - 1, text[2] + 1, text[3] + 1), fill=color)
        draw.text(corner, label, fill="black", font=font)
    return picture


def _font(size: int) -> Any:
    return ImageFont.load_default(size)
