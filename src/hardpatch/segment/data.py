"""Images with a class for every pixel: folder layouts, classes, and checks before training.

An image and its label map have the same stem, below ``images`` and ``labels`` (or ``annotations``) of one folder, with
or without a subfolder for each split. A label map is a PNG of one channel whose values stand for classes.
"""

import re
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from hardpatch.data.crop import Image
from hardpatch.data.decode import decode
from hardpatch.data.formats import EXTENSIONS, FORMATS
from hardpatch.data.reading import Reading, UndecodableImage
from hardpatch.errors import UserError

Map = npt.NDArray[np.uint8]

IGNORED = 255
"""Class of a pixel that takes no part in training or evaluation, in label maps once they are read."""
SPLITS = {"train": ("train", "training"), "val": ("val", "validation")}
ADE20K_CLASSES = 150
UNREADABLE = (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError)
"""Exceptions by which Pillow reports a broken file."""


@dataclass(frozen=True)
class Labels:
    """Meaning of the values in label files.

    Args:
        names: class names, 2 to 255 of them.
        values: value of each class in the files.
        ignored: other values that may occur; their pixels are :data:`IGNORED`.

    Raises:
        UserError: for another number of classes.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    ignored: tuple[int, ...] = (IGNORED,)

    def __post_init__(self) -> None:
        if not 2 <= len(self.names) <= IGNORED:
            raise UserError(f"--classes: expected 2 to {IGNORED} classes, got {len(self.names)}")

    def table(self) -> npt.NDArray[np.int16]:
        """Return ``[256]``: the class of each value, :data:`IGNORED`, or -1 for a value that must not occur."""
        table = np.full(256, -1, dtype=np.int16)
        table[list(self.ignored)] = IGNORED
        table[list(self.values)] = np.arange(len(self.values))
        return table


def find_labels(
    folder: str | PathLike[str],
    classes: str | None = None,
    ignore: Sequence[int] = (IGNORED,),
    reduce_zero_label: bool = False,
) -> Labels:
    """Find the classes of a set: from ``classes``, or from the ``classes.txt`` of the folder or the one above it.

    A line of ``classes.txt`` is a name, or an index and a name. A name that ends in ``(ignore)`` is not a class.
    ADE20K is recognized by its folders: 150 classes, value 0 ignored, names from ``objectInfo150.txt`` if it is there.

    Args:
        folder: of the training set.
        classes: a number of classes, whose values are 0 to N - 1, or a file like ``classes.txt``.
        ignore: values whose pixels are ignored. A class among them is removed from the classes.
        reduce_zero_label: value 0 is ignored and value 1 is the first class.

    Raises:
        UserError: if the classes cannot be found or are invalid.
    """
    root = Path(folder)
    if not all(0 <= value <= 255 for value in ignore):
        raise UserError(f"--ignore: expected values from 0 to 255, got {', '.join(map(str, ignore))}")
    reduce_zero_label = reduce_zero_label or _is_ade20k(root)
    if classes is not None and classes.isdecimal():
        names = {index: f"class {index}" for index in range(int(classes))}
    elif classes is None and _is_ade20k(root):
        names = dict(enumerate(_ade20k_names(root)))
    else:
        names = _read_classes(_classes_file(root) if classes is None else Path(classes))
    shift = int(reduce_zero_label)
    if names and max(names) + shift > 255:
        raise UserError(f"--classes: expected indices up to {255 - shift}, got {max(names)}")
    marked = {index + shift for index, name in names.items() if re.search(r"\(ignored?\)$", name, re.IGNORECASE)}
    ignored = marked | set(ignore) | ({0} if reduce_zero_label else set())
    by_value = {index + shift: name for index, name in sorted(names.items()) if index + shift not in ignored}
    return Labels(tuple(by_value.values()), tuple(by_value), tuple(sorted(ignored)))


class SegmentationSet:
    """A numbered list of images and their label maps.

    Args:
        images: the image files.
        label_maps: the label files, in the same order.
        labels: meaning of the values in the label files.
    """

    def __init__(self, images: Sequence[Path], label_maps: Sequence[Path], labels: Labels) -> None:
        self.images, self.label_maps, self.labels = tuple(images), tuple(label_maps), labels
        self._table = labels.table().astype(np.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def without(self, indices: Collection[int]) -> "SegmentationSet":
        """Return the set without the pairs of these indices."""
        rest = [i for i in range(len(self)) if i not in indices]
        return SegmentationSet([self.images[i] for i in rest], [self.label_maps[i] for i in rest], self.labels)

    def image(self, i: int, reading: Reading) -> Image:
        """Decode image ``i`` to uint8 ``[H, W, channels]``; raises UndecodableImage with its path and the reason."""
        try:
            return decode(self.images[i].read_bytes(), reading)
        except (OSError, UndecodableImage) as error:
            raise UndecodableImage(f"{self.images[i]}: {error}") from None

    def label_map(self, i: int) -> Map:
        """Read label map ``i``: uint8 ``[H, W]``, the class of each pixel or :data:`IGNORED`.

        The values are not checked again, see :func:`check`. Raises UndecodableImage with the path and the reason.
        """
        return self._table[_read_map(self.label_maps[i])]


def open_segmentation(path: str | PathLike[str], split: Literal["train", "val"], labels: Labels) -> SegmentationSet:
    """List the pairs of a folder, or of its ``train`` or ``val`` part.

    The layout is the first of these that is there: ``images/train`` with ``labels/train``, ``train/images`` with
    ``train/labels``, ``images`` with ``labels``. ``labels`` may be called ``annotations``, and the splits ``training``
    and ``validation``, as in ADE20K.

    Args:
        path: the folder.
        split: part of the set, where the folder has parts.
        labels: meaning of the values in the label files.

    Raises:
        UserError: if there are none, or an image has no label map.
    """
    root = Path(path)
    folders = _folders(root, split)
    if folders is None:
        raise UserError(
            f"--{split}: expected images/ and labels/ (or annotations/) with or without a subfolder {split}, "
            f"got {root}" + ("" if root.is_dir() else ", which is not a folder")
        )
    images = sorted(file for file in folders[0].iterdir() if _is_file(file, EXTENSIONS))
    label_maps = {file.stem: file for file in folders[1].iterdir() if _is_file(file, (".png",))}
    missing = [file for file in images if file.stem not in label_maps]
    if missing:
        others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(
            f"--{split}: {missing[0]} has no label map: expected {folders[1] / missing[0].stem}.png{others}; "
            "add it or remove the image"
        )
    if not images:
        raise UserError(f"--{split}: no images in {folders[0]}")
    return SegmentationSet(images, [label_maps[file.stem] for file in images], labels)


class SetCheck(NamedTuple):
    """Result of :func:`check`."""

    pixels: npt.NDArray[np.int64]
    """number of pixels of each class"""
    unreadable: dict[int, str]
    """path and reason of each pair that cannot be read, by index"""


def check(pairs: SegmentationSet, split: str, threads: int = 4) -> SetCheck:
    """Read every label map and the header of every image.

    Args:
        pairs: the set.
        split: the option that error messages name, without dashes.
        threads: files to read at a time.

    Raises:
        UserError: for a value that is not a class, for sizes that differ, if no pair can be read, or if every pixel is
            ignored.
    """
    unreadable: dict[int, str] = {}

    def count(i: int) -> npt.NDArray[np.int64] | None:
        try:
            return _count_pixels(pairs, i)
        except UndecodableImage as error:
            unreadable[i] = str(error)
            return None

    total = np.zeros(len(pairs.labels.names), dtype=np.int64)
    with ThreadPoolExecutor(threads) as pool:
        try:
            for counts in pool.map(count, range(len(pairs))):
                if counts is not None:
                    total += counts
        except UserError as error:
            pool.shutdown(cancel_futures=True)
            raise UserError(f"--{split}: {error}") from None
    if len(unreadable) == len(pairs):
        raise UserError(f"--{split}: none of the {len(pairs)} pairs can be read; the first: {unreadable[0]}")
    if not total.any():
        raise UserError(f"--{split}: every pixel of the {len(pairs)} label maps is ignored; see --classes and --ignore")
    return SetCheck(total, dict(sorted(unreadable.items())))


def _count_pixels(pairs: SegmentationSet, i: int) -> npt.NDArray[np.int64]:
    """Count the pixels of each class in label map ``i``, after comparing it with its image and the classes."""
    image, label_map, labels = pairs.images[i], pairs.label_maps[i], pairs.labels
    values, (height, width) = _read_map(label_map), _image_size(image)
    if values.shape != (height, width):
        raise UserError(
            f"{image} has {width} x {height} pixels and {label_map} {values.shape[1]} x {values.shape[0]}; "
            "an image and its label map must have the same size"
        )
    counts = np.bincount(values.ravel(), minlength=256)
    unknown = [*np.flatnonzero(counts[:256] * (labels.table() < 0)), *(256 + np.flatnonzero(counts[256:]))]
    if unknown:
        raise UserError(
            f"{label_map} has the value {unknown[0]} in {counts[unknown[0]]} pixels; expected the {len(labels.values)} "
            f"classes {_ranges(labels.values)} or, ignored, {_ranges(labels.ignored)}; "
            f"correct it, or see --classes and --ignore"
        )
    return counts[list(labels.values)]


def _read_map(path: Path) -> npt.NDArray[np.integer]:
    """Read the values of a label file, ``[H, W]``."""
    try:
        with Pillow.open(path, formats=("PNG",)) as file:
            values = np.array(file)
    except UNREADABLE as error:
        raise UndecodableImage(f"{path}: expected a label map, cannot read it as PNG ({_reason(error)})") from None
    if values.ndim != 2:
        raise UndecodableImage(
            f"{path}: expected a label map of one channel of class indices, got {values.shape[2]} channels"
        )
    return values.astype(np.uint8) if values.dtype == bool else values


def _image_size(path: Path) -> tuple[int, int]:
    """Read (height, width) from the header of an image."""
    try:
        with Pillow.open(path, formats=tuple(FORMATS)) as file:
            return file.height, file.width
    except UNREADABLE as error:
        raise UndecodableImage(f"{path}: expected an image, cannot read it ({_reason(error)})") from None


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _is_file(path: Path, endings: tuple[str, ...]) -> bool:
    return path.name.lower().endswith(endings) and not path.name.startswith(".")


def _folders(root: Path, split: str) -> tuple[Path, Path] | None:
    for part in (*SPLITS[split], ""):
        for labels in ("labels", "annotations"):
            for folders in (
                (root / "images" / part, root / labels / part),
                (root / part / "images", root / part / labels),
            ):
                if all(folder.is_dir() for folder in folders):
                    return folders
    return None


def _is_ade20k(root: Path) -> bool:
    return (root / "annotations" / "training").is_dir() or (root / "annotations" / "validation").is_dir()


def _ade20k_names(root: Path) -> list[str]:
    """Read the class names from the table that comes with the set: the first of the names in the last column."""
    table = root / "objectInfo150.txt"
    lines = table.read_text(encoding="utf-8", errors="replace").splitlines() if table.is_file() else []
    names = [line.split("\t")[-1].split(",")[0].strip() for line in lines if line[:1].isdecimal()]
    return names if len(names) == ADE20K_CLASSES else [f"class {k + 1}" for k in range(ADE20K_CLASSES)]


def _classes_file(root: Path) -> Path:
    for folder in (root, root.resolve().parent):
        if (folder / "classes.txt").is_file():
            return folder / "classes.txt"
    raise UserError(f"--classes: expected a number of classes or a file that names them; {root} has no classes.txt")


def _read_classes(path: Path) -> dict[int, str]:
    """Read index and name of each class; where a line has no index, all lines are counted from 0."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--classes: expected a number or a text file of class names, got {path}: {error}") from None
    matches = [re.fullmatch(r"(\d+)[\s:,]+(.+)", line) for line in lines]
    classes = [(int(match[1]), match[2]) for match in matches if match]
    if len(classes) != len(lines):
        classes = list(enumerate(lines))
    if len(dict(classes)) != len(classes):
        raise UserError(f"--classes: {path} names an index twice")
    return dict(classes)


def _ranges(values: Sequence[int]) -> str:
    """Write increasing numbers, with consecutive ones as "0 to 10"."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(f"{first} to {last}" if last > first else str(first) for first, last in runs) or "none"
