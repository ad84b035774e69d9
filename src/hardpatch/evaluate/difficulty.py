"""Difficulty of images: the losses that a run predicts, and its true losses."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from hardpatch.data.bad_files import BadFiles
from hardpatch.data.sources import open_images
from hardpatch.data.summary import summarize
from hardpatch.data.workers import resolve_workers
from hardpatch.interchange.load import load_pair, load_target, training_masks
from hardpatch.measure import score as scoring
from hardpatch.measure.difficulty import Predict
from hardpatch.measure.features import ProgressCallback
from hardpatch.measure.score import ScoreResult
from hardpatch.train.device import use_device

log = logging.getLogger("hardpatch")


def score(
    run: str | Path,
    images: str | Sequence[str],
    out: str | Path,
    *,
    masks: str | Path | None = None,
    mask_ratio: float | None = None,
    draws: int = 10,
    predict: Predict | None = None,
    pictures: int = 32,
    seed: int = 0,
    batch_size: int = 32,
    workers: int | Literal["auto"] = "auto",
    max_bad_fraction: float = 1.0,
    device: str = "auto",
    progress: ProgressCallback | None = None,
) -> ScoreResult:
    """Predict the difficulty of images, measure their true loss, and write pictures and numbers: ``hardpatch score``.

    Args:
        run: run folder, ``.safetensors`` file or reference checkpoint, with a loss predictor.
        images: files, folders, Parquet files, ``demo:test``.
        out: folder for the pictures and ``scores.parquet``.
        masks: folder of object masks with the same file stems as the images, for the ROC area.
        mask_ratio: share of masked patches; None is that of the run.
        draws: number of random masks over which the true loss is averaged.
        predict: which prediction to use as the difficulty map, ``whole`` or ``masked``; None is the one that the run
            mined by.
        pictures: number of images with a picture; all images have numbers.
        seed: of the random masks.
        batch_size: images per forward pass.
        workers: processes that decode images.
        max_bad_fraction: share of the images that may be undecodable; these are named and left out.
        device: where to compute.
        progress: called after each batch with (images done, images).
    """
    used_device = use_device(device)
    student, teacher = load_pair(run, device=used_device)
    source = open_images([images] if isinstance(images, str) else list(images))
    masking = training_masks(run)
    log.info("IMAGES: %s", summarize(source))
    result = scoring.score(
        student,
        teacher,
        source,
        out=Path(out),
        masks=None if masks is None else Path(masks),
        target=load_target(run, teacher, device=used_device),
        mask_ratio=masking.mask_ratio if mask_ratio is None else mask_ratio,
        draws=draws,
        predict=predict or masking.predict,
        seed=seed,
        pictures=pictures,
        batch_size=batch_size,
        workers=resolve_workers(workers),
        device=used_device,
        progress=progress,
    )
    BadFiles(len(source), max_bad_fraction, "--max_bad_fraction").update(result.bad)
    return result
