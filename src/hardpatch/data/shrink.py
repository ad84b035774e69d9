"""Shrinking a data set once, so that every run reads and decodes less."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from hardpatch.data.bad_files import nothing_decodable
from hardpatch.data.loader import batch_loader
from hardpatch.data.reading import UndecodableImage
from hardpatch.data.smaller_copy import smaller_copy
from hardpatch.data.sources import Source
from hardpatch.errors import UserError
from hardpatch.files import atomic_path, reason_of
from hardpatch.printable import printable

GROUP_ROWS = 16
"""Rows of a row group, which random access reads as a whole for one image."""
SHARD_BYTES = 256 << 20
"""Size of a Parquet file, about."""
CHUNK = 16
"""Images that a worker shrinks at a time."""


def shrink(
    source: Source,
    out: Path,
    side: int,
    *,
    workers: int = 0,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> tuple[int, list[str]]:
    """Write smaller images of a source as Parquet files in the Hugging Face layout.

    The columns are `image` {bytes, path} and, for a labeled source, `label`. The order is that of the source. An image
    whose shorter side is at most `side` keeps its file, unless it is stored turned. The others become JPEGs of quality
    95, upright; those of more than 8 bits or of other channels than gray and RGB become TIFFs, without loss but for the
    resizing. What is transparent becomes white. The folder `out` appears when all of it is written.

    Args:
        source: the images; class names are kept.
        out: a folder that does not exist.
        side: shorter side of the images in pixels.
        workers: processes that decode and encode.
        progress: called with the number of images done and of all images.

    Returns:
        The number of images written, and "name: reason" of those that cannot be decoded.

    Raises:
        UserError: if `out` exists or cannot be written, or if no image can be decoded.
    """
    if side < 1:
        raise UserError(f"--side: expected at least 1 pixel, got {side}")
    check_out(out)
    bad: list[str] = []
    written = 0
    try:
        with atomic_path(out) as partial:
            partial.mkdir(parents=True)
            with closing(_Writer(partial, source.classes)) as writer:
                for i, data in _shrunken(source, side, workers, bad, progress):
                    writer.add(data, printable(source.name(i)), source.label(i))
                    written += 1
            if not written:
                raise nothing_decodable(len(source), bad)
    except OSError as error:
        raise UserError(f"--out: cannot write {out}: {reason_of(error)}") from None
    return written, bad


def check_out(out: Path) -> None:
    """Raise UserError if the folder to write exists."""
    if out.exists():
        raise UserError(f"--out: expected a folder that does not exist yet, got {out}; take another name")


class _ShrinkingDataset(Dataset[list[bytes | str]]):
    """Chunk k of a source: for each image the bytes of the smaller one, or "name: reason" if it cannot be decoded."""

    def __init__(self, source: Source, side: int) -> None:
        self.source, self.side = source, side

    def __len__(self) -> int:
        return -(-len(self.source) // CHUNK)

    def __getitem__(self, k: int) -> list[bytes | str]:
        return [self._shrink(i) for i in range(k * CHUNK, min((k + 1) * CHUNK, len(self.source)))]

    def _shrink(self, i: int) -> bytes | str:
        try:
            return smaller_copy(self.source, i, self.side).data
        except UndecodableImage as error:
            return str(error)


def _shrunken(
    source: Source, side: int, workers: int, bad: list[str], progress: Callable[[int, int | None], None]
) -> Iterator[tuple[int, bytes]]:
    """Yield the index and the bytes of each image in order; those that cannot be decoded are added to `bad`."""
    i = 0
    for chunk in batch_loader(_ShrinkingDataset(source, side), None, workers):
        for data in chunk:
            if isinstance(data, str):
                bad.append(data)
            else:
                yield i, data
            i += 1
        progress(i, len(source))


class _Writer:
    """Parquet files of about SHARD_BYTES in a folder."""

    def __init__(self, folder: Path, classes: tuple[str, ...] | None) -> None:
        import pyarrow as pa

        features: dict[str, object] = {"image": {"_type": "Image"}}
        fields = [pa.field("image", pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())]))]
        if classes is not None:
            features["label"] = {"names": list(map(printable, classes)), "_type": "ClassLabel"}
            fields.append(pa.field("label", pa.int64()))
        self.schema = pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})
        self.folder, self.labeled = folder, classes is not None
        self.shards = self.bytes_in_shard = 0
        self._rows: list[dict[str, object]] = []
        self._file: Any = None

    def add(self, data: bytes, path: str, label: int | None) -> None:
        self._rows.append({"image": {"bytes": data, "path": path}} | ({"label": label} if self.labeled else {}))
        self.bytes_in_shard += len(data)
        if len(self._rows) == GROUP_ROWS:
            self._write_rows()
        if self.bytes_in_shard >= SHARD_BYTES and self._file is not None:
            self.close()

    def close(self) -> None:
        """Finish the current file."""
        self._write_rows()
        if self._file is not None:
            self._file.close()
        self._file, self.bytes_in_shard = None, 0

    def _write_rows(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self._rows:
            return
        if self._file is None:
            # JPEGs do not compress, and statistics of bytes have no use
            options = {
                "compression": "none",
                "use_dictionary": False,
                "write_statistics": False,
                "write_page_checksum": True,
            }
            self._file = pq.ParquetWriter(self.folder / f"images-{self.shards:05d}.parquet", self.schema, **options)
            self.shards += 1
        rows, self._rows = self._rows, []  # not written again where the disk refuses
        self._file.write_table(pa.Table.from_pylist(rows, schema=self.schema), row_group_size=GROUP_ROWS)
