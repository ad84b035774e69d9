"""Predicted difficulty and true reconstruction loss of each patch, and their agreement (paper, Fig. 2)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hardpatch.errors import UserError
from hardpatch.methods.hpm import HPM
from hardpatch.methods.masking import random_mask
from hardpatch.methods.mining import hard_patches, spread_units
from hardpatch.methods.targets import Target
from hardpatch.methods.teacher import TeacherOutput
from hardpatch.models.pixels import to_bytes
from hardpatch.patches import all_masked, gather, to_indices
from hardpatch.printable import printable
from hardpatch.randomness import patch_noise

Predict = Literal["whole", "masked"]
"""Source of the predicted difficulty: the teacher on the whole image, or the student on masked patches."""


class PatchDifficulty(NamedTuple):
    """Predicted and true difficulty of every patch of a batch."""

    predicted: Tensor | None
    """float32 ``[B, N]``; None without a loss predictor"""
    true_loss: Tensor
    """reconstruction loss, mean over random masks, float32 ``[B, N]``"""

    def stacked(self) -> Tensor:
        """Return the predicted difficulty, if there is one, and the true loss on the CPU, ``[B, K, N]``."""
        return torch.stack([values for values in self if values is not None], dim=1).cpu()


class MaskedLosses(NamedTuple):
    """Losses of every patch, averaged over the random masks that contain it."""

    true_loss: Tensor
    """reconstruction loss, float32 ``[B, N]``"""
    predicted: Tensor | None
    """the student's prediction of it, float32 ``[B, N]``; None if it was not requested"""


@dataclass(frozen=True)
class ImageScore:
    """Difficulty of one image: a row of ``scores.parquet``. Values of the prediction are None without a predictor."""

    path: str
    mean_difficulty: float | None
    mean_true_loss: float
    spearman: float | None
    """rank correlation of predicted difficulty and true loss; also None if either is constant"""
    auc: float | None
    """area under the ROC curve of the predicted difficulty as a detector of the object; None without an object"""
    true_loss_auc: float | None
    """the same for the true loss"""
    difficulty: np.ndarray | None
    """float32 ``[N]``"""
    true_loss: np.ndarray
    """float32 ``[N]``"""
    rows: int
    columns: int


OF_PREDICTION = ("mean_difficulty", "spearman", "auc", "difficulty")
"""Values of an :class:`ImageScore` that need a loss predictor."""


def patch_difficulty(
    student: HPM,
    teacher: HPM,
    pixels: Tensor,
    indices: Tensor,
    *,
    masked: int,
    draws: int,
    seed: int,
    predict: Predict,
    target: Target | None,
) -> PatchDifficulty:
    """Predict the difficulty of every patch and measure its true loss, which needs no loss predictor.

    Args:
        student: in eval mode, on the device of ``pixels``.
        teacher: likewise; may be the student.
        pixels: ``[B, C, H, W]`` of the type of the student's reading.
        indices: int64 ``[B]``; with ``seed`` they determine the masks.
        masked: patches in a mask.
        draws: number of masks.
        seed: of the masks.
        predict: source of the predicted difficulty, ignored without a loss predictor.
        target: reconstruction target if it comes from another network; None uses the student's own.

    Raises:
        UserError: if a value is not finite.
    """
    images = student.normalize(pixels)
    output = None
    whole, in_masks = (student.has_predictor and predict == source for source in ("whole", "masked"))
    if whole or target is not None:
        output = teacher.forward_whole(images, difficulty=whole)
    targets = whole_targets(student, target, pixels, images, output)
    losses = losses_over_masks(
        student, images, indices, targets, masked=masked, draws=draws, seed=seed, predict=in_masks
    )
    predicted = losses.predicted
    if output is not None and output.difficulty is not None:
        predicted = output.difficulty.float()
    difficulty = PatchDifficulty(predicted, losses.true_loss)
    if not bool(difficulty.stacked().isfinite().all()):
        raise UserError("model: expected finite losses, got NaN or infinity; its training diverged, use another one")
    return difficulty


def whole_targets(
    student: HPM, target: Target | None, pixels: Tensor, images: Tensor, output: TeacherOutput | None
) -> Tensor:
    """Targets of every patch, ``[B, N, ...]``.

    Args:
        student: the model.
        target: reconstruction target if it comes from another network; None uses the student's own.
        pixels: ``[B, C, H, W]`` of the type of the student's reading.
        images: the same, normalized.
        output: of the teacher on them; None if the target does not need it.
    """
    if target is None:
        return student.target(images)
    patches = student.grid[0] * student.grid[1]
    return target(to_bytes(pixels, student), output, all_masked(len(images), patches, images.device))


def fixed_masks(
    indices: Tensor, grid: tuple[int, int], masked: int, draws: int, seed: int, unit: int = 1
) -> Iterator[Tensor]:
    """Yield random masks, bool ``[B, N]``, that together mask every patch equally often, up to a difference of one.

    A mask takes those patches first that were masked least often, in random order. Each single mask is thus uniformly
    random. Independent masks would leave one patch in a million unmasked at 75 % and ten draws.

    Args:
        indices: int64 ``[B]``; with ``seed`` they determine the masks.
        grid: (rows, columns) of patches.
        masked: units in a mask; for each to be masked once, ``draws * masked`` must be at least their number.
        draws: number of masks.
        seed: of the masks.
        unit: side, in patches, of the squares that are masked as a whole.
    """
    units = (grid[0] // unit) * (grid[1] // unit)
    times = torch.zeros(len(indices), units, device=indices.device)
    for draw in range(draws):
        mask = random_mask(patch_noise(seed, draw, indices, units) - times, masked)
        times += mask
        yield spread_units(mask, grid, unit)


def losses_over_masks(
    model: HPM,
    images: Tensor,
    indices: Tensor,
    target: Tensor,
    *,
    masked: int,
    draws: int,
    seed: int,
    predict: bool = False,
    unit: int = 1,
) -> MaskedLosses:
    """Average the reconstruction loss of every patch over random masks, and optionally the student's prediction of it.

    Args:
        model: in eval mode.
        images: normalized ``[B, C, H, W]``.
        indices: int64 ``[B]``; with ``seed`` they determine the masks, those of :func:`fixed_masks`.
        target: of every patch, ``[B, N, ...]``.
        masked: units in a mask; ``draws * masked`` must be at least the number of units.
        draws: number of masks.
        seed: of the masks.
        predict: average the predicted loss, too.
        unit: side, in patches, of the squares that are masked as a whole.
    """
    true_loss = torch.zeros(target.shape[:2], device=images.device)
    times, predicted = torch.zeros_like(true_loss), torch.zeros_like(true_loss)
    for mask in fixed_masks(indices, model.grid, masked, draws, seed, unit):
        patches = to_indices(mask, masked * unit**2)
        output = model.predict(images, patches, with_loss=predict)
        loss = model.reconstruction_loss(output.prediction, gather(target, patches.masked))  # [B, M]
        true_loss.scatter_add_(1, patches.masked, loss.float())
        if output.predicted is not None:
            predicted.scatter_add_(1, patches.masked, output.predicted.float())
        times += mask
    return MaskedLosses(true_loss / times, predicted / times if predict else None)


def score_image(
    path: str, values: np.ndarray, maps: np.ndarray, grid: tuple[int, int], mask: np.ndarray | None = None
) -> ImageScore:
    """Score one image.

    Args:
        path: of the image.
        values: predicted difficulty, if there is one, and true loss, float32 ``[K, N]``.
        maps: the same per pixel, ``[K, H, W]``; see :func:`upsample`.
        grid: (rows, columns) of patches.
        mask: bool ``[H, W]``, True on the object.
    """
    aucs = [None if mask is None else _roc_auc(mask, pixels) for pixels in maps]
    predicted, true_loss = values[0] if len(values) == 2 else None, values[-1]
    return ImageScore(
        path=printable(path),  # file names need not be valid Unicode, Parquet strings must be
        mean_difficulty=None if predicted is None else float(predicted.mean()),
        mean_true_loss=float(true_loss.mean()),
        spearman=None if predicted is None else _spearman(predicted, true_loss),
        auc=None if predicted is None else aucs[0],
        true_loss_auc=aucs[-1],
        difficulty=predicted,
        true_loss=true_loss,
        rows=grid[0],
        columns=grid[1],
    )


def hardest_patches(difficulty: Tensor, masked: int) -> Tensor:
    """Mask the ``masked`` patches with the highest ``difficulty [B, N]``: bool ``[B, N]`` (paper, Fig. 2 d)."""
    return hard_patches(difficulty, torch.zeros_like(difficulty), masked, masked)


def upsample(values: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Interpolate patch values ``[B, K, N]`` bilinearly between the patch centers: ``[B, K, H, W]``."""
    return F.interpolate(values.unflatten(2, grid), size=size, mode="bilinear", align_corners=False)


def _spearman(predicted: np.ndarray, true: np.ndarray) -> float | None:
    """Rank correlation; None if either is constant and has no ranks."""
    from scipy.stats import spearmanr

    if np.ptp(predicted) == 0 or np.ptp(true) == 0:
        return None
    return float(spearmanr(predicted, true).statistic)


def _roc_auc(mask: np.ndarray, values: np.ndarray) -> float | None:
    """Area under the ROC curve of ``values [H, W]``; None if the object fills the image or is not in it."""
    from sklearn.metrics import roc_auc_score

    if mask.all() or not mask.any():
        return None
    return float(roc_auc_score(mask.ravel(), values.ravel()))
