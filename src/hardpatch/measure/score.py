"""Predicted difficulty, if the model has a loss predictor, next to the true loss, image by image (paper, Fig. 2)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hardpatch.data.augment import EvalTransform
from hardpatch.data.batch import Batch
from hardpatch.data.loader import eval_batches
from hardpatch.data.sources import Source
from hardpatch.data.survey import adapted
from hardpatch.errors import UserError
from hardpatch.measure.difficulty import (
    ImageScore,
    PatchDifficulty,
    Predict,
    patch_difficulty,
    score_image,
    upsample,
)
from hardpatch.measure.features import ProgressCallback
from hardpatch.measure.object_masks import MaskReader, mask_reader
from hardpatch.measure.score_files import NO_PREDICTOR, ScoreFiles
from hardpatch.methods.hpm import HPM
from hardpatch.methods.masking import masked_count
from hardpatch.methods.targets import Target

Measure = Callable[[Tensor, Tensor], PatchDifficulty]
"""Returns the difficulty of the patches of images, uint8 ``[B, C, H, W]`` with their indices, int64 ``[B]``."""


class ScoredBatch(NamedTuple):
    """A batch of images and their difficulty."""

    batch: Batch
    difficulty: PatchDifficulty
    scores: list[ImageScore]


@dataclass(frozen=True)
class ScoreResult:
    """Result of :func:`score`. A mean is over the images that have the value, None if none has."""

    images: int
    has_predictor: bool
    """False for a model without loss predictor, of which only the true loss is known"""
    spearman: float | None
    """mean rank correlation of predicted difficulty and true loss within an image"""
    auc: float | None
    """mean area under the ROC curve of the predicted difficulty as a detector of the object"""
    true_loss_auc: float | None
    """the same for the true loss, which a perfect predictor would reach"""
    table: Path
    contact_sheet: Path | None
    pictures: tuple[Path, ...]
    bad: tuple[str, ...]
    """one line for each image that could not be read"""

    def to_dict(self) -> dict[str, Any]:
        """Return all values, ready for JSON; without a predictor a note replaces those of the prediction."""
        values = asdict(self)
        if not self.has_predictor:
            del values["spearman"], values["auc"]
            values["note"] = NO_PREDICTOR
        return {
            **values,
            "table": str(self.table),
            "contact_sheet": None if self.contact_sheet is None else str(self.contact_sheet),
            "pictures": [str(path) for path in self.pictures],
        }


@torch.inference_mode()
def score(
    student: HPM,
    teacher: HPM,
    source: Source,
    *,
    out: Path,
    masks: Path | None = None,
    target: Target | None = None,
    mask_ratio: float = 0.75,
    draws: int = 10,
    predict: Predict = "whole",
    seed: int = 0,
    pictures: int = 32,
    show: Sequence[int] | None = None,
    singles: bool = True,
    batch_size: int = 32,
    workers: int = 0,
    device: torch.device | str = "cpu",
    progress: ProgressCallback | None = None,
) -> ScoreResult:
    """Predict the difficulty of every patch, measure its true loss, and write both as pictures and as a table.

    Writes ``scores.parquet`` (one row per image), ``contact_sheet.png``, a picture of some images and a README. The
    values depend on ``seed`` and on the position of an image in ``source``, not on the batch size.

    Args:
        student: reconstructs; in eval mode, on ``device``. Without a loss predictor only the true loss is measured.
        teacher: predicts difficulty; may be the student.
        source: images of any size, resized and center-cropped to the size of the model.
        out: a folder; created if it does not exist.
        masks: a folder of pictures of the images' stems, black but on the object; None takes the source's own, if any.
        target: reconstruction target if it comes from another network; None uses the student's own.
        mask_ratio: fraction of masked patches: random ones for the true loss, the hardest ones for the reconstruction.
        draws: random masks over which the true loss is averaged.
        predict: source of the predicted difficulty, see :data:`~hardpatch.measure.difficulty.Predict`.
        seed: of the random masks.
        pictures: number of images with a picture, evenly spread over the set; all are in the table.
        show: one or three channels that pictures show; None is all, or the first three.
        singles: write a picture of each of these beside the contact sheet.
        batch_size: images per forward pass.
        workers: processes that decode images.
        device: where the models are.
        progress: called after each batch with (images done, images).

    Raises:
        UserError: if the losses are not finite, if the mask ratio or the number of draws is out of range, if an image's
            mask is missing, or if ``out`` cannot be written.
    """
    masked = masked_patches(student, mask_ratio, draws)
    read_mask = mask_reader(source, masks, student.image_size)
    files = ScoreFiles(
        out, student, masked, pictures, images=len(source), draws=draws, predict=predict, show=show, singles=singles
    )
    measure = partial(
        patch_difficulty, student, teacher, masked=masked, draws=draws, seed=seed, predict=predict, target=target
    )
    scored = scored_batches(measure, student, source, read_mask, batch_size=batch_size, workers=workers, device=device)
    return _result(files, _add(files, scored, len(source), progress))


def _add(files: ScoreFiles, scored: Iterable[ScoredBatch], total: int, progress: ProgressCallback | None) -> list[str]:
    """Add all images to the files. Returns a line for each that could not be read."""
    bad: list[str] = []
    for batch, difficulty, scores in scored:
        files.add(batch, difficulty, scores)
        bad += batch.bad
        if progress is not None:
            progress(len(files.scores) + len(bad), total)
    return bad


@torch.inference_mode()
def scored_batches(
    measure: Measure,
    model: HPM,
    source: Source,
    read_mask: MaskReader | None,
    *,
    batch_size: int = 32,
    workers: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[ScoredBatch]:
    """Measure and score the images of ``source``, resized and center-cropped to the size of ``model``.

    Args:
        measure: of images and indices on ``device``, as :func:`~hardpatch.measure.difficulty.patch_difficulty`.
        model: whose image size, channels and grid of patches to use.
        source: images of any size.
        read_mask: of the object in an image; None if there are no masks.
        batch_size: images per batch.
        workers: processes that decode images.
        device: where ``measure`` expects its images.
    """
    transform = EvalTransform(model.image_size, adapted(model.reading, source, "IMAGES"))
    for batch in eval_batches(source, transform, batch_size=batch_size, workers=workers):
        difficulty = measure(batch.images.to(device), batch.indices.to(device))
        yield ScoredBatch(batch, difficulty, _score_images(batch, difficulty, model, source, read_mask))


def _score_images(
    batch: Batch, difficulty: PatchDifficulty, student: HPM, source: Source, read_mask: MaskReader | None
) -> list[ImageScore]:
    grid, values = student.grid, difficulty.stacked()  # [B, K, N]
    maps = upsample(values, grid, student.image_size)
    return [
        score_image(source.name(index), numbers, pixels, grid, None if read_mask is None else read_mask(index))
        for index, numbers, pixels in zip(batch.indices.tolist(), values.numpy(), maps.numpy(), strict=True)
    ]


def _result(files: ScoreFiles, bad: list[str]) -> ScoreResult:
    scores = files.scores
    files.write_readme()
    return ScoreResult(
        images=len(scores),
        has_predictor=files.student.has_predictor,
        spearman=mean(score.spearman for score in scores),
        auc=mean(score.auc for score in scores),
        true_loss_auc=mean(score.true_loss_auc for score in scores),
        table=files.write_table(),
        contact_sheet=files.write_contact_sheet(),
        pictures=tuple(files.pictures),
        bad=tuple(bad),
    )


def masked_patches(student: HPM, mask_ratio: float, draws: int) -> int:
    """Return the number of masked patches of an image.

    Raises:
        UserError: if the mask ratio is out of range, or ``draws`` masks cannot cover the image.
    """
    patches = student.grid[0] * student.grid[1]
    try:
        masked = masked_count(patches, mask_ratio)
    except ValueError as error:
        raise UserError(str(error)) from None
    if draws * masked < patches:
        least = -(-patches // masked)
        raise UserError(f"draws: expected at least {least}, to mask each of {patches} patches once; got {draws}")
    return masked


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are not None; None if there are none."""
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None
