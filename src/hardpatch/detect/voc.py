"""Annotations of Pascal VOC (Everingham et al. 2010): an XML file for each image."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple
from xml.etree import ElementTree

from hardpatch.data.folders import list_images
from hardpatch.detect.annotations import AnnotatedImage, AnnotatedObject, AnnotationSet
from hardpatch.detect.extents import NO_BOX
from hardpatch.detect.fields import flag, number, plural, refusal, visible, whole_number
from hardpatch.errors import UserError

CORNERS = ("xmin", "ymin", "xmax", "ymax")


class _Object(NamedTuple):
    name: str
    corners: tuple[float, ...]
    difficult: bool
    subject: str


class _File(NamedTuple):
    image: str
    size: tuple[int, int]
    objects: list[_Object]


def read_voc(path: Path, folder: Path, categories: Mapping[int, str] | None = None) -> AnnotationSet:
    """Read a folder of XML files, or those that a list of ``ImageSets/Main`` names.

    The image of an XML file has its stem, or else the name in it. Objects marked as difficult are crowds. Corners are
    pixels counted from 1, both included; in a set with a 0 or a fraction they are coordinates.

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
    left_out: Counter[str] = Counter()
    read = [_read(file, by_stem.get(file.stem, []), left_out) for file in files]
    names = sorted({obj.name for file in read for obj in file.objects})
    known = dict(enumerate(names, 1)) if categories is None else dict(categories)
    ids = {name: id_ for id_, name in known.items()}
    corners = [corner for file in read for obj in file.objects for corner in obj.corners]
    from_one = all(corner >= 1 and corner.is_integer() for corner in corners)
    annotated = []
    for number_, file in enumerate(read, 1):
        objects = [_object(obj, ids, from_one) for obj in file.objects]
        annotated.append(AnnotatedImage(number_, file.image, *file.size, objects))
    _refuse_shared_images(files, read)
    notes = ["corners are pixels counted from 1" if from_one else "corners are coordinates: a 0 or a fraction occurs"]
    difficult = sum(obj.difficult for file in read for obj in file.objects)
    if difficult:
        notes.append(f"{plural(difficult, 'object')} marked as difficult, taken as crowds")
    unused = len(set(images) - {file.image for file in read})
    if unused:
        notes.append(f"{plural(unused, 'image')} of {folder} without an XML file, not used")
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


def _read(file: Path, images: Sequence[str], left_out: Counter[str]) -> _File:
    """Read an XML file, given the images with its stem."""
    try:
        root = ElementTree.parse(file).getroot()
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{file}: expected Pascal VOC annotations as XML: {error}") from None
    if root.tag != "annotation":
        raise UserError(f"{file}: expected Pascal VOC annotations, <annotation>; got <{root.tag}>")
    named = PurePath((root.findtext("filename") or "").strip().replace("\\", "/")).name
    image = next((image for image in images if PurePath(image).name == named), None)
    if image is None and len(images) > 1:
        raise UserError(f"{file}: expected one image of this name, got {images[0]} and {images[1]}")
    image = image or (images[0] if images else named or f"{file.stem}.jpg")
    objects = []
    for position, element in enumerate(root.findall("object"), 1):
        obj = _read_object(element, f"{file}: object {position}")
        if obj is None:
            left_out[NO_BOX] += 1
        else:
            objects.append(obj)
    return _File(image, _size(root, file), objects)


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


def _read_object(element: ElementTree.Element, subject: str) -> _Object | None:
    """Read an object; None if it has no box."""
    name = (element.findtext("name") or "").strip()
    if not name:
        raise refusal(subject, "name", "the name of a class", None)
    if element.find("bndbox") is None:
        return None
    corners = []
    for corner in CORNERS:
        value = number(element.findtext(f"bndbox/{corner}"))
        if value is None:
            raise refusal(subject, f"bndbox/{corner}", "a number of pixels", element.findtext(f"bndbox/{corner}"))
        corners.append(value)
    difficult = flag((element.findtext("difficult") or "0").strip() or None)
    if difficult is None:
        raise refusal(subject, "difficult", "0 or 1", element.findtext("difficult"))
    return _Object(name, tuple(corners), difficult, subject)


def _object(obj: _Object, ids: Mapping[str, int], from_one: bool) -> AnnotatedObject:
    if obj.name not in ids:
        raise refusal(obj.subject, "name", f"a class of the training set ({', '.join(ids)})", obj.name)
    left, top, right, bottom = obj.corners
    if from_one:
        left, top = left - 1, top - 1
    box = (left, top, right - left, bottom - top)
    return AnnotatedObject(ids[obj.name], box, None, box[2] * box[3], obj.difficult)


def _refuse_shared_images(files: Sequence[Path], read: Sequence[_File]) -> None:
    """Refuse two XML files of one image."""
    first: dict[str, Path] = {}
    for file, content in zip(files, read, strict=True):
        other = first.setdefault(content.image, file)
        if other is not file:
            raise UserError(f"{other} and {file} are of the same image, {content.image}; expected one file each")
