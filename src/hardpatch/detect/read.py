"""Annotations of any format, which is found by what their path is."""

from collections.abc import Mapping
from pathlib import Path

from hardpatch.detect.annotations import AnnotationSet
from hardpatch.detect.coco import read_coco
from hardpatch.detect.fields import plural, visible
from hardpatch.detect.settings import ANNOTATIONS
from hardpatch.detect.voc import read_voc
from hardpatch.detect.yolo import NAMES, read_yolo
from hardpatch.errors import UserError


def read_annotations(
    path: str | Path, folder: str | Path, categories: Mapping[int, str] | None = None
) -> AnnotationSet:
    """Read annotations, whose images must be there for all formats but COCO JSON.

    Args:
        path: see :data:`~hardpatch.detect.settings.ANNOTATIONS`.
        folder: of the images.
        categories: names by id of the training set, for formats whose annotations do not number their classes.

    Raises:
        UserError: names the file and entry that cannot be used.
    """
    path, folder = Path(path), Path(folder)
    if path.is_dir():
        annotations = _read_folder(path, folder, categories)
    elif path.suffix.lower() in (".yaml", ".yml"):
        _expect_folder(folder, path)
        annotations = read_yolo(path, folder)
    elif path.suffix.lower() == ".txt":
        _expect_folder(folder, path)
        annotations = read_voc(path, folder, categories)
    else:
        annotations = read_coco(path)
    return annotations


def _read_folder(path: Path, folder: Path, categories: Mapping[int, str] | None) -> AnnotationSet:
    xml = next(visible(path, ".xml"), None)
    text = next((file for file in visible(path, ".txt") if file.name not in NAMES), None)
    if xml is not None and text is not None:
        raise UserError(f"{path}: expected XML files (Pascal VOC) or text files (YOLO), got both: {xml} and {text}")
    if xml is None and text is None:
        json = min(visible(path, ".json"), default=None)
        hint = "" if json is None else f"; did you mean {json}?"
        raise UserError(f"{path}: expected {ANNOTATIONS}; got a folder without XML and text files{hint}")
    _expect_folder(folder, path)
    return read_yolo(path, folder) if xml is None else read_voc(path, folder, categories)


def check_images(annotations: AnnotationSet, folder: str | Path) -> None:
    """Refuse a folder that has none of the images of the annotations; single missing ones are bad files.

    Raises:
        UserError: names the folder and the first image.
    """
    _expect_folder(Path(folder), annotations.path)
    if not any((Path(folder) / image.file).is_file() for image in annotations.images):
        raise UserError(
            f"{folder} has none of the {plural(len(annotations.images), 'image')} of {annotations.path}, such as "
            f"{annotations.images[0].file}; do the two belong together?"
        )


def _expect_folder(folder: Path, path: str | Path) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected the images of {path}")
