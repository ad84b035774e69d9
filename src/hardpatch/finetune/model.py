"""Network of fine-tuning: a pre-trained encoder with a linear layer on top, trained on labels."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hardpatch.choices import PoolName
from hardpatch.data.reading import Reading
from hardpatch.models.batch_norm import BatchNorm1d
from hardpatch.models.block import NORM_EPS, Block
from hardpatch.models.encoder import Encoder, patch_grid
from hardpatch.models.pixels import normalize, register_normalization
from hardpatch.models.transfer import train_positions

HEAD_STD = 2e-5
"""Standard deviation of the head's first weights (MAE): so small that its first gradients do not harm the encoder."""
PROBE_STD, PROBE_EPS = 0.01, 1e-6
"""Standard deviation of a linear probe's first weights, and eps of its batch norm, as in the code of MAE and HPM."""
FROZEN_BATCH = 256
"""Images that a frozen encoder sees at once. The batch norm sees the features of the whole batch all the same."""


class Classifier(nn.Module):
    """Encoder, mean of the patch tokens, norm, linear layer: MAE's network for fine-tuning (He et al. 2022, App. A.2).

    A new norm after the mean replaces the encoder's last norm. The positions are trained, too, as in the reference
    implementations, where they are a parameter that pre-training keeps fixed.

    With ``frozen`` it is a linear probe (App. A.1): the encoder, its last norm included, stays as it is and in eval
    mode, and the new norm is a batch norm without parameters.

    Args:
        encoder: is changed and becomes part of this network.
        classes: number of classes.
        mean, std: of each channel for pixels in [0, 1], by which images are normalized.
        reading: channels, type and range of the pixels; None is 8 bits.
        image_size: (height, width) of the images in pixels; None is that of the encoder. Positions are interpolated.
        drop_path: drop path of the last block; it rises linearly from 0 in the first block.
        frozen: train the linear layer only.
        pool: ``mean`` of the patch tokens, or the ``class`` token.
        units: mean and standard deviation of each target of a regression: the linear layer predicts standardized
            targets, the network returns them in the units of the data.

    Raises:
        ValueError: if the patch size does not divide the image.
    """

    reading: Reading
    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self,
        encoder: Encoder,
        classes: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        reading: Reading | None = None,
        image_size: tuple[int, int] | None = None,
        drop_path: float = 0.0,
        frozen: bool = False,
        pool: PoolName = "mean",
        units: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.frozen, self.pool = encoder.requires_grad_(not frozen), frozen, pool
        encoder.mask_token = None
        grid = encoder.grid if image_size is None else patch_grid(image_size, encoder.patch_size)
        self.fc_norm: nn.LayerNorm | BatchNorm1d
        if frozen:
            self.fc_norm = BatchNorm1d(encoder.width, eps=PROBE_EPS, affine=False)
        else:
            self._unfreeze(grid, drop_path)
            self.fc_norm = nn.LayerNorm(encoder.width, eps=NORM_EPS)
        self.head = nn.Linear(encoder.width, classes)
        nn.init.trunc_normal_(self.head.weight, std=PROBE_STD if frozen else HEAD_STD)
        nn.init.zeros_(self.head.bias)
        register_normalization(self, mean, std, reading)
        self.task = "classes"
        """what its outputs are: of :data:`~hardpatch.choices.TaskName`; a loaded network knows"""
        self.target_mean: Tensor | None
        self.target_std: Tensor | None
        for name, values in zip(("target_mean", "target_std"), units or (None, None), strict=True):
            # not persistent: they stand in the metadata of weights
            self.register_buffer(name, None if values is None else torch.tensor(values), persistent=False)
        self.train()

    def _unfreeze(self, grid: tuple[int, int], drop_path: float) -> None:
        """Prepare the encoder for training: no last norm, drop path, and positions of ``grid`` that are trained."""
        encoder = self.encoder
        encoder.norm = nn.Identity()  # type: ignore[assignment]
        depth = len(encoder.blocks)
        for number, block in enumerate(encoder.blocks):
            assert isinstance(block, Block)
            block.drop_path = drop_path * number / max(depth - 1, 1)
        train_positions(encoder, grid)

    def train(self, mode: bool = True) -> "Classifier":
        """Set the mode of the network; a frozen encoder stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Classify normalized images.

        Args:
            images: ``[B, C, H, W]``.
            mask: bool ``[B, N]``, True = dropped, as many in every image; None shows all patches.

        Returns:
            Scores ``[B, classes]``; of a regression the targets, in the units of the data.
        """
        scores: Tensor = self.head(self.fc_norm(self.features(images, mask)))
        if self.target_mean is None or self.target_std is None:
            return scores
        return scores.float() * self.target_std + self.target_mean

    def features(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode normalized images ``[B, C, H, W]`` as one vector each, ``[B, D]``; arguments as in :meth:`forward`."""
        if not self.frozen or torch.compiler.is_exporting():  # a graph has no parts of a number that may change
            return self._pooled(images, mask)
        parts = images.split(FROZEN_BATCH)
        masks = [None] * len(parts) if mask is None else mask.split(FROZEN_BATCH)
        with torch.no_grad():
            return torch.cat([self._pooled(part, hidden) for part, hidden in zip(parts, masks, strict=True)])

    def _pooled(self, images: Tensor, mask: Tensor | None) -> Tensor:
        tokens = self.encoder(images, mask)
        return tokens[:, 1:].mean(dim=1) if self.pool == "mean" else tokens[:, 0]

    def normalize(self, images: Tensor) -> Tensor:
        """Normalize pixels, uint8 ``[B, C, H, W]``, to the network's input, float32."""
        return normalize(images, self)
