"""Features of two labelled sets, the common ground of k-NN and the linear probe."""

from pathlib import Path
from typing import Literal, NamedTuple

import torch

from hardpatch.data.augment import EvalTransform
from hardpatch.data.loader import BadFiles, eval_batches, resolve_workers
from hardpatch.data.sources import Source, open_source
from hardpatch.errors import UserError
from hardpatch.evaluate.features import Features, Progress, align_labels, extract
from hardpatch.methods.hpm import HPM

LARGE_IMAGE = 112
"""Sides from here on are cut out of an image a seventh larger, as is usual at 224 px; smaller ones show it whole."""


class LabelledFeatures(NamedTuple):
    """Features of a set to learn from and one to be judged on, with labels that mean the same."""

    train: Features
    val: Features
    classes: tuple[str, ...]


def labelled_features(
    model: HPM,
    train: str | Path,
    val: str | Path,
    *,
    device: torch.device | str,
    pool: Literal["mean", "class"] = "mean",
    batch_size: int = 256,
    workers: int | Literal["auto"] = "auto",
    max_bad_fraction: float = 0.1,
    progress: Progress | None = None,
) -> LabelledFeatures:
    """Frozen features of two labelled image sets.

    Args:
        model: in eval mode, on ``device``.
        train, val: one folder a class, or Parquet files with labels; see :func:`hardpatch.data.sources.open_source`.
        device: where the model is.
        pool: average of the patch tokens, or the class token.
        batch_size, workers: of the loading.
        max_bad_fraction: files that cannot be decoded are logged and left out, up to this share of a set.
        progress: called after each batch with (images done, images) over both sets.

    Raises:
        UserError: if a set has no labels, ``val`` has a class that ``train`` lacks, or too many files are broken.
    """
    sources = _open("--train", train), _open("--val", val)
    classes, number = align_labels(*sources)
    crop_fraction = 0.875 if min(model.image_size) >= LARGE_IMAGE else 1.0
    transform = EvalTransform(model.image_size, len(model.mean), crop_fraction)
    total, before = sum(map(len, sources)), 0
    found = []
    for source in sources:

        def advance(done: int, _: int | None, before: int = before) -> None:
            if progress is not None:
                progress(before + done, total)

        batches = eval_batches(source, transform, batch_size=batch_size, workers=resolve_workers(workers))
        bfloat = torch.bfloat16 if torch.device(device).type == "cuda" else None
        features = extract(model, batches, device=device, pool=pool, autocast=bfloat, progress=advance)
        BadFiles(len(source), max_bad_fraction).update(features.bad)
        found.append(features)
        before += len(source)
    train_features, val_features = found
    return LabelledFeatures(train_features, val_features._replace(labels=number[val_features.labels]), classes)


def _open(argument: str, path: str | Path) -> Source:
    try:
        return open_source(path)
    except UserError as error:
        raise UserError(f"{argument}: {error}") from None
