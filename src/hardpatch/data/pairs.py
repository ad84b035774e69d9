"""Which label map or mask belongs to which image, by their names."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import PurePath
from typing import NamedTuple

from hardpatch.data.label_maps import LOSSY_ENDINGS

SUFFIXES = (
    *("_mask", "-mask", "_label", "_labels", "_labelIds", "_labelTrainIds", "_gtFine_labelIds"),
    *("_gtFine_labelTrainIds", "_gt", "_seg", "_segmentation", "_L"),
)
"""Endings that the stem of a label map may have after the stem of its image."""
IMAGE_SUFFIXES = ("_leftImg8bit", "_sat", "_image", "_img", "_rgb")
"""Endings of an image's stem that may be missing in the stem of its label map."""


class Match(NamedTuple):
    """Result of :func:`match`, by indices of images and maps."""

    maps: dict[int, int]
    """map of each image that has one"""
    rules: Counter[str]
    """number of pairs that were found by each rule, in words"""
    missing: list[int]
    """images without a map"""
    several: dict[int, list[int]]
    """maps of each image that has more than one"""
    shared: dict[int, list[int]]
    """images of each map that belongs to more than one"""
    unused: list[int]
    """maps that belong to no image"""


def match(images: Sequence[str], maps: Sequence[str], suffix: str | None = None) -> Match:
    """Match images with the maps of the same stem, or the stem and a suffix, in whatever folders they lie.

    Where stems repeat, the folders nearest to the files have to be called the same. A map in a lossy format counts
    where an image has no other.

    Args:
        images: their paths.
        maps: their paths.
        suffix: the only one to try; None tries none and all of :data:`SUFFIXES`.
    """
    by_stem: dict[str, list[int]] = defaultdict(list)
    for index, path in enumerate(maps):
        by_stem[PurePath(path).stem].append(index)
    stems = {PurePath(path).stem for path in images} if suffix is None else set()
    found: dict[int, int] = {}
    several: dict[int, list[int]] = {}
    rules: Counter[str] = Counter()
    for image, path in enumerate(images):
        rule_of = {
            index: rule
            for stem, rule in _names(PurePath(path), suffix).items()
            if stem not in stems or stem == PurePath(path).stem  # that of another image is not this one's
            for index in by_stem.get(stem, [])
        }
        nearest = _nearest(PurePath(path), {index: maps[index] for index in rule_of})
        if len(nearest) > 1:
            several[image] = nearest
        elif nearest:
            found[image] = nearest[0]
            rules[rule_of[nearest[0]]] += 1
    users: dict[int, list[int]] = defaultdict(list)
    for image, index in found.items():
        users[index].append(image)
    taken = found.keys() | several.keys()
    used = users.keys() | {index for indices in several.values() for index in indices}
    return Match(
        found,
        rules,
        [image for image in range(len(images)) if image not in taken],
        several,
        {index: pair for index, pair in users.items() if len(pair) > 1},
        [index for index in range(len(maps)) if index not in used],
    )


def _names(image: PurePath, suffix: str | None) -> dict[str, str]:
    """Return the stems that a map of this image may have, and the rule of each."""
    names: dict[str, str] = {}
    bases = [image.stem, *(image.stem.removesuffix(end) for end in IMAGE_SUFFIXES if image.stem.endswith(end))]
    for base in bases:
        cut = "" if base == image.stem else f" without {image.stem[len(base) :]}"
        for end in ("", *SUFFIXES) if suffix is None else (suffix,):
            names.setdefault(base + end, f"stem{cut} + {end}" if end else f"same stem{cut}")
    if not suffix:
        names.setdefault(image.name, "name of the image as stem")  # a.jpg and a.jpg.png
    return names


def _nearest(image: PurePath, candidates: dict[int, str]) -> list[int]:
    """Keep the exact formats if there are any, and of these the maps whose folders are called most like the image's."""
    exact = {index: path for index, path in candidates.items() if not path.lower().endswith(LOSSY_ENDINGS)}
    candidates = exact or candidates
    alike = {index: _common(image.parent.parts, PurePath(path).parent.parts) for index, path in candidates.items()}
    return [index for index, common in alike.items() if common == max(alike.values())]


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """Count the equal parts at the end of two paths."""
    count = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b:
            break
        count += 1
    return count
