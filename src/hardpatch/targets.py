"""What the student reconstructs, for every patch of an image and without gradient."""

import torch
from torch import Tensor

from hardpatch.patches import patchify


@torch.no_grad()
def pixels(images: Tensor, patch_size: int, *, normalise: bool = False, eps: float = 1e-6) -> Tensor:
    """The pixels of each patch, ``[B, C, H, W]`` -> ``[B, N, p * p * C]``.

    With ``normalise`` each patch vector is brought to mean 0 and variance 1 (MAE, Sec. 3: "normalised pixels"), by the
    unbiased variance.
    """
    patches = patchify(images, patch_size)
    if not normalise:
        return patches
    mean, variance = patches.mean(dim=-1, keepdim=True), patches.var(dim=-1, keepdim=True)
    return (patches - mean) / (variance + eps).sqrt()
