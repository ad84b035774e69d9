"""Index of the images in a .zip or .tar archive: where each one's bytes are, so that they can be read in place."""

import stat
import struct
import zipfile
import zlib
from collections.abc import Collection
from pathlib import PurePath

from hardpatch.data.archive_entries import Entries, EntriesBuilder
from hardpatch.data.tar_members import BLOCK, TarMembers
from hardpatch.errors import UserError

ARCHIVES = (".zip", ".tar")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".7z", ".rar", ".gz")
"""Archives of which one file cannot be read without unpacking those before it, or that Python cannot read."""
MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}
STORED, DEFLATED = 0, 8
"""Ways in which an entry of a zip is stored."""
BROKEN = (ValueError, LookupError, ArithmeticError, EOFError, MemoryError, RuntimeError)
"""Errors of Python's readers about damaged archives, beside their own."""


def read_index(path: str, keys: Collection[str] = ()) -> Entries:
    """Read the index of a .zip or .tar.

    Args:
        path: of the archive.
        keys: of `.json` files whose values are kept, beside those that may be labels by their names.

    Raises:
        UserError: if the archive is cut off, damaged or encrypted, or cannot be read in place.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(8)
    except OSError as error:
        raise UserError(f"{path}: cannot read this archive ({error.strerror})") from None
    compressed = next((name for magic, name in MAGIC.items() if start.startswith(magic)), None)
    if compressed is not None:
        raise UserError(cannot_read_in_place(path, compressed))
    builder = EntriesBuilder(path, keys)
    try:
        if path.lower().endswith(".zip"):
            _read_zip(path, builder)
        else:
            _read_tar(path, builder)
    except OSError as error:
        raise UserError(f"{path}: cannot read this archive ({error.strerror or error})") from None
    return builder.entries()


def cannot_read_in_place(path: str, how: str = "") -> str:
    """Return the refusal of an archive that has to be unpacked first."""
    kind = f"compressed as a whole ({how})" if how else "compressed as a whole"
    way = "gunzip it to a .tar" if how == "gzip" or path.lower().endswith((".tar.gz", ".tgz")) else "unpack it"
    return f"{path}: this archive is {kind}, so that images in it cannot be read one by one; {way}, or make it a .zip"


def _read_zip(path: str, builder: EntriesBuilder) -> None:
    encrypted = 0
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.is_dir():
                    continue
                name = entry.filename if "/" in entry.filename else entry.filename.replace("\\", "/")
                if entry.flag_bits & 1:
                    builder.leave_out("encrypted files", name)
                    encrypted += 1
                elif stat.S_ISLNK(entry.external_attr >> 16):
                    builder.leave_out("links", name)
                elif entry.compress_type not in (STORED, DEFLATED):
                    builder.leave_out("files that are neither stored nor deflated", name)
                else:
                    builder.add(
                        name,
                        entry.header_offset,
                        entry.compress_size,
                        lambda entry=entry: archive.read(entry),  # type: ignore[misc]
                        (entry.file_size, entry.compress_type, entry.CRC),
                    )
    except (zipfile.BadZipFile, zlib.error, struct.error, *BROKEN) as error:
        raise UserError(f"{path}: no readable zip archive, it may be cut off ({error}); copy it again") from None
    if not builder.files and encrypted:
        raise UserError(f"{path}: expected an archive without a password, all its files are encrypted; unpack it")


def _read_tar(path: str, builder: EntriesBuilder) -> None:
    members = TarMembers(path)
    try:
        for name, offset, size, reason in members:
            if reason:
                builder.leave_out(reason, name)
            else:
                builder.add(name, offset, size, lambda offset=offset, size=size: members.content(offset, size))  # type: ignore[misc]
    except BROKEN as error:
        found = f"after {builder.files} files" if builder.files else "at its start"
        raise UserError(f"{path}: this tar archive is cut off or damaged {found} ({error}); copy it again") from None
    finally:
        members.close()
    _check_end(path, members.end, builder.files)


def _check_end(path: str, end: int, files: int) -> None:
    """Refuse a tar whose entries do not end with the mark that belongs there, and one that goes on behind it."""
    with open(path, "rb") as file:
        file.seek(end)
        mark, rest = file.read(BLOCK), file.read(BLOCK << 10)
    if mark != bytes(BLOCK):
        raise UserError(f"{path}: this tar archive is cut off or damaged after {files} files; copy it again")
    if rest.strip(b"\0"):
        raise UserError(
            f"{path}: this tar archive goes on behind its end mark after {files} files, as joined archives do; unpack "
            "it and make one archive"
        )


def suffix(name: str) -> str:
    """Return the suffix of a name in lower case."""
    return PurePath(name).suffix.lower()
