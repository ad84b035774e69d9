"""Features of a ViT that this package trained under labels, as a target for reconstruction."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hardpatch.models.encoder import Encoder
from hardpatch.models.pixels import normalize


class SupervisedTeacher(nn.Module):
    """A fine-tuned encoder that is not trained and returns one feature vector for each patch of the student's grid.

    The features are the patch tokens of the last block after the norm that the classifier applies to their mean.

    Args:
        encoder: of the classifier; its grid is the student's.
        norm: of the classifier.
        mean: of the normalization of its pixels, one value for each channel.
        std: likewise.
    """

    mean: Tensor
    std: Tensor
    width: int
    """Length of a feature vector, T."""

    def __init__(self, encoder: Encoder, norm: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.encoder, self.norm, self.width = encoder, norm, encoder.width
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values), persistent=False)
        self.eval()
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> "SupervisedTeacher":
        """Stay in eval mode, whatever the mode of the module that contains this one."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Compute features ``[B, N, T]``, patches row by row, of ``pixels`` (uint8 ``[B, C, H, W]``)."""
        return self.norm(self.encoder(normalize(pixels, self.mean, self.std))[:, 1:])
