"""Small images, sources and batches for the tests of hardpatch.data."""

import io
import itertools
import json
import os
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from hardpatch.data.augment import EvalTransform, TrainTransform
from hardpatch.data.batch import Batch
from hardpatch.data.sources import Source, open_source
from hardpatch.errors import UserError

# torch warns if a machine has fewer cores than a loader has workers, as a test machine may
MANY_WORKERS = "ignore:This DataLoader will create"
NOT_AN_IMAGE = "not a JPEG, PNG, WebP, TIFF, BMP, GIF, PNM, JPEG 2000 or AVIF file"

TRAIN = TrainTransform((16, 16))
EVAL = EvalTransform((16, 16))


def png(value: int) -> bytes:
    """Encode an image of one gray level, 6 x 5 pixels."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((6, 5, 3), value, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_png(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(value))
    return path


def write_parquet(
    path: Path,
    data: Sequence[bytes | None],
    labels: Sequence[int | None] | None = None,
    class_names: Sequence[str] | None = None,
    row_group_size: int = 4,
    column: str = "image",
) -> Path:
    rows = [{"bytes": item, "path": f"{k}.png"} for k, item in enumerate(data)]
    columns: dict[str, Any] = {column: pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))}
    if labels is not None:
        columns["label"] = pa.array(labels, pa.int64())
    table = pa.table(columns)
    if class_names is not None:
        features = {column: {"_type": "Image"}, "label": {"names": list(class_names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def make_folder(root: Path, n: int, broken: tuple[int, ...] = (), labeled: bool = True) -> Source:
    """Write images of noise, 20 x 24, and junk in place of the broken ones; image i is in class i % 3."""
    rng = np.random.default_rng(0)
    for i in range(n):
        # the number comes first, so that the order of the names is the order of the images
        path = root / f"{i % 3}" / f"{i:03d}.png" if labeled else root / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(buffer, "PNG")
        path.write_bytes(b"junk" if i in broken else buffer.getvalue())
    return open_source(root)


def values(source: Source) -> list[int]:
    """Read the gray level of each image of :func:`png`."""
    return [int(source.image(i)[0, 0, 0]) for i in range(len(source))]


def names(source: Source) -> list[str]:
    return [source.name(i) for i in range(len(source))]


def take(stream: Generator[Batch, None, None], n: int) -> list[Batch]:
    """Take n batches and close the stream."""
    batches = list(itertools.islice(stream, n))
    stream.close()
    return batches


def assert_same(a: list[Batch], b: list[Batch]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        for name in Batch._fields:
            one, other = getattr(x, name), getattr(y, name)
            if isinstance(one, torch.Tensor):
                assert torch.equal(one, other), name
            else:
                assert one == other, name


def same_distribution(a: np.ndarray, b: np.ndarray) -> bool:
    """Two-sample Kolmogorov-Smirnov test at the 0.1 % level; ties only make the statistic smaller."""
    n = len(a)
    assert len(b) == n
    grid = np.union1d(a, b)
    cdf_a = np.searchsorted(np.sort(a), grid, side="right") / n
    cdf_b = np.searchsorted(np.sort(b), grid, side="right") / n
    return bool(np.abs(cdf_a - cdf_b).max() < 1.95 * np.sqrt(2 / n))


def box_statistics(boxes: np.ndarray) -> dict[str, np.ndarray]:
    """Sides, area and log aspect ratio of boxes [n, 4]."""
    top, left, h, w = boxes.T
    return {"top": top, "left": left, "height": h, "width": w, "area": h * w, "aspect": np.log(w / h)}


def child_processes() -> set[int]:
    return {int(pid) for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()}


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    """Return the message of an error after checking that it is one line."""
    message = str(error.value)
    assert "\n" not in message
    return message
