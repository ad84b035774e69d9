"""Features of a ViT that this package trained under labels, as a target for reconstruction."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hardpatch.data.reading import Reading
from hardpatch.models.encoder import Encoder
from hardpatch.models.pixels import normalize, register_normalization


class SupervisedTeacher(nn.Module):
    """A fine-tuned encoder that is not trained and returns one feature vector for each patch of the student's grid.

    The features are the patch tokens of the last block after the norm that the classifier applies to their mean.

    Args:
        encoder: of the classifier; its grid is the student's.
        norm: of the classifier.
        mean: of the normalization of its pixels, one value for each channel.
        std: likewise.
        reading: channels, type and range of the pixels; None is 8 bits.
    """

    reading: Reading
    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor
    width: int
    """Length of a feature vector, T."""

    def __init__(
        self,
        encoder: Encoder,
        norm: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        reading: Reading | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.norm, self.width = encoder, norm, encoder.width
        register_normalization(self, mean, std, reading)
        self.eval()
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> "SupervisedTeacher":
        """Stay in eval mode, whatever the mode of the module that contains this one."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Compute features ``[B, N, T]``, patches row by row, of ``pixels`` (uint8 ``[B, C, H, W]``)."""
        return self.norm(self.encoder(normalize(pixels, self))[:, 1:])
