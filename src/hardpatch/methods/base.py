"""The contract between a masked image model and what mines its masks, and what hosts with mask tokens share."""

from typing import Protocol

from torch import Tensor, nn

from hardpatch.models.decoder import DecoderEmbed, Tokens
from hardpatch.models.encoder import Encoder
from hardpatch.patches import PatchIndices, gather


class Host(Protocol):
    """A masked image model that takes its mask from outside and says how well it rebuilt every single patch.

    A host is an ``nn.Module``. Shapes: ``images [B, C, H, W]`` normalized; a mask is bool ``[B, N]``, True = masked,
    or its :class:`~hardpatch.patches.PatchIndices`; the target has any shape ``[B, M, ...]``.
    """

    encoder: Encoder
    reconstruction_only: tuple[str, ...]
    """Names of the submodules that a teacher does without."""

    def encode(self, images: Tensor, mask: Tensor | PatchIndices | None = None) -> Tensor:
        """Latent ``[B, 1 + V, D]``, or ``[B, 1 + N, D]`` where masked patches are tokens too; class token first."""

    def decoder_tokens(
        self, latent: Tensor, mask: Tensor | PatchIndices | None = None, grid: tuple[int, int] | None = None
    ) -> Tokens:
        """What the loss predictor reads, for a ``grid`` of patches; :meth:`reconstruct` is given it as well."""

    def reconstruct(self, latent: Tensor, tokens: Tokens, mask: PatchIndices) -> Tensor:
        """Predictions ``[B, M, T]`` for the masked patches, from whichever of latent and tokens the host needs."""

    def target(self, images: Tensor) -> Tensor:
        """What is to be predicted for every patch, ``[B, N, T]``, without gradient; not asked for where the target
        comes from another network (:mod:`hardpatch.methods.targets`)."""

    def reconstruction_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Prediction and target of the masked patches -> the loss of each, unreduced, ``[B, M]``."""


class TokenHost(nn.Module):
    """A host whose encoder sees masked patches as mask tokens, so that a head on its output is all it takes.

    Args:
        encoder: with mask tokens.
        head: from ``[..., D]`` to a prediction for a patch.
        decoder_width: of the loss predictor's tokens; None where there is no predictor.
    """

    reconstruction_only: tuple[str, ...] = ("head",)

    def __init__(self, encoder: Encoder, head: nn.Module, decoder_width: int | None = None) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self.decoder_embed = None
        if decoder_width is not None:
            self.decoder_embed = DecoderEmbed(
                latent_width=encoder.width, width=decoder_width, grid=encoder.grid, mask_token=False
            )

    def encode(self, images: Tensor, mask: Tensor | PatchIndices | None = None) -> Tensor:
        return self.encoder(images, mask)

    def decoder_tokens(
        self, latent: Tensor, mask: Tensor | PatchIndices | None = None, grid: tuple[int, int] | None = None
    ) -> Tokens:
        if self.decoder_embed is None:  # nobody will read them
            return Tokens(latent, slice(0))
        return self.decoder_embed(latent, mask, grid)

    def reconstruct(self, latent: Tensor, tokens: Tokens, mask: PatchIndices) -> Tensor:
        return self.head(gather(latent[:, 1:], mask.masked))
