"""Opening images by path: what a folder, a file or a pattern holds."""

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hardpatch.data.archive_index import ARCHIVES, COMPRESSED, cannot_read_in_place
from hardpatch.data.archives import ArchiveSource
from hardpatch.data.columns import Columns
from hardpatch.data.csv_list import LISTS, open_list
from hardpatch.data.demo import DemoSource, demo_source
from hardpatch.data.folders import FileSource, PassedBy, class_names, list_images, without_images
from hardpatch.data.formats import EXTENSIONS
from hardpatch.data.left_out import LINKS, NOT_IMAGES, LeftOut, left_out
from hardpatch.data.litdata_chunks import LitdataSource, is_litdata
from hardpatch.data.parquet import ParquetSource
from hardpatch.data.splits import Role, choose_split, of_one_split
from hardpatch.errors import UserError
from hardpatch.paths import typed

Opened = FileSource | ParquetSource | ArchiveSource | DemoSource | LitdataSource
PARQUET = ".parquet"
CONTAINERS = {"Parquet files": (PARQUET,), "archives": ARCHIVES}
"""Files that hold images, and of which a folder may hold several."""
MOST_NAMES = 1_000_000
"""Files that a pattern in braces may stand for."""
FILES = f"an image ({', '.join(EXTENSIONS)}), a .parquet, .csv, .tsv, .zip or .tar file"


def open_path(path: str | os.PathLike[str] | None, columns: Columns, role: Role) -> Opened:
    """Open one path; see :func:`hardpatch.data.sources.open_source`."""
    if path is None:
        path = "demo:train"
    if isinstance(path, str) and path.startswith("demo:"):
        return demo_source(path.removeprefix("demo:"))
    text = typed(os.fspath(path))
    if is_litdata(text):
        return LitdataSource(text, columns)
    path = Path(text)
    if path.is_dir():
        passed = PassedBy()
        images, others = list_images(path, passed)
        return _of_files(path, images, others, columns, role, passed=passed)
    if path.exists():
        return _of_file(path, columns, role)
    names = braces(text)
    if len(names) > 1:
        return _of_several(text, names, columns)
    if glob.has_magic(text):
        return _of_pattern(text, columns)
    raise UserError(f"{path}: no such file or folder; expected {FILES}, a folder of them, demo:train or demo:test")


def _of_file(path: Path, columns: Columns, role: Role) -> Opened:
    name = path.name.lower()
    if name.endswith(PARQUET):
        return ParquetSource([path], columns)
    if name.endswith(ARCHIVES):
        return ArchiveSource([str(path)], columns, role)
    if name.endswith(LISTS):
        return open_list(path, columns)
    if name.endswith(COMPRESSED):
        raise UserError(cannot_read_in_place(str(path)))
    if not name.endswith(EXTENSIONS):
        raise UserError(f"{path}: expected {FILES}, or a folder of them")
    return FileSource(str(path.parent), [path.name])


def braces(text: str) -> list[str]:
    """Return the names that a pattern in braces stands for: ``{000..009}`` and ``{a,b}``, as shells have them.

    Raises:
        UserError: if they are more than :data:`MOST_NAMES`.
    """
    found = re.search(r"\{([^{}]*)\}", text)
    if found is None:
        return [text]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if numbers is not None:
        first, last, width = int(numbers[1]), int(numbers[2]), len(numbers[1])
        if not 0 <= last - first < MOST_NAMES:
            raise UserError(f"{text}: expected 1 to {MOST_NAMES:,} numbers in {found[0]}, as in {{000000..000099}}")
        parts = [f"{k:0{width}d}" for k in range(first, last + 1)]
    elif "," in found[1]:
        parts = found[1].split(",")
    else:
        return [text]
    start, end = text[: found.start()], braces(text[found.end() :])
    if len(parts) * len(end) > MOST_NAMES:
        raise UserError(f"{text}: expected at most {MOST_NAMES:,} names, got {len(parts) * len(end):,}")
    return [f"{start}{part}{rest}" for part in parts for rest in end]


def _of_several(pattern: str, names: Sequence[str], columns: Columns) -> Opened:
    """Open the files of a pattern in braces, all of which have to be there."""
    found = [match for name in names for match in (sorted(glob.glob(name)) if glob.has_magic(name) else [name])]
    missing = [name for name in found if not os.path.isfile(name)]
    if missing or not found:
        lost = (
            f"{len(missing)} of {len(found)} files are missing, the first is {missing[0]}" if missing else "none found"
        )
        raise UserError(f"{pattern}: {lost}")
    root = os.path.commonpath([os.path.dirname(path) for path in found])
    relative = [os.path.relpath(path, root or ".") for path in found]
    images = [path for path in relative if path.lower().endswith(EXTENSIONS)]
    return _of_files(Path(root), images, [path for path in relative if path not in {*images}], columns, None, pattern)


def _of_pattern(pattern: str, columns: Columns) -> Opened:
    """Open all files that match a pattern, and all images in folders that do."""
    fixed = []
    for part in Path(pattern).parts:
        if glob.has_magic(part):
            break
        fixed.append(part)
    root = Path(*fixed)
    images: list[str] = []
    others: list[str] = []
    for match in sorted(glob.glob(pattern, recursive=True)):
        if os.path.isdir(match):
            if "**" not in pattern:  # which finds what is in the folder by itself
                found = [[os.path.join(match, path) for path in part] for part in list_images(Path(match))]
                images += found[0]
                others += found[1]
        else:
            (images if match.lower().endswith(EXTENSIONS) else others).append(match)
    if not images and not others:
        raise UserError(f"{pattern}: no file or folder matches this pattern")
    if len(images) + len(others) == 1:
        return _of_file(Path((images + others)[0]), columns, "train")
    images, others = ([os.path.relpath(path, root) for path in part] for part in (images, others))
    return _of_files(root, images, others, columns, None, named=pattern)


def _of_files(
    root: Path,
    images: list[str],
    others: list[str],
    columns: Columns,
    role: Role | None,
    named: str = "",
    passed: PassedBy | None = None,
) -> Opened:
    """Open files of a folder: the images if there are some, else the Parquet files, else the archives.

    Args:
        root: the folder.
        images: paths of the images relative to it.
        others: paths of its other files.
        columns: names of the columns of tables.
        role: decides which split is read; None reads all.
        named: what the user called the files, if not by the folder.
        passed: entries of the folder that are neither.
    """
    where, passed = named or str(root), passed or PassedBy()
    links = left_out(LINKS, [str(root / link) for link in sorted(passed.dangling)])
    if images:
        skipped = (*left_out(NOT_IMAGES, [str(root / path) for path in others], kinds=True), *links)
        folders = [os.path.join(folder, "") for folder in passed.folders]
        return _of_images(root, images, [*others, *passed.dangling, *folders], role, where, skipped)
    for kind, endings in CONTAINERS.items():
        found = [path for path in others if path.lower().endswith(endings)]
        if not found:
            continue
        split = choose_split(found, role, where, kind)
        rest = [str(root / path) for path in others if path not in found]
        entries = (*(replace(entry, first=str(root / entry.first)) for entry in split.left_out),)
        skipped = (*entries, *left_out(NOT_IMAGES, rest, kinds=True), *links)
        notes = [note for note in (split.note, _folders(split.paths)) if note]
        paths = [root / path for path in split.paths]
        if kind == "archives":
            return ArchiveSource([str(path) for path in paths], columns, role, skipped, notes)
        return ParquetSource(paths, columns, skipped, notes)
    unread = next((path for path in others if path.lower().endswith(COMPRESSED)), None)
    if unread is not None:
        raise UserError(cannot_read_in_place(str(root / unread)))
    extensions = ", ".join(EXTENSIONS)
    lists = [str(root / path) for path in others if path.lower().endswith(LISTS)]
    hint = f"; a list of images is named itself: {lists[0]}" if lists else f"; {links[0]}" if links else ""
    raise UserError(f"{where}: no images in this folder; expected {extensions}, *.parquet, *.zip or *.tar{hint}")


def _of_images(
    root: Path, images: list[str], others: list[str], role: Role | None, where: str, skipped: tuple[LeftOut, ...]
) -> FileSource:
    """Open the images of a folder or, if it has folders of several splits, those of one.

    Args:
        root: the folder.
        images: their paths relative to it.
        others: paths of files that are not read, of links that lead nowhere and, with a slash, of folders.
        role: decides which split is read; None reads all.
        where: what the user called the folder.
        skipped: what was left out already.
    """
    notes: list[str] = []
    split = of_one_split(images, os.sep, role, where)
    if split is not None:
        notes.append(split.note)
        images, skipped = [images[k] for k in split.kept], (*skipped, *split.left_out)
        if split.folder:
            below, root = split.folder + os.sep, root / split.folder
            images = [path.removeprefix(below) for path in images]
            others = [path.removeprefix(below) for path in others if path.startswith(below)]
            notes.append(f"images below {below}")
    classes = class_names(images)
    if classes is None:
        alone = next(path for path in images if os.sep not in path)
        mixed = any(os.sep in path for path in images)
        unlabeled = f"{root / alone} lies beside the folders of the classes" if mixed else ""
        return FileSource(str(root), images, skipped, unlabeled=unlabeled, notes=notes)
    return FileSource(str(root), images, skipped, classes, notes=[*notes, *without_images(classes, others, os.sep)])


def _folders(paths: Sequence[str]) -> str:
    """Say from which folders files come if they come from several."""
    folders = sorted({os.path.dirname(path) for path in paths})
    shown = ", ".join(folder or "." for folder in folders[:3])
    return f"from {len(folders)} folders: {shown}{', ...' if len(folders) > 3 else ''}" if len(folders) > 1 else ""


def unused_columns(source: Opened, columns: Columns) -> list[str]:
    """Return the options of columns that a source without columns cannot use."""
    if isinstance(source, ParquetSource) or (isinstance(source, FileSource) and source.listed_in is not None):
        return []
    if isinstance(source, LitdataSource):
        return [] if columns.label is None else ["--label_column"]
    unused = [f"--{name}_column" for name, value in columns._asdict().items() if value is not None]
    if isinstance(source, ArchiveSource):  # which has labels in .json files
        unused = [name for name in unused if name != "--label_column"]
    return unused
