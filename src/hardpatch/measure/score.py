"""Evaluation of a loss predictor: its predicted difficulty next to the true loss, image by image (paper, Fig. 2)."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hardpatch.data.augment import EvalTransform
from hardpatch.data.batch import Batch
from hardpatch.data.loader import eval_batches
from hardpatch.data.sources import Source
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
from hardpatch.measure.score_files import ScoreFiles
from hardpatch.methods.hpm import HPM
from hardpatch.methods.masking import masked_count
from hardpatch.methods.targets import Target


@dataclass(frozen=True)
class ScoreResult:
    """Result of :func:`score`. A mean is over the images that have the value, None if none has."""

    images: int
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
        """Return all values, ready for JSON."""
        return {
            **asdict(self),
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
    batch_size: int = 32,
    workers: int = 0,
    device: torch.device | str = "cpu",
    progress: ProgressCallback | None = None,
) -> ScoreResult:
    """Predict the difficulty of every patch, measure its true loss, and write both as pictures and as a table.

    Writes ``scores.parquet`` (one row per image), ``contact_sheet.png`` and a picture of each of the first images. The
    values depend on ``seed`` and on the position of an image in ``source``, not on the batch size.

    Args:
        student: reconstructs; in eval mode, on ``device``.
        teacher: predicts difficulty; may be the student.
        source: images of any size, resized and center-cropped to the size of the model.
        out: a folder; created if it does not exist.
        masks: a folder with a picture for each image, of the same file stem, black everywhere but on the object. None
            takes the masks of the source if it has any (the demo set has).
        target: reconstruction target if it comes from another network; None uses the student's own.
        mask_ratio: fraction of masked patches: random ones for the true loss, the hardest ones for the reconstruction.
        draws: random masks over which the true loss is averaged.
        predict: source of the predicted difficulty, see :data:`~hardpatch.measure.difficulty.Predict`.
        seed: of the random masks.
        pictures: number of images with a picture; all are in the table.
        batch_size: images per forward pass.
        workers: processes that decode images.
        device: where the models are.
        progress: called after each batch with (images done, images).

    Raises:
        UserError: if the model has no loss predictor or its losses are not finite, if the mask ratio or the number of
            draws is out of range, if an image's mask is missing, or if ``out`` cannot be written.
    """
    masked = _check(student, mask_ratio, draws)
    size, channels = student.image_size, len(student.mean)
    read_mask = mask_reader(source, masks, size)
    files = ScoreFiles(out, student, masked, pictures, draws=draws, predict=predict)
    measure = partial(patch_difficulty, student, teacher, masked=masked, draws=draws, seed=seed)
    bad: list[str] = []
    for batch in eval_batches(source, EvalTransform(size, channels), batch_size=batch_size, workers=workers):
        difficulty = measure(batch.images.to(device), batch.indices.to(device), predict=predict, target=target)
        files.add(batch, difficulty, _score_images(batch, difficulty, student, source, read_mask))
        bad += batch.bad
        if progress is not None:
            progress(len(files.scores) + len(bad), len(source))
    return _result(files, bad)


def _score_images(
    batch: Batch, difficulty: PatchDifficulty, student: HPM, source: Source, read_mask: MaskReader | None
) -> list[ImageScore]:
    grid, values = student.grid, torch.stack(difficulty, dim=1).cpu()  # [B, 2, N]
    maps = upsample(values, grid, student.image_size)
    return [
        score_image(source.name(index), numbers, pixels, grid, None if read_mask is None else read_mask(index))
        for index, numbers, pixels in zip(batch.indices.tolist(), values.numpy(), maps.numpy(), strict=True)
    ]


def _result(files: ScoreFiles, bad: list[str]) -> ScoreResult:
    scores = files.scores
    return ScoreResult(
        images=len(scores),
        spearman=_mean(score.spearman for score in scores),
        auc=_mean(score.auc for score in scores),
        true_loss_auc=_mean(score.true_loss_auc for score in scores),
        table=files.write_table(),
        contact_sheet=files.write_contact_sheet(),
        pictures=tuple(files.pictures),
        bad=tuple(bad),
    )


def _check(student: HPM, mask_ratio: float, draws: int) -> int:
    """Check the arguments of :func:`score`. Returns the number of masked patches."""
    if not student.has_predictor:
        raise UserError(
            "model: expected one with a loss predictor, got one trained without; only HPM runs can be scored"
        )
    patches = student.grid[0] * student.grid[1]
    try:
        masked = masked_count(patches, mask_ratio)
    except ValueError as error:
        raise UserError(str(error)) from None
    if draws * masked < patches:
        least = -(-patches // masked)
        raise UserError(f"draws: expected at least {least}, to mask each of {patches} patches once; got {draws}")
    return masked


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are not None; None if there are none."""
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None
