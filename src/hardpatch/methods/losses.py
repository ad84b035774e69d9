"""Reconstruction losses, one number for each patch, and the losses that train the predictor of these.

Everything is computed in float32, also under autocast.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hardpatch.choices import PredictingLossName, ReconstructionLossName
from hardpatch.processes import global_mean


def pixel_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each patch (paper, Eq. 3): ``[B, M, D]`` and ``[B, M, D]`` -> unreduced ``[B, M]``."""
    return (prediction.float() - target.float()).square().mean(dim=-1)


def absolute_pixel_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of each patch (SimMIM, Sec. 3.4): ``[B, M, D]`` and ``[B, M, D]`` -> ``[B, M]``."""
    return (prediction.float() - target.float()).abs().mean(dim=-1)


def smooth_l1_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean Huber loss of each patch, squared below 1, else absolute: ``[B, M, D]`` and ``[B, M, D]`` -> ``[B, M]``."""
    return F.smooth_l1_loss(prediction.float(), target.float(), reduction="none").mean(dim=-1)


def unit_vector_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared distance between unit vectors, the loss for feature targets (paper, Eq. 3 and Sec. 4.1).

    ``[B, M, D]`` and ``[B, M, D]`` -> ``[B, M]``. It is ``sum((p / |p| - t / |t|)^2)``, between 0 and 4: twice
    :func:`cosine_loss`.
    """
    return (F.normalize(prediction.float(), dim=-1) - F.normalize(target.float(), dim=-1)).square().sum(dim=-1)


def cosine_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """One minus the cosine of prediction and target: ``[B, M, D]`` and ``[B, M, D]`` -> ``[B, M]``."""
    return 1.0 - F.cosine_similarity(prediction.float(), target.float(), dim=-1)


def token_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of visual tokens (BEiT, Eq. 2): logits ``[B, M, K]`` and tokens int64 ``[B, M]`` -> ``[B, M]``."""
    return F.cross_entropy(prediction.float().flatten(0, 1), target.flatten(), reduction="none").view_as(target)


RECONSTRUCTION_LOSSES: dict[ReconstructionLossName, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": pixel_loss,
    "l1": absolute_pixel_loss,
    "smooth_l1": smooth_l1_loss,
    "l2norm": unit_vector_loss,
    "cosine": cosine_loss,
}


def relative_loss(predicted: Tensor, losses: Tensor, eps: float = 1e-6) -> Tensor:
    """Binary cross-entropy for the harder patch of each pair of masked patches of an image (paper, Eq. 5 to 7).

    The loss of a pair is ``-log(sigmoid(p_harder - p_easier) + eps)``; ties are left out. The paper sums over ordered
    pairs. (i, j) and (j, i) have the same loss, so only one of the two is computed.

    Args:
        predicted: losses that the predictor predicts, ``[B, M]``; the gradient flows into them.
        losses: the true reconstruction losses ``[B, M]``; detached here.
        eps: keeps the logarithm finite, as in the reference implementation.

    Returns:
        A scalar: the mean over all untied pairs of the batch, 0 if there is none. In several processes their mean is
        that of the whole batch (:func:`~hardpatch.processes.global_mean`).
    """
    difference, order = pair_differences(predicted.float()), pair_differences(losses.detach().float()).sign()
    weights = torch.ones(difference.shape[-1], device=predicted.device)
    if predicted.shape[1] % 2 == 0:
        weights[-1].fill_(0.5)  # these pairs occur in both orders; assigning 0.5 may wait for the device
    pairs = torch.where(order == 0, 0.0, -((difference * order).sigmoid() + eps).log())
    return global_mean((pairs * weights).sum(), ((order != 0) * weights).sum())


def pair_differences(values: Tensor) -> Tensor:
    """Differences of all pairs of numbers in a row, each pair in one order: ``[B, M]`` -> ``[B, M, M // 2]``.

    Entry (i, k) is number i minus number (i + k + 1) mod M. If M is even, the last k contains each of its pairs twice.
    """
    half = values.shape[1] // 2
    windows = torch.cat([values, values[:, :half]], dim=1).unfold(1, half + 1, 1)  # [B, M, half + 1], no copy
    return windows[..., :1] - windows[..., 1:]


def absolute_loss(predicted: Tensor, losses: Tensor) -> Tensor:
    """Mean squared error of ``predicted [B, M]`` against the true ``losses [B, M]`` (paper, Eq. 4): a scalar."""
    return F.mse_loss(predicted.float(), losses.detach().float())


def standardized_absolute_loss(predicted: Tensor, losses: Tensor, eps: float = 1e-6) -> Tensor:
    """Mean squared error against the losses of each image at mean 0 and unbiased variance 1: a scalar.

    The reference implementation computes this; Eq. 4 of the paper does not standardize (:func:`absolute_loss`).
    """
    losses = losses.detach().float()
    mean, variance = losses.mean(dim=1, keepdim=True), losses.var(dim=1, keepdim=True)
    return absolute_loss(predicted, (losses - mean) / (variance + eps).sqrt())


PREDICTING_LOSSES: dict[PredictingLossName, Callable[[Tensor, Tensor], Tensor]] = {
    "relative": relative_loss,
    "absolute": absolute_loss,
    "absolute_standardized": standardized_absolute_loss,
}


def pair_accuracy(predicted: Tensor, losses: Tensor) -> Tensor:
    """Share of the pairs of masked patches that ``predicted [B, M]`` ranks as ``losses [B, M]`` do; 0.5 is chance.

    Pairs with equal losses are left out; a tie in ``predicted`` counts half. A scalar, NaN if no pair is left.
    """
    harder = losses.unsqueeze(2) > losses.unsqueeze(1)
    difference = predicted.unsqueeze(2) - predicted.unsqueeze(1)
    right = (difference.sign() + 1.0) * 0.5
    return torch.where(harder, right, 0.0).sum() / harder.sum()


def rank_correlation(predicted: Tensor, losses: Tensor) -> Tensor:
    """Spearman's rank correlation of ``predicted`` and ``losses``, both ``[B, M]``, within each image: ``[B]``.

    Ties are ranked in their order; the losses of real images have none.
    """
    ranks = torch.stack([predicted, losses]).argsort(dim=-1).argsort(dim=-1).float()
    centered = ranks - ranks.mean(dim=-1, keepdim=True)
    return F.cosine_similarity(centered[0], centered[1], dim=-1)
