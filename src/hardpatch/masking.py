"""Which patches to mask. Every function returns bool ``[B, N]``, True = masked (the paper's M is 1 for *visible*).

All randomness enters as ``noise [B, N]``, uniform in [0, 1) (see :func:`hardpatch.randomness.patch_noise`): the same
noise gives the same mask, on any device, and the counts are exact.
"""

from typing import Literal

import torch
from torch import Tensor

Mining = Literal["hard", "easy"]


def masked_count(patches: int, mask_ratio: float) -> int:
    """Number of masked patches: what is left beside ``int(N * (1 - ratio))`` visible ones (147 of 196 at 0.75).

    Raises:
        ValueError: if the ratio is outside (0, 1), or leaves no patch visible or none masked.
    """
    if not 0.0 < mask_ratio < 1.0:
        raise ValueError(f"mask_ratio: expected a number between 0 and 1, got {mask_ratio}")
    visible = int(patches * (1.0 - mask_ratio))  # in floating point, as in the reference: 9 of 100 at 0.9
    if visible == 0 or visible == patches:
        raise ValueError(f"mask_ratio: {mask_ratio} of {patches} patches leaves {visible} visible")
    return patches - visible


def random_mask(noise: Tensor, masked: int) -> Tensor:
    """Mask ``masked`` patches of every image at random: those with the highest ``noise [B, N]``."""
    return _highest(noise, masked)


def hard_patches(difficulty: Tensor | None, noise: Tensor, masked: int, mined: int, mining: Mining = "hard") -> Tensor:
    """Mask the ``mined`` hardest patches and draw the rest at random (paper, Sec. 3.3 and Algorithm 1).

    With ``mined = 0`` this is :func:`random_mask` bit for bit, and no difficulty is needed.

    Args:
        difficulty: predicted reconstruction loss ``[B, N]``.
        noise: ``[B, N]``, uniform in [0, 1).
        masked: patches to mask in each image.
        mined: how many of them are chosen by difficulty: ``int(masked * alpha)``.
        mining: ``"hard"`` takes the highest predicted losses (argmax), ``"easy"`` the lowest (argmin).

    Raises:
        ValueError: unless ``0 <= mined <= masked <= N``, or if patches are to be mined without a difficulty.
    """
    if not 0 <= mined <= masked <= noise.shape[1]:
        raise ValueError(f"expected 0 <= mined <= masked <= {noise.shape[1]} patches, got {mined} and {masked}")
    if mined == 0:
        return random_mask(noise, masked)
    if difficulty is None:
        raise ValueError(f"difficulty: expected [B, N] to mine {mined} patches, got None")
    chosen = difficulty.topk(mined, dim=1, largest=mining == "hard", sorted=False).indices
    return _highest(noise.scatter(1, chosen, 2.0), masked)


def _highest(priority: Tensor, count: int) -> Tensor:
    chosen = priority.topk(count, dim=1, sorted=False).indices
    return torch.zeros_like(priority, dtype=torch.bool).scatter(1, chosen, True)
