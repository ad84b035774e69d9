"""Write COCO annotations for a folder of photographs with masks of their objects, all of one category.

    python benchmarks/salient_objects.py ecssd200 OUT      # OUT/train.json and OUT/val.json

Every fourth photograph is for evaluation. Each connected part of a mask that covers 1 % of the photograph or more is an
object. A category that 150 photographs show can be learned from them, the 80 of a small part of COCO cannot: a table of
detectors needs figures above zero. The command line of ``hardpatch detect`` takes ``ecssd200/images`` for both sets.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

EVERY = 4
"""Of so many photographs, one is for evaluation."""
LEAST = 0.01
"""Fraction of the photograph that an object covers at least."""


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with images/NAME.jpg and masks/NAME.png")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    paths = sorted((options.data / "masks").glob("*.png"))
    if not paths:
        parser.error(f"data: expected masks in {options.data / 'masks'}, NAME.png for images/NAME.jpg, found none")
    options.out.mkdir(parents=True, exist_ok=True)
    train = [path for k, path in enumerate(paths) if k % EVERY]
    for name, chosen in (("train", train), ("val", paths[::EVERY])):
        content = coco(chosen)
        (options.out / f"{name}.json").write_text(json.dumps(content))
        print(f"{name}: {len(content['images'])} images, {len(content['annotations'])} objects")


def coco(paths: list[Path]) -> dict[str, Any]:
    """Return the annotations of the objects in some masks, in COCO's layout."""
    images, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
    for number, path in enumerate(paths, start=1):
        with Image.open(path) as file:
            mask = np.asarray(file.convert("L")) > 127
        height, width = mask.shape
        images.append({"id": number, "file_name": f"{path.stem}.jpg", "height": height, "width": width})
        for part in objects(mask):
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": 1, **annotation(part)})
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}


def objects(mask: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.bool_]]:
    """Return the connected parts of a mask that are large enough."""
    from scipy.ndimage import label

    parts, count = label(mask, structure=np.ones((3, 3)))
    return [part for k in range(count) if (part := parts == k + 1).mean() >= LEAST]


def annotation(part: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Return the mask, box and area of an object, in COCO's layout: box as left, top, width, height in pixels."""
    from hardpatch.detect.masks import mask_tools

    tools = mask_tools()
    runs = tools.encode(np.asfortranarray(part.astype(np.uint8)))
    return {
        "segmentation": {"size": list(part.shape), "counts": runs["counts"].decode()},
        "bbox": [float(value) for value in tools.toBbox(runs)],
        "area": int(part.sum()),
        "iscrowd": 0,
    }


if __name__ == "__main__":
    main()
