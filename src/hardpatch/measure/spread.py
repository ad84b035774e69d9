"""Label-free measures of features: the directions that they use, and the neighbors that they give an image."""

import torch
import torch.nn.functional as F
from torch import Tensor


def rankme(features: Tensor, eps: float = 1e-7) -> float:
    """Compute the effective rank of features ``[n, D]`` (RankMe; Garrido et al., ICML 2023): from 1 to min(n, D).

    It is the exponential of the entropy of the singular values divided by their sum. The features are not centered, as
    in the paper: features that are all alike have rank 1.
    """
    values = torch.linalg.svdvals(features.double())
    total = values.sum()
    if total == 0:  # all features are zero
        return 1.0
    shares = values / total + eps
    return float(torch.exp(-(shares * shares.log()).sum()))


def nearest_neighbors(features: Tensor, k: int) -> Tensor:
    """Return the ``k`` most similar other features by cosine: ``[n, D]`` -> int64 ``[n, k]``, nearest first.

    Raises:
        ValueError: unless ``1 <= k < n``.
    """
    if not 1 <= k < len(features):
        raise ValueError(f"k: expected 1 to {len(features) - 1} neighbors of {len(features)} features, got {k}")
    unit = F.normalize(features.float(), dim=1)
    return (unit @ unit.T).fill_diagonal_(-2.0).topk(k, dim=1).indices


def shared_neighbors(neighbors: Tensor, others: Tensor) -> float:
    """Compute the share of the ``neighbors [n, k]`` that are among the ``others [n, k]`` of the same feature."""
    return float((neighbors.unsqueeze(2) == others.unsqueeze(1)).any(2).double().mean())
