"""Index of the files in a .zip or .tar archive: where each one's bytes are, so that they can be read in place."""

import stat
import struct
import tarfile
import zipfile
import zlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePath

from hardpatch.errors import UserError

ARCHIVES = (".zip", ".tar")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".7z", ".rar", ".gz")
"""Archives of which one file cannot be read without unpacking those before it, or that Python cannot read."""
MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}
STORED, DEFLATED, MEMBER = 0, 8, 255
"""Ways in which an entry is stored: in a zip as it is or deflated, or in a tar."""
NOTES_BYTES = 1 << 20
"""A .cls or .json larger than this is no label of one image."""
TEXT_BYTES = 2 << 30
"""Bytes of all of them together: entries of a few bytes can stand for gigabytes."""
BROKEN = (ValueError, LookupError, ArithmeticError, EOFError, MemoryError, RuntimeError)
"""Errors of Python's readers about damaged archives, beside their own."""
BLOCK = tarfile.BLOCKSIZE


@dataclass
class Index:
    """Files of an archive; the lists have one entry for each file that can be read, a later one of a name last."""

    names: list[str] = field(default_factory=list)
    offsets: "array[int]" = field(default_factory=lambda: array("q"))
    """of the data in a tar, of the entry's header in a zip"""
    sizes: "array[int]" = field(default_factory=lambda: array("q"))
    """stored bytes"""
    lengths: "array[int]" = field(default_factory=lambda: array("q"))
    """bytes of the file"""
    methods: "array[int]" = field(default_factory=lambda: array("B"))
    checksums: "array[int]" = field(default_factory=lambda: array("L"))
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """names of other entries by reason"""
    texts: dict[str, bytes] = field(default_factory=dict)
    """content of the small files that `wanted` asked for"""
    text_bytes: int = 0
    """of them together"""

    def add(self, name: str, offset: int, size: int, length: int, method: int, checksum: int = 0) -> None:
        """Add a file."""
        self.names.append(name)
        self.offsets.append(offset)
        self.sizes.append(size)
        self.lengths.append(length)
        self.methods.append(method)
        self.checksums.append(checksum)

    def keep(self, name: str, text: bytes) -> None:
        """Keep the content of a small file. Raises ValueError if there is too much of it."""
        self.text_bytes += len(text)
        if self.text_bytes > TEXT_BYTES:
            raise ValueError(f"more than {TEXT_BYTES:,} bytes of labels")
        self.texts[name] = text

    def leave_out(self, reason: str, name: str) -> None:
        """Note an entry that cannot be read."""
        self.left_out.setdefault(reason, []).append(name)


def read_index(path: str, wanted: Callable[[str], bool]) -> Index:
    """Read the index of a .zip or .tar.

    Args:
        path: of the archive.
        wanted: says by its name whether the content of a small file is to be kept.

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
    try:
        return _read_zip(path, wanted) if path.lower().endswith(".zip") else _read_tar(path, wanted)
    except OSError as error:
        raise UserError(f"{path}: cannot read this archive ({error.strerror or error})") from None


def cannot_read_in_place(path: str, how: str = "") -> str:
    """Return the refusal of an archive that has to be unpacked first."""
    kind = f"compressed as a whole ({how})" if how else "compressed as a whole"
    way = "gunzip it to a .tar" if how == "gzip" or path.lower().endswith((".tar.gz", ".tgz")) else "unpack it"
    return f"{path}: this archive is {kind}, so that images in it cannot be read one by one; {way}, or make it a .zip"


def _read_zip(path: str, wanted: Callable[[str], bool]) -> Index:
    index = Index()
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.is_dir():
                    continue
                name = entry.filename if "/" in entry.filename else entry.filename.replace("\\", "/")
                if entry.flag_bits & 1:
                    index.leave_out("encrypted files", name)
                elif stat.S_ISLNK(entry.external_attr >> 16):
                    index.leave_out("links", name)
                elif entry.compress_type not in (STORED, DEFLATED):
                    index.leave_out("files that are neither stored nor deflated", name)
                else:
                    sizes = entry.compress_size, entry.file_size
                    index.add(name, entry.header_offset, *sizes, entry.compress_type, entry.CRC)
                    if entry.file_size <= NOTES_BYTES and wanted(name):
                        index.keep(name, archive.read(entry))
    except (zipfile.BadZipFile, zlib.error, struct.error, *BROKEN) as error:
        raise UserError(f"{path}: no readable zip archive, it may be cut off ({error}); copy it again") from None
    if not index.names and "encrypted files" in index.left_out:
        raise UserError(f"{path}: expected an archive without a password, all its files are encrypted; unpack it")
    return index


def _read_tar(path: str, wanted: Callable[[str], bool]) -> Index:
    index = Index()
    try:
        with tarfile.open(path, "r:", errors="surrogateescape") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # it would keep all
                if member.isdir():
                    continue
                if member.sparse is not None or not member.isreg():
                    index.leave_out("links" if member.issym() or member.islnk() else "special files", member.name)
                    continue
                index.add(member.name, member.offset_data, member.size, member.size, MEMBER)
                if member.size <= NOTES_BYTES and wanted(member.name):
                    with open(path, "rb") as file:
                        file.seek(member.offset_data)
                        index.keep(member.name, file.read(member.size))
            end = archive.offset
    except (tarfile.TarError, *BROKEN) as error:
        found = f"after {len(index.names)} files" if index.names else "at its start"
        raise UserError(f"{path}: this tar archive is cut off or damaged {found} ({error}); copy it again") from None
    _check_end(path, end, len(index.names))
    return index


def _check_end(path: str, end: int, files: int) -> None:
    """Refuse a tar whose entries do not end with the mark that belongs there.

    tarfile takes a damaged header for the end, and does not look behind the mark.
    """
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


def is_hidden(name: str) -> bool:
    """Return whether an entry is one that file managers hide, or macOS's copy of metadata."""
    return any(part == "__MACOSX" or (part.startswith(".") and part not in (".", "..")) for part in name.split("/"))


def suffix(name: str) -> str:
    """Return the suffix of a name in lower case."""
    return PurePath(name).suffix.lower()
