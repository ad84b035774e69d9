"""Table D: supervised training of a ViT that sees half of each image's patches (supplement, Section D).

If the half with the higher predicted loss gives as good a classifier as all patches, and the other half a worse one,
then the patches that are hard to reconstruct are the most discriminative ones.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor

from hardpatch.configuration.sections import RunConfig
from hardpatch.data.sources import open_source
from hardpatch.errors import UserError
from hardpatch.finetune.file import initial_classifier
from hardpatch.finetune.measure import ClassifierEvaluation
from hardpatch.finetune.model import Classifier
from hardpatch.finetune.settings import FinetuneSettings, check
from hardpatch.finetune.trainer import DropPatches, FinetuneJob
from hardpatch.measure.features import align_labels
from hardpatch.methods.hpm import HPM
from hardpatch.methods.masking import masked_count
from hardpatch.methods.mining import hard_patches
from hardpatch.randomness import patch_noise
from hardpatch.study.rows import Keep
from hardpatch.train.device import start_fabric
from hardpatch.train.loop import fit
from hardpatch.train.progress import Progress
from hardpatch.train.run_folder import claimed, resume_point

DROPPED = 0.5
"""Share of the patches that the classifier does not see."""


def dropped_patches(keep: Keep, difficulty: Tensor | None, noise: Tensor, ratio: float = DROPPED) -> Tensor | None:
    """Return the mask of the dropped patches, bool ``[B, N]``, True = dropped; None if all patches are kept.

    Args:
        keep: patches to keep: the hardest, the easiest, random ones, or all.
        difficulty: predicted loss ``[B, N]``; only the hardest and the easiest need it.
        noise: uniform in [0, 1), ``[B, N]``.
        ratio: share of the patches to drop.
    """
    if keep == "all":
        return None
    dropped = masked_count(noise.shape[1], ratio)
    if keep == "random":
        return hard_patches(None, noise, dropped, 0)
    return hard_patches(difficulty, noise, dropped, dropped, "easy" if keep == "hardest" else "hard")


class TableDResult(NamedTuple):
    """Result of :func:`train_supervised`."""

    accuracies: dict[str, float]
    """top-1 on the validation images: ``supervised`` with the kind of patches that it was trained on, ``whole`` with
    all patches; empty if the run was interrupted"""
    signal: int
    """number of the signal that interrupted the run, 0 for none"""


def train_supervised(
    run: RunConfig,
    settings: FinetuneSettings,
    folder: Path,
    train: str,
    val: str,
    keep: Keep,
    predictor: HPM | None,
    progress: Progress,
) -> TableDResult:
    """Train from random weights by the recipe of fine-tuning, from the newest checkpoint in ``folder`` if there is one.

    The patches to keep are chosen in the image that the classifier is given: after RandAugment and erasing, and, where
    two images are mixed, by the predicted loss of the mixture. So a patch is kept or dropped for what it shows,
    whichever image it came from. A rectangle of noise from random erasing counts as what the predictor takes it for.
    The paper does not say how it combines mixing and choosing.

    Args:
        run: architecture of the encoder, image size and normalization.
        settings: of the training; the paper's are the preset ``paper`` with
            :data:`~hardpatch.finetune.settings.SCRATCH`.
        folder: of the run.
        train: labeled images to learn from.
        val: labeled images to evaluate on.
        keep: patches to keep.
        predictor: teacher of a pre-training run, whose predicted loss is the difficulty.
        progress: shows steps and metrics.

    Raises:
        UserError: if settings do not fit, the data cannot be read or has no labels, or a predictor is missing.
        TrainingError: if the loss becomes NaN or infinite.
    """
    with claimed(folder, resume=True):
        job = supervised_job(run, settings, folder, train, val, keep, predictor)
        newest = resume_point(folder)
        if newest is not None:
            job.restore(newest)
        signal = fit(job, progress)
        return TableDResult({}, signal) if job.step < job.total else TableDResult(_accuracies(job), 0)


def _accuracies(job: FinetuneJob) -> dict[str, float]:
    """Return the accuracies of a finished training; see :class:`TableDResult`."""
    if job.evaluation is None:  # a finished run is evaluated again when it is resumed
        job.evaluate()
    assert isinstance(job.evaluation, ClassifierEvaluation)
    accuracies = {"supervised": job.evaluation.top1}
    job.drop_patches = None
    return accuracies | {"whole": job.evaluate()["top1"]}


def supervised_job(
    run: RunConfig,
    settings: FinetuneSettings,
    folder: Path,
    train: str,
    val: str,
    keep: Keep,
    predictor: HPM | None,
) -> FinetuneJob:
    """Return the training of :func:`train_supervised`, at its first step."""
    fabric = start_fabric(settings.device, settings.precision, "--")
    columns = run.data.columns
    images, val_images = open_source(train, columns), open_source(val, columns, "val")
    check(settings, len(images))
    classes, val_labels = align_labels(images, val_images)
    model = initial_classifier(settings, run, images, len(classes))
    drop = None if keep == "all" else _dropping(keep, settings.seed, model, predictor, fabric)
    return FinetuneJob(settings, folder, images, val_images, classes, val_labels, model, fabric, drop)


def _dropping(keep: Keep, seed: int, model: Classifier, predictor: HPM | None, fabric: Fabric) -> DropPatches:
    """Return the function that chooses the dropped patches in normalized images."""
    rows, columns = model.encoder.grid
    if keep == "random":
        return lambda _, samples, step: dropped_patches(keep, None, patch_noise(seed, step, samples, rows * columns))
    if predictor is None or predictor.grid != (rows, columns):
        got = "none" if predictor is None else f"one of {predictor.grid[0]} x {predictor.grid[1]} patches"
        raise UserError(f"predictor: expected a model of losses of {rows} x {columns} patches, got {got}")
    judge = predictor.to(fabric.device).eval()

    def drop(images: Tensor, samples: Tensor, step: int) -> Tensor | None:
        noise = patch_noise(seed, step, samples, rows * columns)  # decides between equals
        with torch.no_grad(), fabric.autocast():
            difficulty = judge.predict_loss(_renormalized(images, model, judge)).float()
        return dropped_patches(keep, difficulty, noise)

    return drop


def _renormalized(images: Tensor, model: Classifier, predictor: HPM) -> Tensor:
    """Return images of the classifier, ``[B, C, H, W]``, as the predictor normalizes them."""
    mean, std, new_mean, new_std = (part.view(-1, 1, 1) for part in (*_scale(model), *_scale(predictor)))
    return (images * std + mean - new_mean) / new_std


def _scale(model: Classifier | HPM) -> tuple[Tensor, Tensor]:
    return model.mean, model.std
