"""MAE (He et al., CVPR 2022): encode the visible patches only, reconstruct the masked ones with a small decoder."""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from hardpatch.choices import ReconstructionLossName
from hardpatch.methods import targets
from hardpatch.methods.base import Host
from hardpatch.methods.losses import RECONSTRUCTION_LOSSES
from hardpatch.models.block import Block, initialize
from hardpatch.models.decoder import Decoder, DecoderEmbed, Tokens, run_blocks
from hardpatch.models.encoder import Encoder
from hardpatch.patches import PatchIndices


class MAE(Host):
    """Masked autoencoder.

    With feature targets this is distillation as in BootMAE or MILAN.

    Args:
        image_size: (height, width) in pixels.
        patch_size: side of a patch in pixels.
        channels: of the images.
        decoder_width, decoder_depth, decoder_heads: sizes of the reconstructor.
        shared_blocks: number of its first blocks whose output the loss predictor reads too.
        cross: see :class:`~hardpatch.models.decoder.Decoder`.
        normalize_pixels: bring each target patch to mean 0 and variance 1.
        outputs: numbers to predict for each patch; None is its pixels.
        loss: one of :data:`~hardpatch.methods.losses.RECONSTRUCTION_LOSSES`.
        encoder: further arguments of :class:`~hardpatch.models.encoder.Encoder`.
    """

    reconstruction_only: tuple[str, ...] = ("reconstructor",)

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        patch_size: int,
        channels: int = 3,
        decoder_width: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        shared_blocks: int = 0,
        cross: bool = False,
        normalize_pixels: bool = False,
        outputs: int | None = None,
        loss: ReconstructionLossName = "mse",
        **encoder: Any,
    ) -> None:
        super().__init__()
        self.normalize_pixels, self.reconstructs_pixels = normalize_pixels, outputs is None
        self.loss = RECONSTRUCTION_LOSSES[loss]
        self.encoder = Encoder(image_size=image_size, patch_size=patch_size, channels=channels, **encoder)
        self.decoder_embed = DecoderEmbed(latent_width=self.encoder.width, width=decoder_width, grid=self.encoder.grid)
        self.reconstructor = Decoder(
            width=decoder_width,
            depth=decoder_depth - shared_blocks,
            heads=decoder_heads,
            outputs=patch_size**2 * channels if outputs is None else outputs,
            cross=cross,
        )
        self.shared = nn.ModuleList(Block(decoder_width, decoder_heads) for _ in range(shared_blocks))
        initialize(self.shared)

    def decoder_tokens(
        self, latent: Tensor, mask: Tensor | PatchIndices | None = None, grid: tuple[int, int] | None = None
    ) -> Tokens:
        """Embed visible patches and mask tokens, and apply the blocks that both decoders share."""
        tokens = self.decoder_embed(latent, mask, grid)
        return run_blocks(cast(Sequence[Block], self.shared), tokens) if self.shared else tokens

    def reconstruct(self, latent: Tensor, tokens: Tokens, mask: PatchIndices) -> Tensor:
        """Decode the tokens to the targets of the masked patches, ``[B, M, T]``."""
        return self.reconstructor(tokens)

    def target(self, images: Tensor) -> Tensor:
        """Pixels of every patch, ``[B, N, p * p * C]`` (paper, Eq. 3)."""
        return targets.pixels(images, self.encoder.patch_size, normalize=self.normalize_pixels)

    def reconstruction_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of each masked patch, unreduced ``[B, M]`` (paper, Eq. 3)."""
        return self.loss(prediction, target)
