"""SimMIM (Xie et al., CVPR 2022): the encoder sees mask tokens, a linear head predicts the pixels, L1 loss.

SimMIM masks 60 % of the squares of 32 px (the recipes set this). The difficulty of a square is the mean of its patches.
The encoder is BEiT's and starts as BEiT's; the head starts as torch's linear layers do, as in the authors' code.
"""

from typing import Any

from torch import Tensor, nn

from hardpatch.choices import ReconstructionLossName
from hardpatch.methods import targets
from hardpatch.methods.base import TokenHost
from hardpatch.methods.beit import TOKENS
from hardpatch.methods.losses import RECONSTRUCTION_LOSSES
from hardpatch.models.encoder import Encoder
from hardpatch.models.start_weights import start_as_beit


class SimMIM(TokenHost):
    """Masked pixel regression with a linear head.

    Args:
        patch_size: side of a patch in pixels.
        channels: of the images.
        decoder_width: width of the loss predictor's tokens; None without a predictor.
        normalize_pixels: bring each target patch to mean 0 and variance 1.
        outputs: numbers to predict for each patch; None is its pixels.
        loss: one of :data:`~hardpatch.methods.losses.RECONSTRUCTION_LOSSES`.
        encoder: further arguments of :class:`~hardpatch.models.encoder.Encoder`.
    """

    no_weight_decay = TOKENS

    def __init__(
        self,
        *,
        patch_size: int,
        channels: int = 3,
        decoder_width: int | None = None,
        normalize_pixels: bool = False,
        outputs: int | None = None,
        loss: ReconstructionLossName = "l1",
        **encoder: Any,
    ) -> None:
        vit = Encoder(patch_size=patch_size, channels=channels, drop_masked=False, **encoder)
        start_as_beit(vit)
        head = nn.Linear(vit.width, patch_size**2 * channels if outputs is None else outputs)
        super().__init__(vit, head, decoder_width)
        self.normalize_pixels, self.reconstructs_pixels = normalize_pixels, outputs is None
        self.loss = RECONSTRUCTION_LOSSES[loss]

    def target(self, images: Tensor) -> Tensor:
        """Pixels of every patch, ``[B, N, p * p * C]``."""
        return targets.pixels(images, self.encoder.patch_size, normalize=self.normalize_pixels)

    def reconstruction_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of each masked patch, unreduced ``[B, M]`` (SimMIM, Sec. 3.4)."""
        return self.loss(prediction, target)
