"""Folders of images and label maps: layouts, and the pairs in them."""

from collections import Counter
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from hardpatch.data.folders import list_images
from hardpatch.data.label_maps import EXACT_ENDINGS, LOSSY_ENDINGS
from hardpatch.data.pairs import SUFFIXES, match
from hardpatch.errors import UserError

SPLITS = {"train": ("train", "training"), "val": ("val", "validation")}
LABELS = ("labels", "annotations", "masks")
"""Names of the folder of label maps; the first that holds any is taken."""
NAMED = 3
"""Files that a message names."""


class Pairs(NamedTuple):
    """Images and their label maps, in the same order."""

    images: list[Path]
    label_maps: list[Path]
    said: list[str]
    """lines for the user: by which rule they were found, and what was left out"""


def find_pairs(path: str | PathLike[str], split: str, suffix: str | None = None) -> Pairs:
    """Find the pairs of a folder, or of its ``train`` or ``val`` part, at any depth.

    Args:
        path: the folder.
        split: part of the set, where the folder has parts.
        suffix: of the stems of label maps, see :func:`hardpatch.data.pairs.match`.

    Raises:
        UserError: if there are none, or an image has no label map or more than one.
    """
    root = Path(path)
    layout = _layout(root, split)
    if layout is None:
        raise UserError(
            f"--{split}: expected images/ and labels/ (or annotations/, masks/) with or without a subfolder {split}, "
            f"got {root}" + ("" if root.is_dir() else ", which is not a folder")
        )
    found = pair(layout.images, layout.labels, split, suffix)
    if layout.other:
        text = f"not read, since {layout.labels.name}/ is: {', '.join(map(str, layout.other))}"
        found.said.insert(1, text)
    return found


def pair(images_in: Path, maps_in: Path, split: str, suffix: str | None = None) -> Pairs:
    """Find the pairs of a folder of images and one of label maps; see :func:`find_pairs`."""
    images, skipped = list_images(images_in)
    if not images:
        raise UserError(f"--{split}: no images in {images_in}")
    maps = _maps(maps_in)
    found = match(images, maps, suffix)
    way_out = "see --label_suffix" if suffix is None else f"--label_suffix is {suffix}"
    if found.missing:
        first = images[found.missing[0]]
        expected = maps_in / Path(first).with_name(f"{Path(first).stem}{suffix or ''}.png")
        others = "" if suffix is not None else f", or the stem with {', '.join(SUFFIXES)}"
        raise UserError(
            f"--{split}: {len(found.missing)} of {len(images)} images have no label map: "
            f"{_first([images_in / images[i] for i in found.missing])}; expected {expected}{others}; add the maps, "
            f"remove the images, or {way_out}"
        )
    for index, several in found.several.items():
        raise UserError(
            f"--{split}: {len(found.several)} of {len(images)} images have more than one label map: "
            f"{images_in / images[index]} has {' and '.join(str(maps_in / maps[i]) for i in several)}; "
            f"keep one of them, or {way_out}"
        )
    for index, users in found.shared.items():
        raise UserError(
            f"--{split}: {len(found.shared)} label maps belong to more than one image: {maps_in / maps[index]} "
            f"to {' and '.join(str(images_in / images[i]) for i in users)}; rename or remove one, or put the maps "
            "into folders named like those of the images"
        )
    rules = ", ".join(rule if len(found.rules) == 1 else f"{rule}: {n}" for rule, n in found.rules.items())
    said = [f"{len(images)} pairs in {images_in} and {maps_in} ({rules})"]
    if skipped:
        said.append(f"left out {len(skipped)} files in {images_in} that are no images: {_endings(skipped)}")
    if found.unused:
        unused = _first([maps_in / maps[i] for i in found.unused])
        said.append(f"left out {len(found.unused)} label maps without an image: {unused}")
    return Pairs(
        [images_in / file for file in images],
        [maps_in / maps[found.maps[i]] for i in range(len(images))],
        said,
    )


class _Layout(NamedTuple):
    images: Path
    labels: Path
    other: list[Path]
    """further folders that could be the labels"""


def _layout(root: Path, split: str) -> _Layout | None:
    for part in (*SPLITS[split], ""):
        for images, beside in ((root / "images" / part, root), (root / part / "images", root / part)):
            within = part if beside == root else ""
            if not images.is_dir() or (not part and _has_parts(images)):
                continue
            folders = [beside / name / within for name in LABELS if (beside / name / within).is_dir()]
            folders.sort(key=lambda folder: not _maps(folder))  # stable: of those with maps, the first name
            if folders:
                return _Layout(images, folders[0], [folder for folder in folders[1:] if _maps(folder)])
    return None


def _has_parts(images: Path) -> bool:
    """Return whether a folder is split: its train images must not become val images."""
    return any((images / name).is_dir() for names in SPLITS.values() for name in names)


def _maps(folder: Path) -> list[str]:
    read, skipped = list_images(folder)
    return sorted(file for file in read + skipped if file.lower().endswith(EXACT_ENDINGS + LOSSY_ENDINGS))


def _first(files: Sequence[Path]) -> str:
    more = f" and {len(files) - NAMED} more" if len(files) > NAMED else ""
    return ", ".join(map(str, files[:NAMED])) + more


def _endings(files: Sequence[str]) -> str:
    counts = Counter(Path(file).suffix.lower() or "no ending" for file in files)
    return ", ".join(f"{ending} {count}" for ending, count in counts.most_common())
