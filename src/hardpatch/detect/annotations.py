"""Annotated images, in one structure for all formats.

:mod:`~hardpatch.detect.read` reads it from files; :func:`~hardpatch.detect.extents.place` gives the objects their place
in the images.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from hardpatch.detect.fields import plural


class AnnotatedObject(NamedTuple):
    """Annotated object of an image."""

    category: int
    """category id, not a label"""
    box: tuple[float, float, float, float]
    """left, top, width, height in pixels"""
    segmentation: Any
    """polygons or run lengths in COCO's layout; None if the object has no mask"""
    area: float
    """square pixels"""
    crowd: bool
    """a region of many objects, or an object marked as difficult; not trained on, and detections within it do not count
    as wrong"""
    name: str = ""
    """of the annotation, for messages"""


@dataclass(frozen=True)
class AnnotatedImage:
    """Image and its objects; an image without objects is a negative example."""

    id: int | str
    file: str
    """path below the folder of the images"""
    height: int
    """pixels; 0 if the annotations do not say"""
    width: int
    """pixels; 0 if the annotations do not say"""
    objects: list[AnnotatedObject] = field(default_factory=list)

    @property
    def has_size(self) -> bool:
        """True if height and width are known."""
        return self.height > 0 and self.width > 0


@dataclass(frozen=True)
class AnnotationSet:
    """Images with objects of some categories.

    Labels run from 1, in the order of the category ids; 0 is the background.
    """

    path: str
    """of the annotations"""
    categories: dict[int, str]
    """names by id, in increasing order of the ids"""
    images: list[AnnotatedImage]
    left_out: Mapping[str, int] = field(default_factory=dict)
    """number of objects that are left out, by reason"""
    format: str = "COCO JSON"
    notes: tuple[str, ...] = ()
    """what was taken another way than the annotations say, in lines for the user"""
    relative: bool = False
    """True if boxes and polygons are fractions of width and height, before
    :func:`~hardpatch.detect.extents.place`"""

    @property
    def labels(self) -> dict[int, int]:
        """Labels by category id."""
        return {category: label for label, category in enumerate(self.categories, 1)}

    @property
    def category_ids(self) -> list[int]:
        """Category ids; that of a label is at index label - 1."""
        return list(self.categories)

    @property
    def objects(self) -> list[AnnotatedObject]:
        """Objects of all images, without crowds."""
        return [obj for image in self.images for obj in image.objects if not obj.crowd]

    def without(self, indices: Collection[int]) -> "AnnotationSet":
        """Return the set without the images at ``indices``."""
        return replace(self, images=[image for index, image in enumerate(self.images) if index not in indices])

    def ground_truth(self) -> dict[str, Any]:
        """Return the set in COCO's layout, for the evaluation; an object without a mask has no ``segmentation``.

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
                    **({} if obj.segmentation is None else {"segmentation": obj.segmentation}),
                }
                for number, (image, obj) in enumerate(objects, 1)
            ],
        }


def counts(annotations: AnnotationSet) -> dict[str, int]:
    """Count what is used: images, objects (without crowds), those of them that have a mask, and crowds."""
    objects, total = annotations.objects, sum(len(image.objects) for image in annotations.images)
    return {
        "images": len(annotations.images),
        "images without objects": sum(not image.objects for image in annotations.images),
        "boxes": total,
        "objects": len(objects),
        "objects with a mask": sum(obj.segmentation is not None for obj in objects),
        "crowds": total - len(objects),
    }


def summary(annotations: AnnotationSet, bad_images: int = 0) -> str:
    """Describe in one line which format was read, what is used of it, and what is left out and why.

    Args:
        annotations: the set that is used.
        bad_images: images that cannot be used and are not in it.
    """
    number = counts(annotations)
    boxes, crowds = plural(number["boxes"], "box"), plural(number["crowds"], "crowd")
    empty = f" ({number['images without objects']} without objects)" if number["images without objects"] else ""
    left_out = [f"{plural(count, 'object')} {reason}" for reason, count in annotations.left_out.items() if count]
    if bad_images:
        left_out.insert(0, f"{plural(bad_images, 'image')} that cannot be used")
    return (
        f"{annotations.format}: {plural(number['images'], 'image')}{empty}, "
        f"{plural(len(annotations.categories), 'class')}, {boxes}: {plural(number['objects'], 'object')}, "
        f"{number['objects with a mask']} of them with a mask, and {crowds}; "
        f"left out: {', '.join(left_out) or 'nothing'}"
    )
