"""Names of images relative to their common folder, for files that are written beside no original."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

from hardpatch.data.sources import Source

ROW = re.compile(r"(?P<file>.*) row (?P<row>\d+)( \((?P<path>.*)\))?", re.DOTALL)
"""Names of the images in Parquet files"""
LONGEST = 255
"""Bytes of a name in the usual file systems"""


def relative_names(source: Source) -> list[str]:
    """Return the path of each image below the folder that all of them lie in, with ``/`` and nothing above it.

    Names keep all their characters. An image in a Parquet file has the path that is stored there, or else its row.
    """
    names = [_as_path(source.name(i)) for i in range(len(source))]
    folders = [name.split("/")[:-1] for name in names]
    least = min(map(len, folders))
    depth = next((k for k in range(least) if len({parts[k] for parts in folders}) > 1), least)
    return ["/".join(_harmless(name.split("/")[depth:])) for name in names]


def map_names(relative: Sequence[str]) -> list[str]:
    """Return a name for a PNG file for each image: its own, with the suffix ``.png``, and none twice."""
    stems = [str(PurePosixPath(name).with_suffix("")) if PurePosixPath(name).suffix else name for name in relative]
    count, names, taken = Counter(stems), [], set[str]()
    for number, (name, stem) in enumerate(zip(relative, stems, strict=True)):
        file = f"{stem if count[stem] == 1 else name}.png"
        if file in taken or any(len(os.fsencode(part)) > LONGEST for part in file.split("/")):
            file = f"{number:06d}.png"
        taken.add(file)
        names.append(file)
    return names


def _as_path(name: str) -> str:
    row = ROW.fullmatch(name)
    if row is not None and ".parquet" in row["file"].lower():
        return f"{row['file']}/{row['path'] or format(int(row['row']), '06d')}"
    return name.replace(os.sep, "/")


def _harmless(parts: Sequence[str]) -> list[str]:
    """Leave out parts that lead to another folder, which archives and tables may hold."""
    return [part.replace("\0", "") for part in parts if part.strip("\0") not in ("", ".", "..")] or ["image"]
