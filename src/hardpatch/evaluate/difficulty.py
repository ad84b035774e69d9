"""Difficulty of images: the losses that a run predicts, and its true losses."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from hardpatch.choices import Architecture
from hardpatch.data.bad_files import BadFiles
from hardpatch.data.summary import open_described
from hardpatch.data.workers import resolve_workers
from hardpatch.errors import UserError
from hardpatch.interchange.load import (
    TrainingMasks,
    load_pair,
    load_target,
    read_metadata,
    read_newest,
    training_masks,
)
from hardpatch.measure import score as scoring
from hardpatch.measure.difficulty import Predict
from hardpatch.measure.features import ProgressCallback
from hardpatch.measure.score import ScoreResult
from hardpatch.methods.encoder_only import NO_DECODER, EncoderOnly
from hardpatch.methods.hpm import HPM
from hardpatch.methods.mae import MAE
from hardpatch.methods.targets import Target
from hardpatch.paths import user_path
from hardpatch.ranges import check_options
from hardpatch.train.device import use_device

log = logging.getLogger("hardpatch")


class RunModels(NamedTuple):
    """Models of a run, and the masks that it was trained with."""

    student: HPM
    teacher: HPM
    """the student if the run has no other"""
    target: Target | None
    """reconstruction target if it comes from another network; None is the student's own"""
    masking: TrainingMasks


def load_models(
    run: str | Path,
    *,
    predict: Predict | None = None,
    normalize_pixels: bool = False,
    architecture: Architecture | None = None,
    device: torch.device,
    decoder: bool = True,
) -> RunModels:
    """Load what the losses of a run need.

    Args:
        run: run folder, ``.safetensors`` file or reference checkpoint, with or without a loss predictor.
        predict: replaces the source of difficulty by which the run mined; None keeps it.
        normalize_pixels: for reference checkpoints, the targets were normalized patch by patch.
        architecture: of weights of other libraries, where they do not say.
        device: where to put the models.
        decoder: refuse weights that have an encoder only.

    Raises:
        UserError: if they cannot be loaded, or an argument does not go with the run.
    """
    reference = read_newest(run, read_metadata) is None
    if normalize_pixels and not reference:
        raise UserError(f"--normalize_pixels: expected a reference checkpoint, {run} says itself; leave it out")
    student, teacher = load_pair(run, device=device, normalize_pixels=normalize_pixels, architecture=architecture)
    if decoder and isinstance(student.host, EncoderOnly):
        raise UserError(NO_DECODER)
    if predict is not None and not student.has_predictor:
        raise UserError(f"--predict: expected a run with a loss predictor, {run} has none; leave it out")
    if reference and isinstance(student.host, MAE) and not student.host.normalize_pixels:
        log.info(
            "%s: the file does not say whether its targets were normalized patch by patch (norm_pix_loss); "
            "taken: no; if they were, use --normalize_pixels",
            run,
        )
    masking = training_masks(run)
    if predict is not None:
        masking = masking._replace(predict=predict)
    return RunModels(student, teacher, load_target(run, teacher, device=device), masking)


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
    show: Sequence[int] | None = None,
    seed: int = 0,
    normalize_pixels: bool = False,
    architecture: Architecture | None = None,
    batch_size: int = 32,
    workers: int | Literal["auto"] = "auto",
    max_bad_fraction: float = 1.0,
    device: str = "auto",
    image_column: str | None = None,
    progress: ProgressCallback | None = None,
) -> ScoreResult:
    """Predict the difficulty of images, measure their true loss, and write pictures and numbers: ``hardpatch score``.

    Args:
        run: run folder, ``.safetensors`` file or reference checkpoint; a plain MAE has the true loss only.
        images: files, folders, Parquet files, ``demo:test``.
        out: folder for the pictures and ``scores.parquet``.
        masks: folder of object masks with the same file stems as the images, for the ROC area.
        mask_ratio: share of masked patches; None is that of the run.
        draws: number of random masks over which the true loss is averaged.
        predict: ``whole`` or ``masked`` predictions in the map; None is what the run mined by.
        pictures: number of images with a picture; all images have numbers.
        show: channels in the pictures, one or three counted from 0; None is all, or the first three.
        seed: of the random masks.
        normalize_pixels: as of :func:`hardpatch.load`.
        architecture: its further arguments, for weights of other libraries.
        batch_size: images per forward pass.
        workers: processes that decode images.
        max_bad_fraction: share of the images that may be undecodable; these are named and left out.
        device: where to compute.
        image_column: column of the images in tables; None finds it.
        progress: called after each batch with (images done, images).
    """
    numbers: dict[str, Any] = {"draws": draws, "seed": seed, "pictures": pictures, "batch_size": batch_size}
    check_options(**numbers, mask_ratio=mask_ratio, max_bad_fraction=max_bad_fraction, show=show and list(show))
    folder, used_device = user_path(out, "--out"), use_device(device)
    said: Any = {"normalize_pixels": normalize_pixels, "architecture": architecture}
    models = load_models(run, predict=predict, device=used_device, **said)
    source = open_described(images, image_column, models.student.reading)
    numbers |= {"show": show, "workers": resolve_workers(workers), "device": used_device, "progress": progress}
    numbers["mask_ratio"], numbers["predict"] = mask_ratio or models.masking.mask_ratio, models.masking.predict
    numbers["masks"] = None if masks is None else user_path(masks, "--masks")
    networks = models.student, models.teacher
    result = scoring.score(*networks, source, out=folder, target=models.target, **numbers)
    BadFiles(len(source), max_bad_fraction, "--max_bad_fraction", source=source).update(result.bad)
    return result
