"""Features of two labeled sets, the common ground of k-NN and the linear probe."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from hardpatch.data.augment import EvalTransform
from hardpatch.data.bad_files import BadFiles
from hardpatch.data.loader import eval_batches
from hardpatch.data.sources import Source, Subset, open_source
from hardpatch.data.workers import resolve_workers
from hardpatch.errors import UserError
from hardpatch.evaluate.cache import FeatureCache
from hardpatch.measure.features import Features, Progress, align_labels, extract
from hardpatch.measure.ranks import gathered, of_first_rank, ranks
from hardpatch.methods.hpm import HPM

log = logging.getLogger("hardpatch")

LARGE_IMAGE = 112
"""Sides from here on are cut out of an image a seventh larger, as is usual at 224 px; smaller ones show it whole."""


class LabeledFeatures(NamedTuple):
    """Features of a set to learn from and one to be judged on, with labels that mean the same."""

    train: Features
    val: Features
    classes: tuple[str, ...]


def labeled_features(
    model: HPM,
    train: str | Path,
    val: str | Path,
    *,
    device: torch.device | str,
    pool: Literal["mean", "class"] = "mean",
    batch_size: int = 256,
    workers: int | Literal["auto"] = "auto",
    max_bad_fraction: float = 0.1,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> LabeledFeatures:
    """Frozen features of two labeled image sets, over all processes where there are several.

    Args:
        model: in eval mode, on ``device``.
        train, val: one folder a class, or Parquet files with labels; see :func:`hardpatch.data.sources.open_source`.
        device: where the model is.
        pool: average of the patch tokens, or the class token.
        batch_size, workers: of the loading.
        max_bad_fraction: files that cannot be decoded are logged and left out, up to this share of a set.
        cache: folder where features are kept and found again (:mod:`hardpatch.evaluate.cache`); None keeps none.
        progress: called after each batch with (images done, images) over both sets.

    Raises:
        UserError: if a set has no labels, ``val`` has a class that ``train`` lacks, or too many files are broken.
    """
    sources = _open("--train", train), _open("--val", val)
    classes, number = align_labels(*sources)
    transform = eval_transform(model)
    kept = None if cache is None else FeatureCache(cache, model)
    bfloat = torch.bfloat16 if torch.device(device).type == "cuda" else None
    total, before = sum(map(len, sources)), 0
    found = []
    for source, path in zip(sources, (train, val), strict=True):
        how = {**asdict(transform), "image_size": list(transform.image_size), "pool": pool, "computed_in": str(bfloat)}
        made_of = {} if kept is None else kept.describe(source, path, **how)
        features = of_first_rank(None if kept is None else kept.read(made_of))
        if features is None:

            def advance(done: int, _: int | None, before: int = before) -> None:
                if progress is not None:
                    progress(before + done, total)

            rank, world = ranks()
            share = source if world == 1 else Subset(source, range(rank, len(source), world))
            batches = eval_batches(share, transform, batch_size=batch_size, workers=resolve_workers(workers))
            features = extract(model, batches, device=device, pool=pool, autocast=bfloat, progress=advance)
            features = gathered(features, torch.device(device))
            if kept is not None and rank == 0:
                try:
                    kept.write(made_of, features)
                except OSError as error:  # a run that one may only read
                    log.warning("features are not kept: cannot write to %s: %s", cache, error.strerror)
        BadFiles(len(source), max_bad_fraction).update(features.bad)
        found.append(features)
        before += len(source)
    train_features, val_features = found
    return LabeledFeatures(train_features, val_features._replace(labels=number[val_features.labels]), classes)


def eval_transform(model: HPM) -> EvalTransform:
    """How images are shown to a frozen model: whole, or from :data:`LARGE_IMAGE` on their middle 7/8."""
    crop_fraction = 0.875 if min(model.image_size) >= LARGE_IMAGE else 1.0
    return EvalTransform(model.image_size, len(model.mean), crop_fraction)


def _open(argument: str, path: str | Path) -> Source:
    try:
        return open_source(path)
    except UserError as error:
        raise UserError(f"{argument}: {error}") from None
