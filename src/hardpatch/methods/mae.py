"""MAE (He et al., CVPR 2022): drop most patches, encode the rest, rebuild the pixels of the dropped ones."""

from torch import Tensor, nn

from hardpatch import targets
from hardpatch.losses import pixel_loss
from hardpatch.models.decoder import Decoder, DecoderEmbed
from hardpatch.models.encoder import Encoder
from hardpatch.patches import Split


class MAE(nn.Module):
    """A masked autoencoder with pixel targets; see :class:`hardpatch.methods.base.Host` for what each method returns.

    Args:
        image_size: (height, width) in pixels.
        patch_size, channels, width, depth, heads: see :class:`~hardpatch.models.encoder.Encoder`.
        decoder_width, decoder_depth, decoder_heads: of the reconstructor.
        normalise_pixels: bring each target patch to mean 0 and variance 1.
    """

    reconstruction_only: tuple[str, ...] = ("reconstructor",)

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        patch_size: int,
        channels: int = 3,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        decoder_width: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        normalise_pixels: bool = False,
    ) -> None:
        super().__init__()
        self.normalise_pixels = normalise_pixels
        self.encoder = Encoder(
            image_size=image_size, patch_size=patch_size, channels=channels, width=width, depth=depth, heads=heads
        )
        self.decoder_embed = DecoderEmbed(latent_width=width, width=decoder_width, grid=self.encoder.grid)
        self.reconstructor = Decoder(
            width=decoder_width, depth=decoder_depth, heads=decoder_heads, outputs=patch_size**2 * channels
        )

    def encode(self, images: Tensor, mask: Tensor | Split | None = None) -> Tensor:
        return self.encoder(images, mask)

    def reconstruct(self, latent: Tensor, mask: Tensor | Split) -> Tensor:
        return self.reconstructor(self.decoder_embed(latent, mask), mask)

    def target(self, images: Tensor) -> Tensor:
        return targets.pixels(images, self.encoder.patch_size, normalise=self.normalise_pixels)

    def reconstruction_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return pixel_loss(prediction, target)
