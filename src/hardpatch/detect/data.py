"""Images with boxes and masks, read from COCO's JSON layout (Lin et al. 2014, cocodataset.org/#format-data)."""

import json
import os
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hardpatch.data.decode import decode
from hardpatch.data.reading import RGB, Reading, UndecodableImage
from hardpatch.errors import UserError

Image = npt.NDArray[np.uint8]


class CocoObject(NamedTuple):
    """Annotated object of an image."""

    category: int
    """category id of the file, not a label"""
    box: tuple[float, float, float, float]
    """left, top, width, height in pixels"""
    segmentation: Any
    """polygons or a run-length encoding, as in the file"""
    area: float
    """square pixels"""
    crowd: bool
    """a region of many objects; not trained on, and detections within it do not count as wrong"""


@dataclass(frozen=True)
class CocoImage:
    """Image and its objects; an image without objects is a negative example."""

    id: int
    file: str
    height: int
    width: int
    objects: list[CocoObject] = field(default_factory=list)


@dataclass(frozen=True)
class CocoSet:
    """Content of an annotation file.

    Labels run from 1, in the order of the category ids; 0 is the background.
    """

    path: str
    categories: dict[int, str]
    """names by id, in increasing order of the ids"""
    images: list[CocoImage]
    dropped: int
    """number of annotations without an extent, which were left out"""

    @property
    def labels(self) -> dict[int, int]:
        """Labels by category id."""
        return {category: label for label, category in enumerate(self.categories, 1)}

    @property
    def category_ids(self) -> list[int]:
        """Category ids; that of a label is at index label - 1."""
        return list(self.categories)

    def without(self, indices: Collection[int]) -> "CocoSet":
        """Return the set without the images at ``indices``."""
        return replace(self, images=[image for index, image in enumerate(self.images) if index not in indices])

    def ground_truth(self) -> dict[str, Any]:
        """Return the set in the layout of the file, for the evaluation.

        Annotations are numbered from 1, because pycocotools treats an object of id 0 as not matched.
        """
        objects = [(image, obj) for image in self.images for obj in image.objects]
        return {
            "images": [
                {"id": image.id, "height": image.height, "width": image.width, "file_name": image.file}
                for image in self.images
            ],
            "categories": [{"id": category, "name": name} for category, name in self.categories.items()],
            "annotations": [
                {
                    "id": number,
                    "image_id": image.id,
                    "category_id": obj.category,
                    "bbox": list(obj.box),
                    "area": obj.area,
                    "iscrowd": int(obj.crowd),
                    "segmentation": obj.segmentation,
                }
                for number, (image, obj) in enumerate(objects, 1)
            ],
        }


def read_coco(path: str | os.PathLike[str]) -> CocoSet:
    """Read an annotation file. Images without annotations are kept, annotations without an extent are dropped.

    Raises:
        UserError: if the file cannot be read, is not in COCO's layout, or contradicts itself.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: expected COCO annotations as JSON: {error}") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{path}: expected COCO annotations, with a list {key!r}; found none")
        if not content[key] and key != "annotations":
            raise UserError(f"{path}: expected at least one of {key!r}, got none")
    categories = {entry["id"]: str(entry["name"]) for entry in _entries(content, "categories", ("id", "name"), path)}
    images: dict[int, CocoImage] = {}
    for entry in _entries(content, "images", ("id", "file_name", "height", "width"), path):
        if entry["id"] in images:
            raise UserError(f"{path}: two images have the id {entry['id']}")
        images[entry["id"]] = CocoImage(entry["id"], entry["file_name"], entry["height"], entry["width"])
    dropped = 0
    for entry in _entries(content, "annotations", ("image_id", "category_id", "bbox", "segmentation"), path):
        image = images.get(entry["image_id"])
        if image is None:
            raise UserError(f"{path}: an annotation has image {entry['image_id']}, not among 'images'")
        if entry["category_id"] not in categories:
            raise UserError(f"{path}: an annotation has category {entry['category_id']}, not among 'categories'")
        obj = _object(entry, image, path)
        if obj is None:
            dropped += 1
        else:
            image.objects.append(obj)
    return CocoSet(str(path), dict(sorted(categories.items())), list(images.values()), dropped)


def check_images(coco: CocoSet, folder: str | os.PathLike[str]) -> None:
    """Refuse a folder that lacks images of the annotation file.

    Raises:
        UserError: names the first image that is missing.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder; expected the images of {coco.path}")
    missing = [image.file for image in coco.images if not (Path(folder) / image.file).is_file()]
    if len(missing) == len(coco.images):
        raise UserError(f"{folder} has none of the {len(missing)} images of {coco.path}; do the two belong together?")
    if missing:
        raise UserError(f"{folder}: no such image: {missing[0]}, one of {len(missing)} that {coco.path} names")


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


def object_mask(obj: CocoObject, height: int, width: int) -> Image:
    """Decode the mask of an object, 1 = object: uint8 ``[height, width]``, the size of its image."""
    tools = mask_tools()
    encoded = obj.segmentation
    if isinstance(encoded, list):
        encoded = tools.merge(tools.frPyObjects(encoded, height, width))
    elif isinstance(encoded["counts"], list):
        encoded = tools.frPyObjects(encoded, height, width)
    return decode_mask(encoded)


def decode_mask(encoded: Mapping[str, Any]) -> Image:
    """Decode a mask from its compressed run lengths, 1 = object: uint8 ``[height, width]``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools uses NumPy's interface from before 2.0
        return mask_tools().decode(encoded)


def read_image(image: CocoImage, folder: str | os.PathLike[str], reading: Reading = RGB) -> Image:
    """Read an image from its folder: uint8 ``[H, W, C]``.

    Raises:
        UndecodableImage: if it cannot be read or has another size than the annotation file says.
    """
    path = Path(folder) / image.file
    try:
        pixels = decode(path.read_bytes(), reading)
    except OSError as error:
        raise UndecodableImage(f"{path}: {error.strerror}") from None
    except UndecodableImage as error:
        raise UndecodableImage(f"{path}: {error}") from None
    if pixels.shape[:2] != (image.height, image.width):
        raise UndecodableImage(
            f"{path}: the annotation file says {image.height}x{image.width} pixels, "
            f"the image has {pixels.shape[0]}x{pixels.shape[1]}"
        )
    return pixels


def _entries(
    content: Mapping[str, Any], key: str, required: tuple[str, ...], path: str | os.PathLike[str]
) -> Iterator[dict[str, Any]]:
    """Yield the entries of the list ``key``.

    Raises:
        UserError: if an entry lacks one of the ``required`` keys; names the first.
    """
    for index, entry in enumerate(content[key]):
        missing = [name for name in required if not isinstance(entry, dict) or name not in entry]
        if missing:
            raise UserError(f"{path}: {key}[{index}] has no {missing[0]!r}; expected {', '.join(required)}")
        yield entry


def _object(entry: Mapping[str, Any], image: CocoImage, path: str | os.PathLike[str]) -> CocoObject | None:
    """Read an annotation; None if it has no extent.

    Raises:
        UserError: if its box or segmentation is malformed.
    """
    subject = f"{path}: annotation {entry.get('id', '?')}"
    box, segmentation = entry["bbox"], entry["segmentation"]
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(side, int | float) for side in box):
        raise UserError(f"{subject}: expected bbox as [left, top, width, height], got {box}")
    if isinstance(segmentation, list):
        # A polygon has three corners or more; pycocotools would take two for a box.
        segmentation = [polygon for polygon in segmentation if isinstance(polygon, list) and len(polygon) >= 6]
        if any(len(polygon) % 2 for polygon in segmentation):
            raise UserError(f"{subject}: expected polygons as [x, y, x, y, ...], got one of an odd length")
        if not segmentation:
            return None
    elif not isinstance(segmentation, dict) or not {"counts", "size"} <= segmentation.keys():
        raise UserError(f"{subject}: expected segmentation as polygons or as run lengths with 'counts' and 'size'")
    elif list(segmentation["size"]) != [image.height, image.width]:
        raise UserError(
            f"{subject}: its mask has {segmentation['size']} pixels, image {image.id} has "
            f"[{image.height}, {image.width}]"
        )
    left, top, width, height = map(float, box)
    inside = left < image.width and top < image.height and left + width > 0 and top + height > 0
    if width <= 0 or height <= 0 or not inside:
        return None
    area, crowd = float(entry.get("area", width * height)), bool(entry.get("iscrowd", 0))
    return CocoObject(entry["category_id"], (left, top, width, height), segmentation, area, crowd)
