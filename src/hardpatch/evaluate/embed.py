"""Embed images with a run: one vector for each image, written to a Parquet file."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hardpatch.choices import Architecture, WeightsName
from hardpatch.data.bad_files import BadFiles
from hardpatch.data.left_out import counts
from hardpatch.data.summary import open_described
from hardpatch.errors import UserError
from hardpatch.evaluate.embeddings import write_embeddings
from hardpatch.interchange.load import load
from hardpatch.measure.features import Pool, ProgressCallback
from hardpatch.measure.view import Size, view_of
from hardpatch.paths import user_path
from hardpatch.ranges import check_options
from hardpatch.train.device import use_device
from hardpatch.train.result import head


@dataclass(frozen=True)
class EmbeddingsResult:
    """Result of :func:`embed`."""

    path: Path
    images: int
    """number of vectors"""
    width: int
    """length of a vector"""
    left_out: int
    """number of images that could not be decoded"""
    values: dict[str, Any] = field(default_factory=dict, repr=False)
    """the whole result as plain values, for JSON"""


def embed(
    run: str | Path,
    images: str | Sequence[str],
    out: str | Path,
    *,
    weights: WeightsName = "auto",
    architecture: Architecture | None = None,
    pool: Pool = "mean",
    normalize: bool = False,
    batch_size: int = 256,
    workers: int | Literal["auto"] = "auto",
    max_bad_fraction: float = 1.0,
    device: str = "auto",
    image_column: str | None = None,
    image_size: Size | None = None,
    blocks: Sequence[int] = (),
    progress: ProgressCallback | None = None,
) -> EmbeddingsResult:
    """Write one vector for each image into a Parquet file with the columns path and embedding: ``hardpatch embed``.

    Args:
        run: run folder, or anything else that :func:`hardpatch.load` reads.
        images: files, folders, Parquet files, ``demo:test``.
        out: the Parquet file; must not exist.
        weights: as of :func:`hardpatch.load`.
        architecture: its further arguments, for weights of other libraries.
        pool: mean of the patch tokens, or the class token.
        normalize: scale every vector to length 1, for cosine search.
        batch_size: images per forward pass.
        workers: processes that decode images.
        max_bad_fraction: share of the images that may be undecodable; these are named and left out.
        device: where to compute.
        image_column: column of the images in tables; None finds it.
        image_size: side, or height and width, of the images that the encoder sees; None for that of its training.
        blocks: whose outputs are put one after the other; see :func:`~hardpatch.measure.view.view_of`.
        progress: called after each batch with (images done, images).
    """
    check_options(batch_size=batch_size, workers=workers, max_bad_fraction=max_bad_fraction, image_size=image_size)
    started, path = time.monotonic(), user_path(out, "--out")
    if path.exists():
        raise UserError(f"--out: expected a file that does not exist yet, got {path}; choose another name")
    used_device = use_device(device)
    model = load(run, weights, device=used_device, **architecture or {})
    view = view_of(model, image_size, blocks)
    source = open_described(images, image_column, model.reading)
    settings: dict[str, Any] = {"pool": pool, "normalize": normalize, "batch_size": batch_size, "workers": workers}
    written, bad = write_embeddings(model, source, path, device=used_device, **settings, progress=progress, view=view)
    BadFiles(len(source), max_bad_fraction, "--max_bad_fraction", source=source).update(bad)
    width = model.host.encoder.width * max(1, len(view.blocks))
    left_out, seconds = counts(source.skipped, len(bad)), time.monotonic() - started
    sets: dict[str, Any] = {"data": {"images": images}, "images": {"images": written}, "classes": None}
    values = head("embed", run=str(run), **sets, left_out=left_out, seconds=seconds)
    values |= {"weights": weights, "pool": pool, "out": str(path), "width": width, **view.values()}
    return EmbeddingsResult(path, written, width, len(bad), values)
