"""Indices of tar archives kept in a file, `.hardpatch-index`: made once, mapped into memory, not read.

The file begins with a line of JSON about each archive; behind it lie the columns of all of them. It is beside the
archives or, where that folder cannot be written, in the user's cache. An archive of another size or time of
modification than the file says is read again.
"""

import hashlib
import json
import logging
import mmap
import os
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hardpatch.data.archive_entries import Entries
from hardpatch.data.archive_index import read_index
from hardpatch.data.left_out import LeftOut
from hardpatch.errors import UserError
from hardpatch.files import atomic_path, reason_of

NAME = ".hardpatch-index"
MAGIC = b"hardpatch index 1\n"
KEPT = 10_000
"""Files in new archives from which on their index is kept."""
SAVED = 60.0
"""Seconds between two times that an index is kept while it is made."""
ALIGNED = 64
ARRAYS = {"ends": "<i8", "names": "|u1", "offsets": "<i8", "sizes": "<u4", "folder_of": "<i4"}
TEXTS = ("folders", "other_folders", "values", "keys", "asked", "files")
LARGE = 1 << 30
"""Bytes of archives from which on making their index is announced."""

log = logging.getLogger("hardpatch")


class Stored(NamedTuple):
    """An archive in an index file."""

    size: int
    modified: int
    """nanoseconds"""
    entries: Entries


def read_indices(archives: Sequence[str], keys: Collection[str] = ()) -> tuple[list[Entries], list[str]]:
    """Return the images of several archives, and what is to be said about their indices.

    Args:
        archives: paths.
        keys: of `.json` files whose values are needed.

    Raises:
        UserError: if an archive cannot be read.
    """
    found: dict[str, Entries] = {path: read_index(path, keys) for path in archives if not _is_tar(path)}
    notes: list[str] = []
    folders: dict[str, list[str]] = {}
    for path in archives:
        if _is_tar(path):
            folders.setdefault(os.path.dirname(path), []).append(path)
    for folder, paths in folders.items():
        entries, said = _of_folder(folder, paths, keys)
        found.update(zip(paths, entries, strict=True))
        notes += said
    return [found[path] for path in archives], notes


def _is_tar(path: str) -> bool:
    return path.lower().endswith(".tar")


def _of_folder(folder: str, archives: Sequence[str], keys: Collection[str]) -> tuple[list[Entries], list[str]]:
    """Return the images of tar archives that lie in one folder."""
    files = [Path(folder, NAME), cache_file(folder)]
    stored = next((content for content in map(load, files) if content), {})
    names = [os.path.basename(path) for path in archives]
    current = {name: _state(path) for name, path in zip(names, archives, strict=True)}
    known = {name: stored[name] for name in names if name in stored and stored[name][:2] == current[name]}
    known = {name: old for name, old in known.items() if {*keys} <= {*old.entries.values, *old.entries.asked}}
    changed = sum(name in stored and stored[name][:2] != current[name] for name in names)
    missing = [path for name, path in zip(names, archives, strict=True) if name not in known]
    if not missing:
        return [known[name].entries for name in names], []
    total = sum(max(0, current[os.path.basename(path)][0]) for path in missing)
    if total > LARGE:
        log.info("%s: making the index of %d archives, %.1f GB; this is done once", folder, len(missing), total / 1e9)
    # those of archives that are not asked for now stay in the file
    kept = {
        name: old for name, old in stored.items() if name not in current and _state(os.path.join(folder, name))[0] >= 0
    }
    made, last = 0, time.monotonic()
    for path in missing:
        name = os.path.basename(path)
        known[name] = Stored(*current[name], read_index(path, keys))
        made += known[name].entries.files
        if made >= KEPT and time.monotonic() - last > SAVED:
            save(files, {**kept, **known})
            last = time.monotonic()
    notes = [f"index of {changed} archives made anew, as they had changed"] if changed else []
    if made >= KEPT or stored:
        place = save(files, {**kept, **known})
        notes.append(place)
        again = next((content for content in map(load, files) if content), {})  # mapped, no longer in memory
        known = {name: again.get(name, known[name]) for name in names}
    return [known[name].entries for name in names], notes


def cache_file(folder: str) -> Path:
    """Return the index file of a folder that cannot be written, in HARDPATCH_CACHE or the user's cache."""
    own = os.environ.get("HARDPATCH_CACHE", "")
    cache = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hardpatch"
    digest = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:16]
    return cache / f"{digest}{NAME}"


def _state(path: str) -> tuple[int, int]:
    """Size and time of modification of a file; -1 if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def save(files: Sequence[Path], archives: Mapping[str, Stored]) -> str:
    """Write an index file, to the first of these places that can be written. Returns a line that says where."""
    reason = ""
    for file in files:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(file, concurrent=True) as partial:
                _write(partial, archives)
            return f"index kept in {file} ({file.stat().st_size / 1e6:.1f} MB)"
        except OSError as error:
            reason = reason or f"index not kept, since {file} cannot be written: {reason_of(error)}"
    return reason


def _write(file: Path, archives: Mapping[str, Stored]) -> None:
    described: dict[str, Any] = {}
    arrays: list[np.ndarray[Any, Any]] = []
    position = 0
    for name, (size, modified, entries) in archives.items():
        columns = {key: getattr(entries, key) for key in ARRAYS}
        columns |= {f"code {key}": codes for key, codes in entries.codes.items()}
        places = {}
        for key, column in columns.items():
            places[key] = position, len(column)
            arrays.append(column)
            position += -(-column.nbytes // ALIGNED) * ALIGNED
        texts = {key: getattr(entries, key) for key in TEXTS}
        left_out = [[entry.reason, entry.count, entry.first, entry.kinds] for entry in entries.left_out]
        described[name] = {"size": size, "modified": modified, "places": places, "left_out": left_out, **texts}
    header = json.dumps(described).encode() + b"\n"
    with open(file, "wb") as out:
        out.write(MAGIC + header.ljust(-(-(len(header) + len(MAGIC)) // ALIGNED) * ALIGNED - len(MAGIC), b"\n"))
        for array in arrays:
            out.write(np.ascontiguousarray(array).data)
            out.write(bytes(-array.nbytes % ALIGNED))


def load(file: Path) -> dict[str, Stored]:
    """Map an index file into memory; a missing or damaged one holds nothing."""
    with (
        suppress(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError),
        open(file, "rb") as opened,
    ):
        if opened.read(len(MAGIC)) != MAGIC:
            return {}
        described = json.loads(opened.readline())
        start = -(-opened.tell() // ALIGNED) * ALIGNED
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        return {name: _stored(file, name, values, mapped, start) for name, values in described.items()}
    return {}


def _stored(file: Path, name: str, values: Mapping[str, Any], mapped: mmap.mmap, start: int) -> Stored:
    """Return an archive of an index file. Raises an error of many kinds if it is damaged."""
    columns: dict[str, Any] = {}
    for key, (position, count) in values["places"].items():
        if position < 0 or count < 0:
            raise ValueError(key)
        columns[key] = np.frombuffer(mapped, ARRAYS.get(key, "<i4"), count, start + position)
    codes = {key.removeprefix("code "): column for key, column in columns.items() if key not in ARRAYS}
    texts: dict[str, Any] = {key: values[key] for key in TEXTS}
    entries = MappedEntries(
        **{key: columns[key] for key in ARRAYS},
        **texts,
        codes=codes,
        zipped=np.zeros((0, 3), np.uint32),
        left_out=[LeftOut(*entry) for entry in values["left_out"]],
    )
    entries.origin = str(file), name
    _check(entries)
    return Stored(values["size"], values["modified"], entries)


def _check(entries: Entries) -> None:
    """Raise ValueError for columns that do not belong together, as of a damaged file."""
    columns: list[Any] = [entries.ends, entries.sizes, entries.folder_of, *entries.codes.values()]
    if any(len(column) != len(entries) for column in columns) or (
        len(entries) and entries.ends[-1] != len(entries.names)
    ):
        raise ValueError("lengths")
    limits: list[tuple[Any, int]] = [(entries.folder_of, len(entries.folders))]
    limits += [(codes, len(entries.values[key])) for key, codes in entries.codes.items()]
    if any(len(codes) and not -1 <= int(codes.min()) <= int(codes.max()) < limit for codes, limit in limits):
        raise ValueError("codes")
    if len(entries) and entries.folder_of.min() < 0:
        raise ValueError("folders")


class MappedEntries(Entries):
    """Images of an archive in an index file. A copy that is sent to another process maps the file itself."""

    origin: tuple[str, str]
    """index file, and name of the archive in it"""

    def __reduce__(self) -> Any:
        return _map_again, self.origin


def _map_again(file: str, name: str) -> Entries:
    """Return an archive of an index file, in another process. Raises UserError if the file is gone by then."""
    stored = load(Path(file)).get(name)
    if stored is None:
        raise UserError(f"{file}: this index was removed or replaced while it was in use; start again")
    return stored.entries
