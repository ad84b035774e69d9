"""Members of a tar archive, from their headers alone, some hundred thousand a second.

Plain headers are read here. Everything else (long names, sizes above 8 GiB, sparse files, damage) is left to tarfile,
which takes ten times as long for a header.
"""

import os
import tarfile
import zlib
from collections.abc import Iterator
from typing import NamedTuple

BLOCK = tarfile.BLOCKSIZE
NEAR, FAR = 1 << 20, 1 << 12
"""Bytes that are read at once, where members are small and where headers are far apart."""
SMALL = 1 << 14
"""A member below this size counts as small."""
EXTENDED_BYTES = 1 << 20
"""An extended header larger than this is none."""
HARMLESS = frozenset((b"mtime", b"atime", b"ctime", b"uid", b"gid", b"uname", b"gname", b"comment"))
"""Keys of extended headers that do not matter here; each member that the package webdataset writes has an mtime."""


class Member(NamedTuple):
    """A file in a tar archive, or something else that has a name there."""

    name: str
    offset: int
    """of its content"""
    size: int
    left_out: str
    """why it cannot be read as a file, in the plural; empty for a file"""


class TarMembers:
    """Iterate over the members of an uncompressed tar, but its folders. `end` is then the place of the end mark.

    Raises ValueError from the iterator if the archive is cut off or damaged.
    """

    def __init__(self, path: str) -> None:
        self.path, self.end = path, 0
        self._file = os.open(path, os.O_RDONLY)
        self._length = os.fstat(self._file).st_size
        self._start, self._read = 0, b""
        self._tarfile: tarfile.TarFile | None = None

    def close(self) -> None:
        """Close the archive."""
        os.close(self._file)
        if self._tarfile is not None:
            self._tarfile.close()

    def content(self, offset: int, size: int) -> bytes:
        """Read bytes of the archive, from memory if they lie beside the header that was read last."""
        first = offset - self._start
        if first >= 0 and first + size <= len(self._read):
            return self._read[first : first + size]
        return os.pread(self._file, size, offset)

    def __iter__(self) -> Iterator[Member]:
        position, ahead, slowly = 0, NEAR, False
        while True:
            first = position - self._start
            if first < 0 or first + BLOCK > len(self._read):
                self._start, self._read, first = position, os.pread(self._file, ahead, position), 0
            header = self._read[first : first + BLOCK]
            if not header.strip(b"\0"):
                self.end = position
                return
            size = -1 if slowly else _plain_size(header)
            kind = header[156:157]
            if size >= 0 and kind in (b"x", b"g"):
                if size > EXTENDED_BYTES:
                    raise ValueError(f"an extended header of {size:,} bytes")
                if _harmless(self.content(position + BLOCK, size)):
                    position += BLOCK + _padded(size)
                    self._check(position)
                    continue
                slowly = kind == b"g"  # which holds for all that follow
                size = -1
            if size >= 0 and kind in (b"0", b"\0") and not (name := _name(header)).endswith("/"):
                member = Member(name, position + BLOCK, size, "")
                position += BLOCK + _padded(size)
                self._check(position)
                yield member
            else:
                found, position = self._by_tarfile(position)
                size = found.size
                self._check(position)
                if found.sparse is not None or not found.isreg():
                    reason = "links" if found.issym() or found.islnk() else "special files"
                    if not found.isdir():
                        yield Member(found.name, found.offset_data, 0, reason)
                elif size < 0:
                    raise ValueError("a size below zero")
                else:
                    yield Member(found.name, found.offset_data, size, "")
            ahead = NEAR if size < SMALL else FAR

    def _by_tarfile(self, position: int) -> tuple[tarfile.TarInfo, int]:
        """Read the member at a position with tarfile; also return the position behind it."""
        try:
            if self._tarfile is None:
                self._tarfile = tarfile.open(self.path, "r:", errors="surrogateescape")  # noqa: SIM115 (closed with this)
            archive = self._tarfile
            assert archive.fileobj is not None
            archive.fileobj.seek(position)
            member = tarfile.TarInfo.fromtarfile(archive)
        except tarfile.TarError as error:
            raise ValueError(str(error)) from None
        behind: int = archive.offset
        if behind <= position:
            raise ValueError("a member that ends before it begins")
        return member, behind

    def _check(self, position: int) -> None:
        if position > self._length:
            raise ValueError("unexpected end of data")


def _plain_size(header: bytes) -> int:
    """Return the size in a header if it is whole and its checksum right, else -1."""
    try:
        checksum = int(header[148:156].strip(b" \0"), 8)
        size = int(header[124:136].strip(b" \0") or b"0", 8)
    except ValueError:
        return -1
    # The checksum is the sum of all bytes, with spaces for itself. The low half of Adler-32 is such a sum, modulo
    # 65521, and takes a fifteenth of the time of `sum`.
    total = (zlib.adler32(header) & 0xFFFF) - 1 - sum(header[148:156]) + 8 * 32
    return size if len(header) == BLOCK and (total - checksum) % 65521 == 0 else -1


def _name(header: bytes) -> str:
    name = header[: header.find(b"\0", 0, 100)] if b"\0" in header[:100] else header[:100]
    if header[345]:
        prefix = header[345:500].split(b"\0", 1)[0]
        name = prefix + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _harmless(records: bytes) -> bool:
    """Return whether an extended header says nothing of names and sizes."""
    at = 0
    try:
        while at < len(records):
            space = records.index(b" ", at)
            length = int(records[at:space])
            if length <= space - at or records[space + 1 : records.index(b"=", space)] not in HARMLESS:
                return False
            at += length
    except ValueError:
        return False
    return True
