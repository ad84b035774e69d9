"""Annotations of Pascal VOC (Everingham et al. 2010): an XML file for each image."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import NamedTuple
from xml.etree import ElementTree

from hardpatch.data.folders import list_images
from hardpatch.data.names import class_name
from hardpatch.detect.annotations import AnnotatedImage, AnnotatedObject, AnnotationSet
from hardpatch.detect.extents import NO_BOX, around_rotated, box_around, rotated_boxes, with_area
from hardpatch.detect.fields import flag, number, plural, refusal, unused_fields, visible, whole_number
from hardpatch.errors import UserError

CORNERS = ("xmin", "ymin", "xmax", "ymax")


FLAGS = ("truncated", "occluded")
"""Fields of an object that are not used; they are 0 or 1."""


class _Object(NamedTuple):
    name: str
    corners: tuple[float, ...]
    """left, top, right, bottom; empty if there are only polygons"""
    polygons: list[list[float]]
    degrees: float
    """rotation of the box about its center"""
    difficult: bool
    subject: str


class _File(NamedTuple):
    image: str
    size: tuple[int, int]
    objects: list[_Object]
    segmented: bool
    """True if its masks are in a file of VOC's SegmentationObject"""


@dataclass
class _Counts:
    """Numbers of objects of which something is not read as it is written."""

    without_box: int = 0
    no_polygons: int = 0
    """have polygons without three corners or an area"""
    unused: Counter[str] = field(default_factory=Counter)
    """have a field that is not used"""


def read_voc(path: Path, folder: Path, categories: Mapping[int, str] | None = None) -> AnnotationSet:
    """Read a folder of XML files, or those that a list of ``ImageSets/Main`` names.

    The image of an XML file has its stem, or else the name in it. Objects marked as difficult are crowds. Polygons are
    masks. Corners are pixels counted from 1, both included; in a set with a 0 or a fraction they are coordinates.

    Args:
        path: folder of XML files, or text file of their stems, one at the beginning of each line.
        folder: of the images.
        categories: names by id of the training set; by default the names that occur, in their order, from 1.

    Raises:
        UserError: if a file is missing or malformed, or names a class that is not among ``categories``.
    """
    files = _listed(path) if path.is_file() else sorted(visible(path, ".xml"))
    images, _ = list_images(folder)
    by_stem = defaultdict(list)
    for image in images:
        by_stem[PurePath(image).stem].append(image)
    found = _Counts()
    read = [_read(file, by_stem.get(file.stem, []), found) for file in files]
    names = sorted({obj.name for file in read for obj in file.objects})
    known = dict(enumerate(names, 1)) if categories is None else dict(categories)
    ids = {name: id_ for id_, name in known.items()}
    all_objects = [obj for file in read for obj in file.objects]
    corners = [corner for obj in all_objects for values in (obj.corners, *obj.polygons) for corner in values]
    from_one = all(corner >= 1 and corner.is_integer() for corner in corners)
    annotated = []
    for number_, file in enumerate(read, 1):
        objects = [_object(obj, ids, from_one) for obj in file.objects]
        annotated.append(AnnotatedImage(number_, file.image, *file.size, objects))
    _refuse_shared_images(files, read)
    notes = ["corners are pixels counted from 1" if from_one else "corners are coordinates: a 0 or a fraction occurs"]
    difficult = sum(obj.difficult for obj in all_objects)
    if difficult:
        notes.append(f"{plural(difficult, 'object')} marked as difficult, taken as crowds")
    rotated = sum(bool(obj.degrees) for obj in all_objects)
    if rotated:
        notes.append(rotated_boxes(rotated))
    if found.no_polygons:
        notes.append(f"{plural(found.no_polygons, 'object')} with polygons of fewer than three corners or no area")
    segmented = sum(file.segmented for file in read)
    if segmented:
        notes.append(
            f"segmented is 1 in {plural(segmented, 'file')}: masks in PNG files, as VOC's SegmentationObject, are not "
            "read; convert them to COCO JSON to train on them"
        )
    unused = len(set(images) - {file.image for file in read})
    if unused:
        notes.append(f"{plural(unused, 'image')} of {folder} without an XML file, not used")
    notes += unused_fields(found.unused)
    left_out = {NO_BOX: found.without_box}
    return AnnotationSet(str(path), known, annotated, left_out, "Pascal VOC XML", tuple(notes))


def _listed(path: Path) -> list[Path]:
    """Return the XML files of an image set."""
    folders = [parent / "Annotations" for parent in path.parents if (parent / "Annotations").is_dir()]
    if not folders:
        raise UserError(f"{path}: expected a list in VOC's ImageSets/Main, with a folder Annotations above; found none")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    files = [folders[0] / f"{line.split()[0]}.xml" for line in lines if line.strip()]
    missing = [file for file in files if not file.is_file()]
    if missing or not files:
        found = f"{missing[0]} is missing, one of {len(missing)}" if missing else "it is empty"
        raise UserError(f"{path}: expected the stem of an XML file of {folders[0]} in each line; {found}")
    return files


def _read(file: Path, images: Sequence[str], found: _Counts) -> _File:
    """Read an XML file, given the images with its stem."""
    try:
        data = file.read_bytes()
        if b"<!ENTITY" in data:  # which may stand for gigabytes of text
            raise UserError(
                f"{file}: expected Pascal VOC annotations, got XML with entities of its own; remove <!ENTITY"
            )
        root = ElementTree.fromstring(data)
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    except UserError:
        raise
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise UserError(f"{file}: expected Pascal VOC annotations as XML: {error}") from None
    if root.tag != "annotation":
        way_out = "; in CVAT, export Pascal VOC or COCO" if root.tag == "annotations" else ""
        raise UserError(f"{file}: expected Pascal VOC annotations, <annotation>; got <{root.tag}>{way_out}")
    named = PurePath((root.findtext("filename") or "").strip().replace("\\", "/")).name
    image = next((image for image in images if PurePath(image).name == named), None)
    if image is None and len(images) > 1:
        raise UserError(f"{file}: expected one image of this name, got {images[0]} and {images[1]}")
    image = image or (images[0] if images else named or f"{file.stem}.jpg")
    objects = []
    for position, element in enumerate(root.findall("object"), 1):
        obj = _read_object(element, f"{file}: object {position}", found)
        if obj is None:
            found.without_box += 1
        else:
            objects.append(obj)
    return _File(image, _size(root, file), objects, _is_set(root, "segmented"))


def _size(root: ElementTree.Element, file: Path) -> tuple[int, int]:
    """Return (height, width), zeros if one is absent or 0."""
    sides = []
    for side in ("height", "width"):
        text = (root.findtext(f"size/{side}") or "0").strip()
        pixels = whole_number(text or "0")
        if pixels is None or pixels < 0:
            raise refusal(str(file), f"size/{side}", "a number of pixels", text)
        sides.append(pixels)
    height, width = sides
    return (height, width) if height and width else (0, 0)


def _read_object(element: ElementTree.Element, subject: str, found: _Counts) -> _Object | None:
    """Read an object; None if it has neither a box nor a polygon."""
    name = class_name((element.findtext("name") or "").strip())
    if not name:
        raise refusal(subject, "name", "the name of a class", None)
    written = [_polygon(polygon, subject) for polygon in element.findall("polygon")]
    polygons = with_area(written)
    found.no_polygons += bool(written) and not polygons
    found.unused.update(tag for tag in FLAGS if _is_set(element, tag))
    if element.find("part") is not None:
        found.unused["part"] += 1
    difficult = flag((element.findtext("difficult") or "0").strip() or None)
    if difficult is None:
        raise refusal(subject, "difficult", "0 or 1", element.findtext("difficult"))
    corners, degrees = _box(element, subject)
    if not corners and not polygons:
        return None
    return _Object(name, corners, polygons, degrees, difficult, subject)


def _box(element: ElementTree.Element, subject: str) -> tuple[tuple[float, ...], float]:
    """Return left, top, right, bottom, empty if there is no box, and the degrees by which it is rotated."""

    def values(box: str, names: Sequence[str]) -> list[float]:
        read = {name: number(element.findtext(f"{box}/{name}")) for name in names}
        for name, value in read.items():
            if value is None:
                raise refusal(subject, f"{box}/{name}", "a number of pixels", element.findtext(f"{box}/{name}"))
        return [value for value in read.values() if value is not None]

    if element.find("bndbox") is not None:
        attributes = element.iterfind("attributes/attribute")  # CVAT's
        rotations = [number(entry.findtext("value")) for entry in attributes if entry.findtext("name") == "rotation"]
        return tuple(values("bndbox", CORNERS)), next(iter(rotations), None) or 0.0
    if element.find("robndbox") is None:
        return (), 0.0
    x, y, width, height, angle = values("robndbox", ("cx", "cy", "w", "h", "angle"))  # roLabelImg's
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2), math.degrees(angle)


def _polygon(element: ElementTree.Element, subject: str) -> list[float]:
    """Return [x, y, x, y, ...] of x1, y1, x2, y2, ... (Roboflow) or of points with x and y (LabelMe)."""
    leaves = [leaf for leaf in element.iter() if re.fullmatch(r"[xy]\d*", leaf.tag)]
    values = [number(leaf.text) for leaf in leaves]
    if None in values or [leaf.tag[0] for leaf in leaves] != ["x", "y"] * (len(leaves) // 2):
        listed = " ".join(f"{leaf.tag} {leaf.text}" for leaf in leaves)
        raise refusal(subject, "polygon", "x1, y1, x2, y2, ... or points with x and y, in numbers", listed)
    return [value for value in values if value is not None]


def _is_set(element: ElementTree.Element, name: str) -> bool:
    """Return True for a 1 or true."""
    return bool(flag((element.findtext(name) or "").strip() or None))


def _object(obj: _Object, ids: Mapping[str, int], from_one: bool) -> AnnotatedObject:
    if obj.name not in ids:
        raise refusal(obj.subject, "name", f"a class of the training set ({', '.join(ids)})", obj.name)
    # counted from 1, a pixel begins 1 before its number and has its center 0.5 before it
    polygons = [[value - 0.5 * from_one for value in polygon] for polygon in obj.polygons]
    if obj.corners:
        left, top, right, bottom = obj.corners
        left, top = left - from_one, top - from_one
        box = around_rotated((left, top, right - left, bottom - top), obj.degrees)
    else:
        box = box_around(polygons)
    return AnnotatedObject(ids[obj.name], box, polygons or None, box[2] * box[3], obj.difficult, obj.subject)


def _refuse_shared_images(files: Sequence[Path], read: Sequence[_File]) -> None:
    """Refuse two XML files of one image."""
    first: dict[str, Path] = {}
    for file, content in zip(files, read, strict=True):
        other = first.setdefault(content.image, file)
        if other is not file:
            raise UserError(f"{other} and {file} are of the same image, {content.image}; expected one file each")
