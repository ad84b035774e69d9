"""Small sets of images with objects, a COCO file, detections, and an encoder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hardpatch.detect.annotations import AnnotatedImage, AnnotatedObject, AnnotationSet
from hardpatch.detect.coco import read_coco
from hardpatch.detect.extents import place
from hardpatch.models.encoder import Encoder

Box = tuple[int, int, int, int]
"""Left, top, width, height."""

# 4 rows of 6: columns 2 and 3 of rows 1 and 2. Run lengths go down the columns, zeros first.
SQUARE = {"counts": [9, 2, 2, 2, 9], "size": [4, 6]}
COMPRESSED = {"counts": "92207", "size": [4, 6]}


def coco_content() -> dict[str, Any]:
    """Three images of 4 x 6 pixels: two objects and a crowd, nothing, one object."""
    image: dict[str, Any] = {"height": 4, "width": 6}
    square = {"bbox": [2, 1, 2, 2], "area": 4, "segmentation": SQUARE}
    return {
        "images": [image | {"id": number, "file_name": f"{number}.png"} for number in (7, 3, 5)],
        "categories": [{"id": 90, "name": "dog"}, {"id": 4, "name": "cat"}],
        "annotations": [
            square | {"id": 0, "image_id": 7, "category_id": 90, "segmentation": [[2, 1, 4, 1, 4, 3, 2, 3]]},
            square | {"id": 1, "image_id": 7, "category_id": 4, "iscrowd": 0},
            square | {"id": 2, "image_id": 7, "category_id": 4, "iscrowd": 1},
            square | {"id": 3, "image_id": 5, "category_id": 4, "segmentation": COMPRESSED},
        ],
    }


def read_content(folder: Path, content: Any) -> AnnotationSet:
    """Write annotations (text, or values for JSON) into a folder and read them with the sizes in them."""
    path = folder / "annotations.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return place(read_coco(path), {})


def run_lengths(box: Box, size: tuple[int, int] = (300, 300)) -> dict[str, Any]:
    """Run lengths of a rectangle, down the columns."""
    mask = np.zeros(size, dtype=np.uint8)
    mask[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = 1
    flat = mask.T.ravel()
    ends = [*(np.flatnonzero(np.diff(flat)) + 1), len(flat)]
    counts = np.diff([0, *ends]).tolist()
    return {"counts": counts if flat[0] == 0 else [0, *counts], "size": list(size)}


def scene(*boxes: Box, crowd: Box | None = None) -> AnnotationSet:
    """One image of 300 x 300 pixels with rectangles of one category."""
    objects = [AnnotatedObject(4, box, run_lengths(box), box[2] * box[3], False) for box in boxes]
    if crowd is not None:
        objects.append(AnnotatedObject(4, crowd, run_lengths(crowd), crowd[2] * crowd[3], True))
    return AnnotationSet("scene", {4: "cat"}, [AnnotatedImage(1, "1.png", 300, 300, objects)])


def detection(box: Box, score: float, image_id: int = 1, size: tuple[int, int] = (300, 300)) -> dict[str, Any]:
    """COCO result of a rectangle in an image of :func:`scene`, or in another one."""
    from pycocotools import mask  # type: ignore[import-untyped]

    encoded: Mapping[str, Any] = mask.frPyObjects(run_lengths(box, size), *size)
    segmentation = {"counts": encoded["counts"].decode(), "size": encoded["size"]}
    return {"image_id": image_id, "category_id": 4, "bbox": list(box), "score": score, "segmentation": segmentation}


def write_rectangles(folder: Path) -> AnnotationSet:
    """Write three images of 24 x 32 pixels: two with a bright rectangle, one without."""
    folder.mkdir()
    images = []
    for number in range(3):
        box = (3 + number, 4, 12, 10)
        pixels = np.random.default_rng(number).integers(0, 90, (24, 32, 3), dtype=np.uint8)
        pixels[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] += 120
        Image.fromarray(pixels).save(folder / f"{number}.png")
        objects = [AnnotatedObject(4, box, run_lengths(box, (24, 32)), 120.0, False)] if number < 2 else []
        images.append(AnnotatedImage(number, f"{number}.png", 24, 32, objects))
    return AnnotationSet("rectangles", {4: "cat"}, images)


def small_encoder(**options: Any) -> Encoder:
    """Four blocks for images of 16 x 24 px with patches of 4 px, in eval mode."""
    torch.manual_seed(0)
    encoder = Encoder(image_size=(16, 24), patch_size=4, width=32, depth=4, heads=2, **options).eval()
    if encoder.relative_bias is not None:
        torch.nn.init.normal_(encoder.relative_bias.table)
    return encoder
