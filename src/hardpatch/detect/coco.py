"""Annotations in COCO's JSON layout (Lin et al. 2014, cocodataset.org/#format-data), as labeling tools export them."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hardpatch.data.names import class_name
from hardpatch.detect.annotations import AnnotatedImage, AnnotatedObject, AnnotationSet
from hardpatch.detect.extents import NO_BOX, REPEATED, around_rotated, box_around, rotated_boxes, with_area
from hardpatch.detect.fields import flag, number, plural, refusal, unused_fields, whole_number
from hardpatch.errors import UserError

FLAT, POINTS = "a flat list of numbers", "lists of points"
SHORT, LINE = "polygons of fewer than three corners", "polygons without an area"
"""Segmentations without a usable polygon ``[[x, y, x, y, x, y, ...], ...]``."""
READ = {"id", "image_id", "category_id", "bbox", "segmentation", "area", "iscrowd", "num_keypoints"}
"""Fields of an annotation of which no line has to tell that they are not used."""


def read_coco(path: str | os.PathLike[str]) -> AnnotationSet:
    """Read an annotation file. Numbers may be text or floats; null or absent are area, iscrowd, size, segmentation.

    Images without annotations are kept. An object without a usable polygon has no mask. An object without a box gets
    the box around its mask.

    Raises:
        UserError: if the file cannot be read, is not in COCO's layout, or contradicts itself; names the entry.
    """
    content = _content(path)
    categories = _categories(content, path)
    images = _images(content, path)
    reader = _ObjectReader(str(path), categories)
    for index, entry in enumerate(content["annotations"]):
        try:
            reader.read(entry, index, images)
        except RecursionError:
            raise UserError(
                f"{path}: annotations[{index}]: lists nested too deeply; expected a box and polygons"
            ) from None
    return AnnotationSet(
        str(path), categories, list(images.values()), reader.left_out, "COCO JSON", tuple(reader.notes())
    )


def _content(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: expected COCO annotations as JSON: {error}") from None
    for key in ("images", "annotations", "categories"):
        example = ' such as [{"id": 1, "name": "cat"}]' if key == "categories" else ""
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{path}: expected COCO annotations, with a list {key!r}{example}; found none")
        if not content[key] and key != "annotations":
            raise UserError(f"{path}: expected at least one of {key!r}{example}, got none")
    return content


def _categories(content: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[int, str]:
    """Return the names by category id, in the order of the ids."""
    categories: dict[int, str] = {}
    for subject, entry in _entries(content, "categories", ("id", "name"), path):
        number_, name = whole_number(entry["id"]), entry["name"]
        if number_ is None:
            raise refusal(subject, "id", "a whole number", entry["id"])
        if not isinstance(name, str | int | float) or isinstance(name, bool):
            raise refusal(subject, "name", "a text", name)
        if number_ in categories:
            raise UserError(f"{path}: two categories have the id {number_}: {categories[number_]!r} and {name!r}")
        categories[number_] = class_name(str(name))
    return dict(sorted(categories.items()))


def _images(content: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[int | str, AnnotatedImage]:
    """Return the images by id, without objects."""
    images: dict[int | str, AnnotatedImage] = {}
    ids: dict[str, int | str] = {}
    for subject, entry in _entries(content, "images", ("id", "file_name"), path):
        id_ = _image_id(entry["id"])
        if id_ is None:
            raise refusal(subject, "id", "a number or a text", entry["id"])
        if id_ in images:
            raise UserError(f"{path}: two images have the id {id_}")
        name = entry["file_name"]
        if not isinstance(name, str) or not name:
            raise refusal(f"{path}: image {id_}", "file_name", "the name of a file, as text", name)
        if name in ids:
            raise UserError(f"{path}: images {ids[name]} and {id_} are the same file, {name}; expected one entry")
        ids[name] = id_
        height, width = (_side(entry, side, f"{path}: image {id_}") for side in ("height", "width"))
        images[id_] = AnnotatedImage(id_, name, *((height, width) if height and width else (0, 0)))
    return images


def _side(entry: Mapping[str, Any], side: str, subject: str) -> int:
    """Return the height or width of an image in pixels, 0 if it is null, absent or 0."""
    value = entry.get(side)
    pixels = 0 if value is None else whole_number(value)
    if pixels is None or pixels < 0:
        raise refusal(subject, side, "a number of pixels", value)
    return pixels


def _image_id(value: Any) -> int | str | None:
    """Return the id of an image, a number if it can be read as one."""
    id_ = whole_number(value)
    return id_ if id_ is not None else value if isinstance(value, str) and value else None


class _ObjectReader:
    """Reads annotations into their images, and counts what is unusual.

    Args:
        path: of the file, for messages.
        categories: names by id.
    """

    def __init__(self, path: str, categories: Mapping[int, str]) -> None:
        self.path, self.categories = path, categories
        self.left_out: Counter[str] = Counter()
        self.unusual: Counter[str] = Counter()
        self.unused: Counter[str] = Counter()
        self.boxes_of_masks = self.shared_ids = self.rotated = 0
        self._seen: dict[Any, tuple[Any, ...]] = {}

    def read(self, entry: Any, index: int, images: Mapping[int | str, AnnotatedImage]) -> None:
        """Add the object of an annotation to its image.

        Raises:
            UserError: names the annotation, the field and the value.
        """
        missing = [key for key in ("image_id", "category_id") if not isinstance(entry, dict) or key not in entry]
        if missing:
            raise UserError(
                f"{self.path}: annotations[{index}] has no {missing[0]!r}; expected image_id, category_id, bbox"
            )
        name = f"annotation {entry['id']}" if isinstance(entry.get("id"), int | str) else f"annotations[{index}]"
        subject = f"{self.path}: {name}"
        id_, category = _image_id(entry["image_id"]), whole_number(entry["category_id"])
        image = None if id_ is None else images.get(id_)
        if image is None:
            raise refusal(subject, "image_id", "one of the ids of 'images'", entry["image_id"])
        if category not in self.categories:
            raise refusal(subject, "category_id", "one of the ids of 'categories'", entry["category_id"])
        assert category is not None
        if self._repeated(entry):
            self.left_out[REPEATED] += 1
            return
        mask = self._mask(entry.get("segmentation"), subject)
        box = self._box(entry.get("bbox"), mask, subject)
        if box is None:
            self.left_out[NO_BOX] += 1
            return
        # the product of a negative side is no area, and the box is left out for its side
        area = max(0.0, box[2] * box[3]) if entry.get("area") is None else number(entry["area"])
        if area is None or area < 0:
            raise refusal(subject, "area", "a number of pixels", entry["area"])
        crowd = flag(entry.get("iscrowd"))
        if crowd is None:
            raise refusal(subject, "iscrowd", "0 or 1", entry["iscrowd"])
        image.objects.append(AnnotatedObject(category, self._upright(box, mask, entry), mask, area, crowd, name))

    def notes(self) -> Iterator[str]:
        """Yield lines about what was taken another way than it is written."""
        for kind, count in self.unusual.items():
            yield (
                f"the segmentation of {plural(count, 'object')} is {kind}; expected [[x, y, x, y, ...], ...]: taken as "
                "no polygon"
            )
        if self.boxes_of_masks:
            yield f"{plural(self.boxes_of_masks, 'box')} missing, taken around the mask of the object"
        if self.shared_ids:
            yield f"{plural(self.shared_ids, 'annotation')} with the id of another; all are used, ids do not matter"
        if self.rotated:
            yield rotated_boxes(self.rotated)
        yield from unused_fields(self.unused)

    def _upright(
        self, box: tuple[float, float, float, float], mask: Any, entry: Mapping[str, Any]
    ) -> tuple[float, float, float, float]:
        """Return the box around a box that CVAT rotates by an attribute, and count the fields that are not used."""
        attributes = entry.get("attributes")
        attributes = dict(attributes) if isinstance(attributes, dict) else {}
        degrees = number(attributes.get("rotation")) if mask is None else None
        if degrees:
            del attributes["rotation"]
            self.rotated += 1
            box = around_rotated(box, degrees)
        others = {key: value for key, value in entry.items() if key not in (*READ, "attributes")}
        others |= {f"attributes.{key}": value for key, value in attributes.items()}
        self.unused.update(key for key, value in others.items() if (any(value) if isinstance(value, list) else value))
        return box

    def _repeated(self, entry: Mapping[str, Any]) -> bool:
        """Return True for a copy of an earlier annotation with its id; count one of another content."""
        id_ = entry.get("id")
        if not isinstance(id_, int | str):
            return False
        content = (entry["image_id"], entry["category_id"], entry.get("bbox"), entry.get("segmentation"))
        first = self._seen.setdefault(id_, content)
        if first is content:
            return False
        self.shared_ids += first != content
        return first == content

    def _mask(self, value: Any, subject: str) -> Any:
        """Return polygons or run lengths; None if there is no usable polygon."""
        if not value:  # null, absent, [], {}, ""
            return None
        if isinstance(value, dict):
            if not {"counts", "size"} <= value.keys():
                raise UserError(f"{subject}: expected segmentation as polygons or as run lengths with counts and size")
            return value
        if not isinstance(value, list):
            raise refusal(subject, "segmentation", "polygons [[x, y, x, y, ...], ...] or run lengths", value)
        lists = [polygon for polygon in value if isinstance(polygon, list)]
        if not lists and all(number(part) is not None for part in value):
            self.unusual[FLAT] += 1
            return None
        if any(isinstance(corner, list) for polygon in lists for corner in polygon[:1]):
            self.unusual[POINTS] += 1
            return None
        # A polygon has three corners or more; pycocotools would take two for a box.
        polygons = [polygon for polygon in lists if len(polygon) >= 6]
        for polygon in polygons:
            if len(polygon) % 2:
                raise UserError(f"{subject}: expected polygons as [x, y, x, y, ...], got one of an odd length")
        polygons = [_numbers(polygon, subject) for polygon in polygons]
        areas = with_area(polygons)
        if any(lists) and not areas:
            self.unusual[LINE if polygons else SHORT] += 1
        return areas or None

    def _box(self, value: Any, mask: Any, subject: str) -> tuple[float, float, float, float] | None:
        """Return (left, top, width, height), around the mask if the box is missing; None without both."""
        if value is None or value == []:
            if mask is None:
                return None
            if isinstance(mask, dict):
                raise refusal(subject, "bbox", "[left, top, width, height]", value)
            self.boxes_of_masks += 1
            return box_around(mask)
        sides = [number(side) for side in value] if isinstance(value, list) else []
        if len(sides) != 4 or None in sides:
            raise refusal(subject, "bbox", "[left, top, width, height]", value)
        left, top, width, height = (side for side in sides if side is not None)
        return left, top, width, height


def _numbers(polygon: list[Any], subject: str) -> list[float]:
    """Return a polygon as numbers; most are already."""
    if all(type(value) is float or type(value) is int for value in polygon) and None not in map(
        number, (sum(polygon), min(polygon), max(polygon))
    ):
        return polygon
    values = [number(value) for value in polygon]
    if None in values:
        raise refusal(subject, "segmentation", "numbers [x, y, x, y, ...]", polygon[values.index(None)])
    return [value for value in values if value is not None]


def _entries(
    content: Mapping[str, Any], key: str, required: tuple[str, ...], path: str | os.PathLike[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the entries of the list ``key``, each with its name for messages.

    Raises:
        UserError: if an entry lacks one of the ``required`` keys; names the first.
    """
    for index, entry in enumerate(content[key]):
        missing = [name for name in required if not isinstance(entry, dict) or name not in entry]
        if missing:
            raise UserError(f"{path}: {key}[{index}] has no {missing[0]!r}; expected {', '.join(required)}")
        yield f"{path}: {key}[{index}]", entry
