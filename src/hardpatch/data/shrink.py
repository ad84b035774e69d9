"""A set made smaller once, so that every run reads and decodes less."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from hardpatch.data.augment import resize, shrink_factor
from hardpatch.data.decode import Jpeg, UndecodableImage, open_image
from hardpatch.data.loader import batch_loader
from hardpatch.data.sources import Source
from hardpatch.errors import UserError

QUALITY = 95
MARGIN = 2.0
"""JPEGs are decoded at the smallest scale that leaves so many times the side."""
GROUP_ROWS = 16
"""Rows that are read together, since random access reads a whole row group for one image."""
SHARD_BYTES = 256 << 20
CHUNK = 16
"""Images that a worker makes at a time."""


def shrink(
    source: Source,
    out: Path,
    side: int,
    *,
    workers: int = 0,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> tuple[int, list[str]]:
    """Write Parquet files in the Hugging Face layout, `image` {bytes, path} and `label`, with shorter sides of `side`.

    The order is the source's. A file of an image that is no larger stays as it is; the others become JPEGs of quality
    95. There is no `out` before all of it is written.

    Args:
        source: the images; class names are kept.
        out: a folder that does not exist.
        side: pixels.
        workers: processes that decode and encode.
        progress: is told how many images of how many are done.

    Returns:
        How many images were written, and "name: reason" of those that cannot be decoded.

    Raises:
        UserError: if `out` exists or cannot be written, or if no image can be decoded.
    """
    if side < 1:
        raise UserError(f"--side: expected at least 1 pixel, got {side}")
    if out.exists():
        raise UserError(f"--out: expected a folder that does not exist yet, got {out}; take another name")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a call that was killed
    bad: list[str] = []
    try:
        partial.mkdir(parents=True)
        written = _write(source, _made(source, side, workers, bad, progress), partial)
        if not written:
            raise UserError(f"data: none of the {len(source)} images can be decoded; the last was {bad[-1]}")
        os.replace(partial, out)
    except OSError as error:
        raise UserError(f"--out: cannot write {out}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return written, bad


class _Shrunken(Dataset[list[bytes | str]]):
    """Chunk k of the source: the bytes of each image, or as text why there are none."""

    def __init__(self, source: Source, side: int) -> None:
        self.source, self.side = source, side

    def __len__(self) -> int:
        return -(-len(self.source) // CHUNK)

    def __getitem__(self, k: int) -> list[bytes | str]:
        return [self._made(i) for i in range(k * CHUNK, min((k + 1) * CHUNK, len(self.source)))]

    def _made(self, i: int) -> bytes | str:
        try:
            data = self.source.encoded(i)
            if data is None:
                return encode(smaller(self.source.image(i, 3), self.side))
        except UndecodableImage as error:
            return str(error)
        try:
            image = open_image(data)
            pixels = smaller(image, self.side)
        except UndecodableImage as error:
            return f"{self.source.name(i)}: {error}"
        return data if pixels.shape == image.shape else encode(pixels)


def smaller(image: npt.NDArray[np.uint8] | Jpeg, side: int) -> npt.NDArray[np.uint8]:
    """Pixels uint8 [H, W, C] with a shorter side of at most `side`; the aspect stays, but for rounding."""
    height, width = image.shape[:2]
    zoom = side / min(height, width)
    size = (max(1, round(height * zoom)), max(1, round(width * zoom))) if zoom < 1 else (height, width)
    if isinstance(image, Jpeg):
        image = image.pixels(shrink_factor(height, width, size, MARGIN) if zoom < 1 else 1)
    return resize(image, size)


def encode(pixels: npt.NDArray[np.uint8]) -> bytes:
    """A JPEG of quality 95, colors at half resolution as is usual."""
    import simplejpeg

    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=QUALITY, colorsubsampling="420")


def _made(
    source: Source, side: int, workers: int, bad: list[str], progress: Callable[[int, int | None], None]
) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each image in order; adds to `bad` what cannot be decoded."""
    i = 0
    for chunk in batch_loader(_Shrunken(source, side), None, workers):
        for made in chunk:
            if isinstance(made, str):
                bad.append(made)
            else:
                yield i, made
            i += 1
        progress(i, len(source))


def _write(source: Source, images: Iterator[tuple[int, bytes]], folder: Path) -> int:
    """As many files as it takes. Returns the number of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    features: dict[str, object] = {"image": {"_type": "Image"}}
    fields = [pa.field("image", pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())]))]
    if source.classes is not None:
        features["label"] = {"names": list(source.classes), "_type": "ClassLabel"}
        fields.append(pa.field("label", pa.int64()))
    schema = pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})
    written = shards = size = 0
    rows: list[dict[str, object]] = []
    writer: pq.ParquetWriter | None = None

    def flush() -> None:
        nonlocal writer, shards, rows
        if rows:
            if writer is None:
                # JPEGs do not compress, and statistics of bytes help nobody
                options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
                writer = pq.ParquetWriter(folder / f"images-{shards:05d}.parquet", schema, **options)
                shards += 1
            writer.write_table(pa.Table.from_pylist(rows, schema=schema), row_group_size=GROUP_ROWS)
            rows = []

    try:
        for i, data in images:
            rows.append({"image": {"bytes": data, "path": source.name(i)}})
            if source.classes is not None:
                rows[-1]["label"] = source.label(i)
            written += 1
            size += len(data)
            if len(rows) == GROUP_ROWS:
                flush()
            if size >= SHARD_BYTES and writer is not None:
                flush()
                writer.close()
                writer, size = None, 0
        flush()
    finally:
        if writer is not None:
            writer.close()
    return written
