"""Features of a training and a validation set with matching labels, for k-NN and the linear probe."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from hardpatch.data.augment import EvalTransform
from hardpatch.data.bad_files import BadFiles
from hardpatch.data.bands import as_read
from hardpatch.data.columns import AUTO, Columns
from hardpatch.data.left_out import LeftOut
from hardpatch.data.loader import eval_batches
from hardpatch.data.names import path_text
from hardpatch.data.reading import RGB, Reading
from hardpatch.data.sources import OpenedSource, Paths, Source, Subset, open_source
from hardpatch.data.splits import Role
from hardpatch.data.summary import summarize
from hardpatch.data.survey import adapted
from hardpatch.data.workers import resolve_workers
from hardpatch.errors import UserError
from hardpatch.files import reason_of
from hardpatch.measure.cache import FeatureCache
from hardpatch.measure.distributed import agree_on_cached, gather_features
from hardpatch.measure.features import Features, LabelMapping, Pool, ProgressCallback, align_labels, extract
from hardpatch.measure.view import Size, View, view_of
from hardpatch.methods.hpm import HPM
from hardpatch.processes import is_first, process_rank

log = logging.getLogger("hardpatch")

LARGE_IMAGE = 112
"""Image size in pixels from which images are center-cropped to 7/8, as is usual at 224 px; smaller ones are not."""


class LabeledFeatures(NamedTuple):
    """Features of a training and a validation set, with the same class numbers."""

    train: Features
    val: Features
    classes: tuple[str, ...]
    skipped: tuple[tuple[LeftOut, ...], tuple[LeftOut, ...]] = ((), ())
    """what was left out of the two sets when they were listed"""


def labeled_features(
    model: HPM,
    train: Paths,
    val: Paths,
    *,
    device: torch.device | str,
    pool: Pool = "mean",
    batch_size: int = 256,
    workers: int | Literal["auto"] = "auto",
    max_bad_fraction: float = 0.1,
    cache: Path | None = None,
    progress: ProgressCallback | None = None,
    columns: Columns = AUTO,
    describe: bool = False,
    image_size: Size | None = None,
    blocks: Sequence[int] = (),
) -> LabeledFeatures:
    """Extract frozen features of two labeled image sets, in all processes of a ``torchrun`` if there are several.

    Args:
        model: in eval mode, on ``device``.
        train: a folder with one subfolder per class, or a table or archive with labels; see
            :func:`hardpatch.data.sources.open_source`.
        val: likewise.
        device: where the model is.
        pool: mean of the patch tokens, or the class token.
        batch_size: images per forward pass.
        workers: processes that decode images.
        max_bad_fraction: files that cannot be decoded are logged and left out, up to this fraction of a set.
        cache: folder for the features (:mod:`hardpatch.measure.cache`); None computes them and does not store them.
        progress: called after each batch with (images done, images) of both sets together.
        columns: names of the columns of tables.
        describe: log what each set holds, and what is left out of it, before anything is computed.
        image_size: of the images that the model sees; None for that of its training.
        blocks: see :func:`~hardpatch.measure.view.view_of`.

    Raises:
        UserError: if a set has no labels, ``val`` has a class that ``train`` lacks, or too many files are broken.
    """
    view = view_of(model, image_size, blocks)
    sources, (classes, mapping) = open_labeled(train, val, columns, reading=model.reading, describe=describe)
    stored = None if cache is None else FeatureCache(cache, model)
    total, before = sum(map(len, sources)), 0
    results = []
    for source, path in zip(sources, (train, val), strict=True):
        features = _read_or_extract(
            *(model, source, path, device),
            pool=pool,
            batch_size=batch_size,
            workers=workers,
            cache=stored,
            columns=columns,
            view=view,
            progress=_shifted(progress, before, total),
        )
        BadFiles(len(source), max_bad_fraction, "--max_bad_fraction", source=source).update(features.bad)
        results.append(features)
        before += len(source)
    aligned = results[1]._replace(labels=mapping[results[1].labels])
    return LabeledFeatures(results[0], aligned, classes, (sources[0].skipped, sources[1].skipped))


def _shifted(progress: ProgressCallback | None, before: int, total: int) -> ProgressCallback:
    """Return a callback that counts from ``before`` on."""
    return lambda done, _: None if progress is None else progress(before + done, total)


def open_labeled(
    train: Paths,
    val: Paths,
    columns: Columns = AUTO,
    *,
    reading: Reading = RGB,
    options: tuple[str, str] = ("--train", "--val"),
    describe: bool = False,
) -> tuple[tuple[OpenedSource, OpenedSource], LabelMapping]:
    """Open a training and a validation set, and match their labels.

    Args:
        train: labeled images, see :func:`hardpatch.data.sources.open_source`.
        val: likewise.
        columns: names of the columns of tables.
        reading: of the model that is measured.
        options: what the two are called on the command line.
        describe: log what each set holds, and what is left out of it.

    Raises:
        UserError: if a set cannot be read or has no labels, or ``val`` has a class that ``train`` lacks.
    """
    sources: list[OpenedSource] = []
    roles: tuple[Role, Role] = ("train", "val")
    for option, path, role in zip(options, (train, val), roles, strict=True):
        try:
            sources.append(as_read(open_source(path, columns, role), reading))
        except UserError as error:
            raise UserError(f"{option}: {error}") from None
    matched = align_labels(*sources)
    if describe and is_first():
        for option, source in zip(options, sources, strict=True):
            log.info("%s: %s", option, summarize(source))
    return (sources[0], sources[1]), matched


def eval_transform(
    model: HPM, source: Source | None, argument: str = "IMAGES", image_size: tuple[int, int] | None = None
) -> EvalTransform:
    """Return the transform for a frozen model: a center crop of 7/8 from :data:`LARGE_IMAGE` pixels on, else none.

    Images of another type than the model's are adapted to it, with a warning that begins with `argument`; None stands
    for the images that it is trained on. They have the size of its training where no other is given.
    """
    size = image_size or model.image_size
    reading = model.reading if source is None else adapted(model.reading, source, argument)
    return EvalTransform(size, reading, crop_fraction(size))


def crop_fraction(image_size: tuple[int, int]) -> float:
    """Return 7/8, the share of the resized image that a model of (height, width) sees, or 1 if it is small."""
    return 0.875 if min(image_size) >= LARGE_IMAGE else 1.0


def _read_or_extract(
    model: HPM,
    source: OpenedSource,
    path: Paths,
    device: torch.device | str,
    *,
    pool: Pool,
    batch_size: int,
    workers: int | Literal["auto"],
    cache: FeatureCache | None,
    columns: Columns,
    view: View,
    progress: ProgressCallback,
) -> Features:
    """Read the features of one set from the cache, or compute and store them."""
    transform = eval_transform(model, source, path_text(path), view.image_size)
    autocast = torch.bfloat16 if torch.device(device).type == "cuda" else None
    settings = {
        "image_size": list(transform.image_size),
        "crop_fraction": transform.crop_fraction,
        "resize": "pillow",  # features of earlier versions were of pixels that differed by rounding
        **transform.reading.to_dict(),
        "pool": pool,
        "autocast": str(autocast),
        "columns": list(columns),
        **({"blocks": list(view.blocks)} if view.blocks else {}),
    }
    description = {} if cache is None else cache.describe(source, path, **settings)
    features = agree_on_cached(None if cache is None else cache.read(description))
    if features is not None:
        return features
    rank, world_size = process_rank()
    shard: Source = source if world_size == 1 else Subset(source, range(rank, len(source), world_size))
    batches = eval_batches(shard, transform, batch_size=batch_size, workers=resolve_workers(workers))
    features = extract(
        model, batches, device=device, pool=pool, autocast=autocast, progress=progress, blocks=view.blocks
    )
    features = gather_features(features, torch.device(device))
    if cache is not None and rank == 0:
        try:
            cache.write(description, features)
        except OSError as error:  # a run folder without write permission
            log.warning("features are not cached: cannot write to %s: %s", cache.folder, reason_of(error))
    return features
