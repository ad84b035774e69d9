"""Contents of a folder beside its images, and whether its folders are the classes that they seem to be."""

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from hardpatch.check.findings import Finding, Level
from hardpatch.data.folders import PassedBy, class_names, list_images
from hardpatch.data.names import some
from hardpatch.data.splits import of_one_split


@dataclass
class Folder:
    """A folder of images, with paths relative to it."""

    root: Path
    images: list[str]
    passed: PassedBy
    classes: list[str] | None = None
    empty: list[str] = field(default_factory=list)
    """folders without an image at any depth; of those within each other the outermost"""
    stray: list[str] = field(default_factory=list)
    """images beside folders of images"""


def look_at_folder(root: Path) -> Folder:
    """List a folder of images, or that of the split that is read. Raises UserError if that is impossible."""
    passed = PassedBy()
    images, _ = list_images(root, passed)
    split = of_one_split(images, os.sep, "train", str(root))
    if split is not None and split.folder:
        return look_at_folder(root / split.folder)
    folder = Folder(root, images, passed, class_names(images) if images else None)
    if not images:  # Parquet files, which have classes of their own
        return folder
    holding = {str(parent) for path in images for parent in PurePath(path).parents}
    empty = sorted(set(passed.folders) - holding)
    folder.empty = [path for path in empty if os.path.dirname(path) in ("", *holding)]
    loose = [path for path in images if os.sep not in path]
    folder.stray = loose if len(loose) < len(images) else []
    return folder


def folder_findings(folder: Folder, labels: bool) -> list[Finding]:
    """Say what is passed by, and what about the classes is not as it seems; with `labels` some of it is refused."""
    found = []
    root, passed = folder.root, folder.passed
    if passed.dangling:
        text = f"left out: {passed.dangling_links(root)}"
        found.append(Finding("dangling_links", text, _paths(root, sorted(passed.dangling)), "warning"))
    if passed.hidden:
        text = f"{len(passed.hidden)} hidden files or folders are left out (the first: {root / min(passed.hidden)})"
        found.append(Finding("hidden_files", text, _paths(root, sorted(passed.hidden))))
    if folder.empty:
        inside = [path for path in folder.empty if any(link.startswith(path + os.sep) for link in passed.dangling)]
        why = f"; in {some(inside)} links lead nowhere" if inside else ""
        text = f"{len(folder.empty)} folders hold no image: {some(folder.empty)}{why}"
        found.append(Finding("empty_folders", text, _paths(root, folder.empty), "warning"))
    return found + _class_findings(folder, labels)


def _class_findings(folder: Folder, labels: bool) -> list[Finding]:
    found = []
    wrong: Level = "refused" if labels else "warning"
    if folder.stray:
        folders = len({path.split(os.sep, 1)[0] for path in folder.images if os.sep in path})
        text = (
            f"{len(folder.stray)} images lie beside {folders} folders of images, so there are no classes: "
            f"{some(_paths(folder.root, folder.stray))}; move or remove them"
        )
        found.append(Finding("stray_images", text, _paths(folder.root, folder.stray), wrong))
    if folder.classes is not None and len(folder.classes) == 1:
        (name,) = folder.classes
        below = {path.split(os.sep)[1] for path in folder.images if path.count(os.sep) > 1}
        hint = f"; look one level lower: {folder.root / name}" if below else ""
        found.append(Finding("one_class", f"one class, {name!r}{hint}", [str(folder.root / name)], wrong))
    first = {path.split(os.sep, 1)[0] for path in folder.images if os.sep in path}
    for names in same_names(sorted(first)) if folder.classes else ():
        text = f"folders of one name in two Unicode forms are one class: {some(names, ascii)}"
        found.append(Finding("same_class", text, _paths(folder.root, names)))
    return found


def same_names(names: Sequence[str]) -> list[list[str]]:
    """Return the names that are equal after Unicode normalization (NFC), those of each group together."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(unicodedata.normalize("NFC", name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _paths(root: Path, paths: Sequence[str]) -> list[str]:
    return [str(root / path) for path in paths]
