"""Fingerprint of the images of a set, which does not depend on where they lie."""

import hashlib
import os

from hardpatch.data.sources import OpenedSource

READ = 1000
"""Files, evenly spread over the set, whose content counts; of the others names and sizes do."""
BLOCK, BLOCKS = 1 << 16, 16
"""Bytes of a block, and blocks that are read of a file, evenly spread; smaller files are read whole."""


def content_digest(source: OpenedSource) -> str:
    """Return a digest of names, sizes and content of the files of a set.

    It is the same wherever the folder lies. An image that is replaced by another one of the same name and size is
    noticed if it is one of the files that are read: any one in a set of up to :data:`READ` files.
    """
    files = list(source.files())
    root = os.path.dirname(files[0]) if len(files) == 1 else os.path.commonpath(files) if files else ""
    digest = hashlib.blake2b(f"{len(source)}\n".encode(), digest_size=16)
    read = {round(k * (len(files) - 1) / max(1, READ - 1)) for k in range(READ)} if len(files) > READ else None
    for k, file in enumerate(files):
        digest.update(os.path.relpath(file, root or ".").encode(errors="surrogateescape") + b"\0")
        try:
            size = os.path.getsize(file)
            digest.update(f"{size}\n".encode())
            if read is None or k in read:
                _add_content(digest, file, size)
        except (OSError, ValueError):  # within an archive, or gone
            continue
    return digest.hexdigest()


def _add_content(digest: "hashlib.blake2b", file: str, size: int) -> None:
    with open(file, "rb", buffering=0) as stream:
        if size <= BLOCK * BLOCKS:
            digest.update(stream.read())
            return
        for k in range(BLOCKS):
            stream.seek(k * (size - BLOCK) // (BLOCKS - 1))
            digest.update(stream.read(BLOCK))
