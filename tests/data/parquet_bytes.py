"""Parquet files with changed bytes, as a program of its own: a crash of pyarrow would end the process."""

import io
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given

from hardpatch.data import parquet
from hardpatch.data.parquet import ParquetSource
from tests.data.small import png
from tests.fuzz import EXAMPLES, fuzz_settings, mutated, outcome


def contents() -> list[bytes]:
    """Files of several layouts, encodings and compressions."""
    images = [png(k) for k in range(6)]
    structs = [{"bytes": image, "path": f"{k}.png"} for k, image in enumerate(images)]
    tables: list[tuple[dict[str, object], dict[str, object]]] = [
        ({"image": images, "label": [0, 1] * 3}, {"compression": "snappy"}),
        ({"image": structs, "label": ["a", "b", None] * 2}, {"compression": "none", "use_dictionary": False}),
        ({"image": structs, "label": [True, False] * 3}, {"compression": "zstd", "write_page_checksum": True}),
        ({"path": ["a.png", "b.png"] * 3, "label": [0.0, 1.0] * 3}, {"data_page_version": "2.0"}),
    ]
    files = []
    for columns, options in tables:
        file = io.BytesIO()
        pq.write_table(pa.table(columns), file, row_group_size=2, **options)
        files.append(file.getvalue())
    return files


@fuzz_settings
@given(data=mutated(contents()))
def check(data: bytes) -> None:
    """Open a file and read all of it, both ways; nothing but the project's own errors may come of it."""
    path = Path(tempfile.gettempdir(), f"{sys.argv[1]}.parquet")
    path.write_bytes(data)  # stays behind a crash
    for resident in (0, 1 << 20):
        with patch.object(parquet, "RESIDENT_BYTES", resident):
            source = outcome(lambda: ParquetSource([path]), path)
            if source is None:
                continue
            if resident:  # else pyarrow is asked for statistics, and ends the process where those are damaged
                assert sum(1 for _ in source.files()) >= 1
            for i in range(min(len(source), 20)):
                assert str(path) in source.name(i)
                assert source.label(i) is None or source.classes is not None
                outcome(lambda i=i, source=source: source.image(i), path)  # type: ignore[misc]
    path.unlink()


if __name__ == "__main__":
    started = time.monotonic()
    check()
    print(f"{EXAMPLES} files, {60 * EXAMPLES / (time.monotonic() - started):.0f} a minute")
