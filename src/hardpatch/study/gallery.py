"""The paper's figures of true and predicted losses, drawn from a run: Figures 2, 4, S1 and S2."""

import logging
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hardpatch.data.bad_files import BadFiles
from hardpatch.data.sources import Subset
from hardpatch.data.summary import open_described
from hardpatch.data.workers import resolve_workers
from hardpatch.errors import UserError
from hardpatch.evaluate.difficulty import RunModels, load_models
from hardpatch.figures import RED_IS_HIGH, heat_map, masked_image, shorten
from hardpatch.measure.difficulty import ImageScore, PatchDifficulty, hardest_patches, patch_difficulty
from hardpatch.measure.object_masks import mask_reader
from hardpatch.measure.score import Measure, ScoredBatch, masked_patches, scored_batches
from hardpatch.methods.hpm import HPM
from hardpatch.models.pixels import to_bytes
from hardpatch.ranges import check_options
from hardpatch.study.gallery_picture import NAME_LENGTH, GalleryTuple, two_decimals
from hardpatch.study.gallery_result import FIGURES, Gallery, GalleryResult, write_gallery
from hardpatch.train.device import use_device
from hardpatch.train.run_folder import check_new

log = logging.getLogger("hardpatch")


def draw_gallery(gallery: Gallery) -> GalleryResult:
    """Measure the true and the predicted losses of some images, and draw them as a figure of the paper does.

    Writes the pages, ``result.json`` and ``README.md`` to a new folder, or nothing at all. A run without loss
    predictor, as a plain MAE, has panels (a) and (b) of Fig. 2 only, unless another run predicts.

    Raises:
        UserError: if an argument does not go with the figure or the run; see also
            :func:`~hardpatch.measure.score.score`.
    """
    started = time.monotonic()
    names = ("count", "columns", "draws", "seed", "mask_ratio", "batch_size", "workers", "max_bad_fraction")
    check_options(**{name: getattr(gallery, name) for name in names})
    check_new(gallery.out)
    device = use_device(gallery.device)
    models, other = _load(gallery, device)
    student, has_predictor = models.student, (other or models).student.has_predictor
    mask_ratio = models.masking.mask_ratio if gallery.mask_ratio is None else gallery.mask_ratio
    masked = masked_patches(student, mask_ratio, gallery.draws)
    source = open_described(gallery.images, gallery.image_column)
    shown = Subset(source, choose(len(source), gallery.count, gallery.seed))
    read_mask = mask_reader(shown, gallery.masks, student.image_size)
    batches = scored_batches(
        _measure(models, other, masked, gallery),
        student,
        shown,
        read_mask,
        batch_size=gallery.batch_size,
        workers=resolve_workers(gallery.workers),
        device=device,
    )
    panels = tuple(name for name in FIGURES[gallery.figure].panels if has_predictor or name in ("image", "true_loss"))
    scores: list[ImageScore] = []
    tuples: list[GalleryTuple] = []
    bad: list[str] = []
    for scored in batches:
        scores += scored.scores
        tuples += _tuples(student, scored, panels, masked, has_masks=read_mask is not None)
        bad += scored.batch.bad
    BadFiles(len(shown), gallery.max_bad_fraction, "--max_bad_fraction").update(bad)
    share = masked / (student.grid[0] * student.grid[1])
    result = GalleryResult(gallery, panels, share, len(source), tuple(scores), tuple(bad))
    return write_gallery(result, tuples, time.monotonic() - started)


def choose(images: int, count: int, seed: int) -> list[int]:
    """Draw ``count`` different indices of ``images``, or all if there are fewer, in increasing order."""
    return sorted(np.random.default_rng(seed).choice(images, size=min(count, images), replace=False).tolist())


def _load(gallery: Gallery, device: torch.device) -> tuple[RunModels, RunModels | None]:
    """Load the run, and the other run that predicts, and check that they go with the figure and with each other."""
    if gallery.predictor is not None and "true_loss" not in FIGURES[gallery.figure].panels:
        raise UserError(f"--predictor: {gallery.figure} shows the predicted loss of RUN alone; give that run as RUN")
    predict = None if gallery.predictor is not None else gallery.predict
    models = load_models(gallery.run, predict=predict, normalize_pixels=gallery.normalize_pixels, device=device)
    if gallery.predictor is None:
        _check_predictor(gallery, models)
        return models, None
    other = load_models(gallery.predictor, predict=gallery.predict, device=device)
    if not other.student.has_predictor:
        raise UserError(f"--predictor: expected a run with a loss predictor, {gallery.predictor} has none")
    sizes = [
        f"{len(model.mean)} channels, {model.image_size[0]}x{model.image_size[1]} px, patches of {model.patch_size} px"
        for model in (models.student, other.student)
    ]
    if sizes[0] != sizes[1]:
        raise UserError(f"--predictor: expected images and patches like those of RUN, {sizes[0]}; got {sizes[1]}")
    return models, other


def _check_predictor(gallery: Gallery, models: RunModels) -> None:
    if not (models.student.has_predictor or "true_loss" in FIGURES[gallery.figure].panels):
        raise UserError(
            f"RUN: {gallery.figure} shows predicted losses, {Path(gallery.run)} was trained without a loss predictor; "
            "fig2 shows its true loss"
        )


def _measure(models: RunModels, other: RunModels | None, masked: int, gallery: Gallery) -> Measure:
    """Return a function that takes the true loss from ``models``, and the predicted one from ``other`` if it is set."""

    def losses(of: RunModels, pixels: Tensor, indices: Tensor) -> PatchDifficulty:
        return patch_difficulty(
            of.student,
            of.teacher,
            pixels,
            indices,
            masked=masked,
            draws=gallery.draws,
            seed=gallery.seed,
            predict=of.masking.predict,
            target=of.target,
        )

    def measure(pixels: Tensor, indices: Tensor) -> PatchDifficulty:
        difficulty = losses(models, pixels, indices)
        return difficulty if other is None else difficulty._replace(predicted=losses(other, pixels, indices).predicted)

    return measure


def _tuples(
    model: HPM, scored: ScoredBatch, panels: tuple[str, ...], masked: int, *, has_masks: bool
) -> list[GalleryTuple]:
    """Panels and captions of the images of a batch."""
    batch, difficulty, scores = scored
    hardest = None if difficulty.predicted is None else hardest_patches(difficulty.predicted, masked).cpu().numpy()
    tuples = []
    images = to_bytes(batch.images, model).permute(0, 2, 3, 1).cpu().numpy()
    for number, (image, score) in enumerate(zip(images, scores, strict=True)):
        grid = (score.rows, score.columns)
        pictures = {"image": image, "true_loss": heat_map(image, score.true_loss, grid, color_map=RED_IS_HIGH)}
        true_loss = [_area(score.true_loss_auc)] if has_masks else []
        captions = {"image": shorten(Path(score.path).name, NAME_LENGTH), "true_loss": "\n".join(true_loss)}
        if score.difficulty is not None and hardest is not None:
            pictures["predicted"] = heat_map(image, score.difficulty, grid, color_map=RED_IS_HIGH)
            pictures["masked"] = masked_image(image, hardest[number], grid)
            predicted = [_area(score.auc)] if has_masks else []
            if "true_loss" in panels and score.spearman is not None:
                predicted.append(f"rank correlation {two_decimals(score.spearman)}")
            captions |= {"predicted": "\n".join(predicted), "masked": ""}
        tuples.append(GalleryTuple([pictures[name] for name in panels], [captions[name] for name in panels]))
    return tuples


def _area(auc: float | None) -> str:
    return "ROC area: no object" if auc is None else f"ROC area {two_decimals(auc)}"
