"""Pictures of what a detector finds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from hardpatch.detect.data import CocoSet, decode_mask, mask_of, read_image
from hardpatch.figures import to_rgb

SCORE = 0.5
"""Detections below it are not drawn."""
HEIGHT = 300
COLORS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
"""Okabe and Ito's, for the color-blind; by category."""

Thing = tuple[int, Sequence[float], Any, float | None]
"""Category id, COCO box, mask ``[H, W]``, and the score of a detection."""


def detection_sheet(
    coco: CocoSet, folder: str | Path, results: Sequence[Mapping[str, Any]], number: int = 8, channels: int = 3
) -> Image.Image:
    """Draw images evenly spread over the set, a row each: the annotations, and the detections above :data:`SCORE`."""
    chosen = sorted({round(k * (len(coco.images) - 1) / max(number - 1, 1)) for k in range(number)})
    rows = []
    for image in (coco.images[index] for index in chosen):
        pixels = to_rgb(read_image(image, folder, channels))
        true = [(t.category, t.box, mask_of(t, image.height, image.width), None) for t in image.objects if not t.crowd]
        detected = [
            (r["category_id"], r["bbox"], decode_mask(r["segmentation"]), r["score"])
            for r in sorted(results, key=lambda r: r["score"])
            if r["image_id"] == image.id and r["score"] >= SCORE
        ]
        rows.append([_draw(pixels, things, coco) for things in (true, detected)])
    widths = [max(row[side].width for row in rows) for side in (0, 1)]
    title, gap = 24, 6
    sheet = Image.new("RGB", (sum(widths) + 3 * gap, title + len(rows) * (HEIGHT + gap)), "white")
    draw, font = ImageDraw.Draw(sheet), _font(14)
    for left, caption in ((gap, "annotated"), (widths[0] + 2 * gap, f"detected, score {SCORE} and more")):
        draw.text((left, 4), caption, fill="#333333", font=font)
    for line, row in enumerate(rows):
        for picture, left in zip(row, (gap, widths[0] + 2 * gap), strict=True):
            sheet.paste(picture, (left, title + line * (HEIGHT + gap)))
    return sheet


def _draw(pixels: NDArray[np.uint8], things: Sequence[Thing], coco: CocoSet) -> Image.Image:
    """One image with masks, boxes and names, :data:`HEIGHT` pixels high."""
    shaded = pixels.astype(np.float32)
    for category, _, mask, _ in things:
        tint = np.array(COLORS[coco.labels[category] % len(COLORS)], dtype=np.float32)
        shaded = np.where(mask[..., None] > 0, 0.5 * shaded + 0.5 * tint, shaded)
    ratio = HEIGHT / pixels.shape[0]
    picture = Image.fromarray(shaded.astype(np.uint8)).resize((max(1, round(pixels.shape[1] * ratio)), HEIGHT))
    draw, font = ImageDraw.Draw(picture), _font(12)
    for category, (left, top, width, height), _, score in things:
        color = COLORS[coco.labels[category] % len(COLORS)]
        corner = (left * ratio, top * ratio)
        draw.rectangle((*corner, (left + width) * ratio, (top + height) * ratio), outline=color, width=2)
        label = coco.categories[category] + ("" if score is None else f" {score:.2f}")
        box = draw.textbbox(corner, label, font=font)
        shift = (min(0, picture.width - box[2] - 2), 0)
        box = (box[0] + shift[0], box[1], box[2] + shift[0], box[3])
        draw.rectangle((box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1), fill=color)
        draw.text((corner[0] + shift[0], corner[1]), label, fill="black", font=font)
    return picture


def _font(size: int) -> Any:
    return ImageFont.load_default(size)
