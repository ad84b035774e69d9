"""Fingerprint of the images of a set, which does not depend on where they lie."""

import hashlib
import os
from collections.abc import Container, Sequence
from pathlib import Path

from hardpatch.data.csv_list import LISTS, values_beside_images
from hardpatch.data.sources import OpenedSource, Paths, open_source
from hardpatch.errors import UserError

READ = 1000
"""Files, evenly spread over the set, whose content counts."""
SIZED = 100_000
"""Files, likewise, whose size counts; of the others names do."""
BLOCK, BLOCKS = 1 << 16, 4
"""Bytes of a block, and blocks that are read of a file, evenly spread; smaller files are read whole."""


def content_digest(source: OpenedSource) -> str:
    """Return a digest of names, sizes and content of the files of a set.

    It is the same wherever the folder lies. An image that is replaced by another one of the same name and size is
    noticed if it is one of the files that are read: any one in a set of up to :data:`READ` files.
    """
    return _digest(list(source.files()), len(source))


def path_digest(path: Paths) -> str | None:
    """Return a digest, like :func:`content_digest`, of all files below a path, of label maps and annotations too.

    Of a list or a pattern it is that of the images that are named, and of what a list says beside them.

    Args:
        path: a folder, a file, a list, a pattern, or several of them.

    Returns:
        None for the embedded set, and where there is nothing.
    """
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    files: list[str] = []
    values: list[list[list[str]]] = []
    for place in map(Path, paths):
        if place.is_dir():
            files += sorted(
                os.path.join(folder, name)
                for folder, _, names in os.walk(place)
                for name in names
                if not name.startswith(".")  # an index that hardpatch wrote
            )
        elif place.is_file() and place.suffix.lower() not in LISTS:
            files.append(str(place))
        else:
            try:
                files += open_source(place).files()
                if place.suffix.lower() in LISTS:
                    values.append(values_beside_images(place))
            except UserError:  # the verb says what is wrong with it
                return None
    return _digest(files, len(files), repr(values) if values else "") if files else None


def _digest(files: Sequence[str], images: int, values: str = "") -> str:
    files = [file for file in files if not file.lower().endswith(LISTS)]  # they hold paths, which do not count
    root = os.path.dirname(files[0]) if len(files) == 1 else os.path.commonpath(files) if files else ""
    digest = hashlib.blake2b(f"{images}\n{values}".encode(errors="surrogateescape"), digest_size=16)
    read, sized = _spread(len(files), READ), _spread(len(files), SIZED)
    folders: dict[str, str] = {}
    for k, file in enumerate(files):
        folder, name = os.path.split(file)
        if folder not in folders:  # as there are far fewer of them than files
            folders[folder] = os.path.relpath(folder or ".", root or ".")
        relative = name if folders[folder] == os.curdir else os.path.join(folders[folder], name)
        digest.update(relative.encode(errors="surrogateescape") + b"\0")
        if k not in sized:
            continue
        try:
            size = os.path.getsize(file)
            digest.update(f"{size}\n".encode())
            if k in read:
                _add_content(digest, file, size)
        except (OSError, ValueError):  # within an archive, or gone
            continue
    return digest.hexdigest()


def _spread(files: int, chosen: int) -> Container[int]:
    """Return the positions of some files, evenly spread."""
    if files <= chosen:
        return range(files)
    return {round(k * (files - 1) / max(1, chosen - 1)) for k in range(chosen)}


def _add_content(digest: "hashlib.blake2b", file: str, size: int) -> None:
    with open(file, "rb", buffering=0) as stream:
        if size <= BLOCK * BLOCKS:
            digest.update(stream.read())
            return
        for k in range(BLOCKS):
            stream.seek(k * (size - BLOCK) // (BLOCKS - 1))
            digest.update(stream.read(BLOCK))
