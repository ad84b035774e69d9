"""Images with a class for every pixel: where they lie, what the values in label files mean.

An image and its label map have the same stem, below ``images`` and ``labels`` (or ``annotations``) of one folder, with
or without a subfolder a split. A label map is a PNG of one channel whose values are classes.
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
from hardpatch.data.decode import EXTENSIONS, FORMATS, UndecodableImage, decode
from hardpatch.errors import UserError

Map = npt.NDArray[np.uint8]

IGNORED = 255
"""In label maps once they are read: a pixel that neither trains nor counts."""
SPLITS = {"train": ("train", "training"), "val": ("val", "validation")}
ADE20K_CLASSES = 150


@dataclass(frozen=True)
class Labels:
    """What the values in label files mean.

    Args:
        names: of the classes, at most 255.
        values: in the files, one for each class.
        ignored: other values that may occur.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    ignored: tuple[int, ...] = (IGNORED,)

    def __post_init__(self) -> None:
        if not 2 <= len(self.names) <= IGNORED:
            raise UserError(f"--classes: expected 2 to {IGNORED} classes, got {len(self.names)}")

    def table(self) -> npt.NDArray[np.int16]:
        """Value in a file -> class, :data:`IGNORED`, or -1 where the value should not occur: ``[256]``."""
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
    """The classes of a set: as given, or from the ``classes.txt`` of the folder or the one above it.

    A line of ``classes.txt`` is a name or an index and a name; a name that ends in ``(ignore)`` is none of the classes.
    ADE20K is known by its folders: 150 classes, value 0 ignored, names from ``objectInfo150.txt`` if it is there.

    Args:
        folder: of the training set.
        classes: a number of classes, whose values are 0 to N - 1, or a file like ``classes.txt``.
        ignore: values whose pixels are left out. A class among them is no class any more.
        reduce_zero_label: value 0 is ignored and value 1 is the first class.

    Raises:
        UserError: if they are not to be found, or make no sense.
    """
    root = Path(folder)
    if not all(0 <= value <= 255 for value in ignore):
        raise UserError(f"--ignore: expected values from 0 to 255, got {', '.join(map(str, ignore))}")
    reduce_zero_label = reduce_zero_label or _is_ade20k(root)
    if classes is not None and classes.isdecimal():
        entries = {value: f"class {value}" for value in range(int(classes))}
    elif classes is None and _is_ade20k(root):
        entries = dict(enumerate(_ade20k_names(root)))
    else:
        entries = _read_classes(_classes_file(root) if classes is None else Path(classes))
    left_out = {value for value, name in entries.items() if re.search(r"\(ignored?\)$", name, re.IGNORECASE)}
    shift = int(reduce_zero_label)
    ignored = {value + shift for value in left_out} | set(ignore) | ({0} if reduce_zero_label else set())
    if entries and max(entries) + shift > 255:
        raise UserError(f"--classes: expected indices up to {255 - shift}, got {max(entries)}")
    kept = {value + shift: name for value, name in sorted(entries.items()) if value + shift not in ignored}
    return Labels(tuple(kept.values()), tuple(kept), tuple(sorted(ignored)))


class SegmentationSet:
    """A numbered list of images and their label maps.

    Args:
        images, labels: the files, in the same order.
        meaning: of the values in the label files.
    """

    def __init__(self, images: Sequence[Path], labels: Sequence[Path], meaning: Labels) -> None:
        self.images, self.labels, self.meaning = tuple(images), tuple(labels), meaning
        self._table = meaning.table().astype(np.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def without(self, numbers: Collection[int]) -> "SegmentationSet":
        """Return the set without some of its pairs."""
        chosen = [k for k in range(len(self)) if k not in numbers]
        return SegmentationSet([self.images[k] for k in chosen], [self.labels[k] for k in chosen], self.meaning)

    def image(self, i: int, channels: int) -> Image:
        """uint8 ``[H, W, channels]``; raises UndecodableImage with the name and the reason."""
        try:
            return decode(self.images[i].read_bytes(), channels)
        except (OSError, UndecodableImage) as error:
            raise UndecodableImage(f"{self.images[i]}: {error}") from None

    def label_map(self, i: int) -> Map:
        """uint8 ``[H, W]``: the class of each pixel, or :data:`IGNORED`. Values are as :func:`check` saw them."""
        return self._table[_read_map(self.labels[i])]


def open_segmentation(path: str | PathLike[str], split: Literal["train", "val"], meaning: Labels) -> SegmentationSet:
    """The pairs of a folder, or of its ``train`` or ``val`` part.

    Understood, the first that is there: ``images/train`` with ``labels/train``, ``train/images`` with ``train/labels``,
    ``images`` with ``labels``; ``annotations`` for ``labels``, and ``training`` and ``validation``, as ADE20K has them.

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
    labels = {file.stem: file for file in folders[1].iterdir() if _is_file(file, (".png",))}
    missing = [file for file in images if file.stem not in labels]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(
            f"--{split}: {missing[0]} has no label map: expected {folders[1] / missing[0].stem}.png{more}; "
            "add it or take the image away"
        )
    if not images:
        raise UserError(f"--{split}: no images in {folders[0]}")
    return SegmentationSet(images, [labels[file.stem] for file in images], meaning)


class SetCheck(NamedTuple):
    """Result of :func:`check`."""

    pixels: npt.NDArray[np.int64]
    """of each class"""
    unreadable: dict[int, str]
    """pairs that cannot be read, by number: the reason"""


def check(pairs: SegmentationSet, split: str, threads: int = 4) -> SetCheck:
    """Read every label map and the header of every image.

    Raises:
        UserError: for a value that is no class, sizes that differ, or if no pixel has a class.
    """
    table = pairs.meaning.table()
    class_values = list(pairs.meaning.values)
    unreadable: dict[int, str] = {}

    def count(i: int) -> npt.NDArray[np.int64]:
        image, label = pairs.images[i], pairs.labels[i]
        try:
            values, size = _read_map(label), _image_size(image)
        except UndecodableImage as error:
            unreadable[i] = str(error)
            return np.zeros(len(class_values), dtype=np.int64)
        if values.shape != size:
            raise UserError(
                f"{image} has {size[1]} x {size[0]} pixels and {label} {values.shape[1]} x {values.shape[0]}; "
                "an image and its label map must have the same size"
            )
        counts = np.bincount(values.ravel(), minlength=256)
        wrong = [*np.flatnonzero(counts[:256] * (table < 0)), *(256 + np.flatnonzero(counts[256:]))]
        if wrong:
            raise UserError(
                f"{label} has the value {wrong[0]} in {counts[wrong[0]]} pixels; expected the {len(class_values)} "
                f"classes {_ranges(class_values)} or, ignored, {_ranges(pairs.meaning.ignored)}; "
                f"correct it, or see --classes and --ignore"
            )
        return counts[class_values]

    total = np.zeros(len(class_values), dtype=np.int64)
    with ThreadPoolExecutor(threads) as pool:
        try:
            for counts in pool.map(count, range(len(pairs))):
                total += counts
        except UserError as error:
            pool.shutdown(cancel_futures=True)
            raise UserError(f"--{split}: {error}") from None
    if len(unreadable) == len(pairs):
        raise UserError(f"--{split}: none of the {len(pairs)} pairs can be read; the first: {unreadable[0]}")
    if not total.any():
        raise UserError(f"--{split}: every pixel of the {len(pairs)} label maps is ignored; see --classes and --ignore")
    return SetCheck(total, dict(sorted(unreadable.items())))


def _read_map(path: Path) -> npt.NDArray[np.integer]:
    """The values of a label file, ``[H, W]``."""
    try:
        with Pillow.open(path, formats=("PNG",)) as file:
            values = np.array(file)
    except (OSError, ValueError, SyntaxError) as error:
        raise UndecodableImage(
            f"{path} is no label map: cannot read it as PNG ({str(error).splitlines()[0]})"
        ) from None
    if values.ndim != 2:
        raise UndecodableImage(
            f"{path} is no label map: expected one channel of class indices, got {values.shape[2]} channels"
        )
    return values.astype(np.uint8) if values.dtype == bool else values


def _image_size(path: Path) -> tuple[int, int]:
    """(height, width), from the file's header."""
    try:
        with Pillow.open(path, formats=tuple(FORMATS)) as file:
            return file.height, file.width
    except (OSError, ValueError, SyntaxError) as error:
        raise UndecodableImage(f"cannot read {path} as an image ({str(error).splitlines()[0]})") from None


def _is_file(path: Path, endings: tuple[str, ...]) -> bool:
    return path.name.lower().endswith(endings) and not path.name.startswith(".")


def _folders(root: Path, split: str) -> tuple[Path, Path] | None:
    for part in (*SPLITS[split], ""):
        for labels in ("labels", "annotations"):
            for places in (
                (root / "images" / part, root / labels / part),
                (root / part / "images", root / part / labels),
            ):
                if all(place.is_dir() for place in places):
                    return places
    return None


def _is_ade20k(root: Path) -> bool:
    return (root / "annotations" / "training").is_dir() or (root / "annotations" / "validation").is_dir()


def _ade20k_names(root: Path) -> list[str]:
    """From the table that comes with the set: index first, names last, the first of several counts."""
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
    """Index and name of each class; lines without an index are counted from 0."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--classes: expected a number or a text file of class names, got {path}: {error}") from None
    numbered = [re.fullmatch(r"(\d+)[\s:,]+(.+)", line) for line in lines]
    found = [(int(match[1]), match[2]) for match in numbered if match]
    if len(found) != len(lines):
        found = list(enumerate(lines))
    if len(dict(found)) != len(found):
        raise UserError(f"--classes: {path} names an index twice")
    return dict(found)


def _ranges(values: Sequence[int]) -> str:
    """Increasing numbers, runs of them as "0 to 10"."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(f"{first} to {last}" if last > first else str(first) for first, last in runs) or "none"
