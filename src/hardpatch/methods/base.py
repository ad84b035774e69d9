"""The contract between a masked image model and what mines its masks."""

from typing import Protocol

from torch import Tensor

from hardpatch.models.decoder import DecoderEmbed
from hardpatch.models.encoder import Encoder
from hardpatch.patches import Split


class Host(Protocol):
    """A masked image model that takes its mask from outside and says how well it rebuilt every single patch.

    A host is an ``nn.Module``. Shapes: ``images [B, C, H, W]`` normalised; a mask is bool ``[B, N]``, True = masked,
    or its :class:`~hardpatch.patches.Split`.
    """

    encoder: Encoder
    decoder_embed: DecoderEmbed
    reconstruction_only: tuple[str, ...]
    """Names of the submodules that a teacher does without."""

    def encode(self, images: Tensor, mask: Tensor | Split | None = None) -> Tensor:
        """Latent ``[B, 1 + V, D]``, class token first."""

    def reconstruct(self, latent: Tensor, mask: Tensor | Split) -> Tensor:
        """Predictions ``[B, M, T]`` for the masked patches."""

    def target(self, images: Tensor) -> Tensor:
        """What is to be predicted for every patch, ``[B, N, T]``, without gradient."""

    def reconstruction_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """``[B, M, T]`` twice -> the loss of each patch, unreduced, ``[B, M]``."""
