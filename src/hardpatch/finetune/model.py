"""Network of fine-tuning: a pre-trained encoder with a linear layer on top, both trained on labels."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hardpatch.models.block import NORM_EPS, Block
from hardpatch.models.encoder import Encoder, patch_grid
from hardpatch.models.pixels import normalize
from hardpatch.models.positions import resample_positions

HEAD_STD = 2e-5
"""Standard deviation of the head's first weights (MAE): so small that its first gradients do not harm the encoder."""


class Classifier(nn.Module):
    """Encoder, mean of the patch tokens, norm, linear layer: MAE's network for fine-tuning (He et al. 2022, App. A.2).

    A new norm after the mean replaces the encoder's last norm. The positions are trained, too, as in the reference
    implementations, where they are a parameter that pre-training keeps fixed.

    Args:
        encoder: is changed and becomes part of this network.
        classes: number of classes.
        mean, std: of each channel for pixels in [0, 1], by which images are normalized.
        image_size: (height, width) of the images in pixels; None is that of the encoder. Positions are interpolated.
        drop_path: drop path of the last block; it rises linearly from 0 in the first block.

    Raises:
        ValueError: if the patch size does not divide the image.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: Encoder,
        classes: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: tuple[int, int] | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(True)
        encoder.mask_token = None
        encoder.norm = nn.Identity()  # type: ignore[assignment]
        depth = len(encoder.blocks)
        for number, block in enumerate(encoder.blocks):
            assert isinstance(block, Block)
            block.drop_path = drop_path * number / max(depth - 1, 1)
        grid = encoder.grid if image_size is None else patch_grid(image_size, encoder.patch_size)
        if encoder.positions is not None:
            positions = resample_positions(encoder.positions.detach(), encoder.grid, grid).clone()
            del encoder.positions  # a buffer cannot be overwritten by a parameter
            encoder.positions, encoder.grid = nn.Parameter(positions), grid
        self.fc_norm = nn.LayerNorm(encoder.width, eps=NORM_EPS)
        self.head = nn.Linear(encoder.width, classes)
        nn.init.trunc_normal_(self.head.weight, std=HEAD_STD)
        nn.init.zeros_(self.head.bias)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Classify normalized images ``[B, C, H, W]``: scores ``[B, classes]``."""
        return self.head(self.fc_norm(self.encoder(images)[:, 1:].mean(dim=1)))

    def normalize(self, images: Tensor) -> Tensor:
        """Normalize pixels, uint8 ``[B, C, H, W]``, to the network's input, float32."""
        return normalize(images, self.mean, self.std)
