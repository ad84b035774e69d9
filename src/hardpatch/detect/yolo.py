"""Annotations of YOLO (Darknet, Ultralytics): a text file for each image, and the names of the classes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from hardpatch.data.folders import list_images
from hardpatch.data.names import class_name
from hardpatch.detect.annotations import AnnotatedImage, AnnotatedObject, AnnotationSet
from hardpatch.detect.extents import REPEATED, box_around
from hardpatch.detect.fields import number, plural, refusal, unused_fields, visible, whole_number
from hardpatch.errors import UserError
from hardpatch.yaml_text import parse_yaml

NAMES = ("classes.txt", "obj.names", "classes.names", "data.yaml", "data.yml", "dataset.yaml")
"""Files of class names, which are looked for beside the labels and up to two folders above."""
TOLERANCE = 0.01
"""Distance outside [0, 1] that is rounding of a box at the edge; beyond, a number is no fraction."""

KEYPOINTS = "keypoints"
POSE = "; keypoints need kpt_shape in data.yaml"


def read_yolo(path: Path, folder: Path) -> AnnotationSet:
    """Read a label file for each image of a folder; one without a label file has no objects.

    A line is ``class x y width height``, the center and the sides of a box, or ``class x y x y x y ...``, a polygon,
    all as fractions of the image's width and height. Classes count from 0. Where ``data.yaml`` has a ``kpt_shape``,
    keypoints may follow a box; they are not used.

    Args:
        path: folder of label files, or a ``data.yaml``; then the labels are where Ultralytics looks for them: in
            ``labels`` instead of the last ``images`` of the folder's path, or beside the images.
        folder: of the images.

    Returns:
        Boxes as fractions, until :func:`~hardpatch.detect.extents.place`; the annotations have no sizes.

    Raises:
        UserError: names the file and line that is malformed, or what is missing.
    """
    labels, names_file = (_labels_of(folder), path) if path.is_file() else (path, _find_names(path))
    names, keypoints = _names(names_file)
    images, _ = list_images(folder)
    if not images:
        raise UserError(f"{folder}: expected the images of {labels}, found none")
    files = [labels / PurePath(image).with_suffix(".txt") for image in images]
    shared = [file for file, count in Counter(files).items() if count > 1]
    if shared:
        raise UserError(f"{shared[0]} would be the labels of two images of {folder}; expected one image of each name")
    found: Counter[str] = Counter()
    annotated = [
        AnnotatedImage(index, image, 0, 0, _objects(file, names, keypoints, found))
        for index, (image, file) in enumerate(zip(images, files, strict=True), 1)
    ]
    present = {file for file in files if file.is_file()}
    notes = [f"labels of {labels}, classes of {names_file}"]
    if len(present) < len(images):
        notes.append(f"{plural(len(images) - len(present), 'image')} without a label file, taken as without objects")
    without_image = sorted({file for file in visible(labels, ".txt") if file.name not in NAMES} - present)
    if without_image:
        notes.append(
            f"{plural(len(without_image), 'label file')} without an image, not used; the first: {without_image[0]}"
        )
    if not present:
        raise UserError(
            f"{labels} has no label file of the {len(images)} images of {folder}; do the two belong together?"
        )
    notes += _notes(annotated, found, labels)
    left_out = {REPEATED: found[REPEATED]}
    return AnnotationSet(
        str(path), dict(enumerate(names)), annotated, left_out, "YOLO text", tuple(notes), relative=True
    )


def _notes(images: Sequence[AnnotatedImage], found: Mapping[str, int], labels: Path) -> list[str]:
    """Return lines about keypoints, and about polygons that may be something else.

    Raises:
        UserError: if all polygons look like a box and keypoints in it.
    """
    polygons = [obj.segmentation[0] for image in images for obj in image.objects if obj.segmentation]
    lengths = {len(polygon) for polygon in polygons}
    if len(lengths) == 1 and min(lengths) >= 10 and all(map(_like_keypoints, polygons)):
        raise UserError(
            f"{labels}: expected boxes or polygons, got {plural(len(polygons), 'line')} of {1 + min(lengths)} numbers "
            "that look like a box and keypoints within it; for keypoints, write kpt_shape into data.yaml, such as "
            "kpt_shape: [17, 3], and their boxes are read"
        )
    notes = unused_fields({KEYPOINTS: found[KEYPOINTS]} if found[KEYPOINTS] else {})
    if lengths == {8}:
        notes.append(
            f"all {plural(len(polygons), 'polygon')} have four corners, as oriented boxes have: read as masks, with "
            "the upright boxes around them; --masks none trains on the boxes alone"
        )
    return notes


def _like_keypoints(values: Sequence[float]) -> bool:
    """Return True if numbers could be x, y, width and height of a box, and points (and flags) within it."""
    (x, y, width, height), rest = values[:4], values[4:]
    for step in (2, 3):
        points = list(zip(rest[::step], rest[1::step], strict=False))
        flags = rest[2::3] if step == 3 else []
        inside = (
            abs(a - x) <= width / 2 + TOLERANCE and abs(b - y) <= height / 2 + TOLERANCE for a, b in points if a or b
        )
        if len(rest) % step == 0 and all(value in (0, 1) for value in flags) and all(inside):
            return True
    return False


def _labels_of(folder: Path) -> Path:
    """Return the folder of labels that Ultralytics reads for a folder of images."""
    parts = folder.absolute().parts
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        labels = Path(*parts[:last], "labels", *parts[last + 1 :])
        if labels.is_dir():
            return labels
    return folder


def _find_names(labels: Path) -> Path:
    """Return the file of class names of a folder of labels."""
    places = [labels, *list(labels.absolute().parents)[:2]]
    files = [place / name for place in places for name in NAMES if (place / name).is_file()]
    if not files:
        raise UserError(
            f"{labels}: expected the names of the classes in classes.txt (one a line) or data.yaml, there or up to two "
            "folders above; found none"
        )
    return files[0]


def _names(file: Path) -> tuple[list[str], int]:
    """Read the names of the classes, in the order of their numbers, and how many numbers keypoints have, or 0."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: expected names of classes as UTF-8 text") from None
    keypoints = 0
    if file.suffix not in (".yaml", ".yml"):
        names = [class_name(line.strip()) for line in text.splitlines() if line.strip()]
    else:
        content = parse_yaml(text, str(file))
        content = content if isinstance(content, dict) else {}
        names = _yaml_names(content.get("names"), file)
        keypoints = _keypoints(content.get("kpt_shape"), file)
    if not names:
        raise UserError(f"{file}: expected the name of a class in each line, got an empty file")
    return names, keypoints


def _keypoints(shape: Any, file: Path) -> int:
    """Return how many numbers the keypoints of an object have, 0 without them."""
    if shape is None:
        return 0
    sides = [whole_number(side) for side in shape] if isinstance(shape, list) else []
    if len(sides) != 2 or sides[1] not in (2, 3) or not sides[0] or sides[0] < 1:
        raise refusal(str(file), "kpt_shape", "number of keypoints, and 2 or 3 numbers for each", shape)
    return sides[0] * sides[1]


def _yaml_names(names: Any, file: Path) -> list[str]:
    """Return the names of ``names``: a list, or a mapping from 0 on."""
    if isinstance(names, dict):
        by_number = {whole_number(key): name for key, name in names.items()}
        if set(by_number) != set(range(len(names))):
            raise refusal(str(file), "names", "class numbers from 0 on without gaps", list(names))
        names = [by_number[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise refusal(str(file), "names", "a list of class names, as YOLO's data.yaml has it", names)
    odd = [name for name in names if isinstance(name, list | dict)]
    if odd:  # aliases within them can stand for gigabytes of text
        raise UserError(f"{file}: names: expected texts, got a {type(odd[0]).__name__}")
    return [class_name(str(name)) for name in names]


def _objects(file: Path, names: Sequence[str], keypoints: int, found: Counter[str]) -> list[AnnotatedObject]:
    """Read the objects of a label file; none if there is no such file."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: expected lines 'class x y width height', got no text") from None
    rows = {tuple(line.split()): number_ for number_, line in reversed([*enumerate(lines, 1)]) if line.strip()}
    found[REPEATED] += sum(bool(line.strip()) for line in lines) - len(rows)
    posed = [words for words in rows if keypoints and len(words) == 5 + keypoints]
    found[KEYPOINTS] += len(posed)
    return [
        _object(words[:5] if words in posed else words, f"{file}: line {number_}", names)
        for words, number_ in reversed(rows.items())
    ]


def _object(words: Sequence[str], subject: str, names: Sequence[str]) -> AnnotatedObject:
    text = " ".join(words)
    values = [number(word) for word in words]
    if None in values or not (len(values) == 5 or (len(values) >= 7 and len(values) % 2)):
        raise refusal(subject, "numbers", f"class x y width height, or class x y x y x y ...{POSE}", text)
    category, *fractions = (value for value in values if value is not None)
    if whole_number(category) is None or not 0 <= category < len(names):
        raise refusal(subject, "class", f"a whole number from 0 to {len(names) - 1}", words[0])
    sides = fractions if len(fractions) > 4 else fractions[:2]
    if not all(-TOLERANCE <= value <= 1 + TOLERANCE for value in sides) or max(fractions) > 1 + TOLERANCE:
        raise refusal(subject, "place", f"fractions of the image's width and height, from 0 to 1{POSE}", text)
    if len(fractions) > 4:
        polygons = [fractions]
        return AnnotatedObject(int(category), box_around(polygons), polygons, 0.0, False, subject)
    x, y, width, height = fractions
    return AnnotatedObject(int(category), (x - width / 2, y - height / 2, width, height), None, 0.0, False, subject)
