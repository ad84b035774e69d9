"""BEiT (Bao et al., ICLR 2022): masked patches stay as mask tokens, and the encoder predicts their visual tokens.

The visual tokens come from a tokenizer that is trained beforehand (:mod:`hardpatch.models.tokenizer`). BEiT masks
blocks, and its ViT has a relative position bias and layer scale: see the recipes.
"""

from typing import Any

import torch
from torch import Tensor, nn

from hardpatch.methods.base import TokenHost
from hardpatch.methods.distillation import token_entropy
from hardpatch.methods.losses import token_loss
from hardpatch.models.encoder import Encoder


class BEiT(TokenHost):
    """Masked classification of visual tokens.

    Args:
        vocabulary: of the tokenizer.
        decoder_width: of the loss predictor's tokens; None without one.
        encoder: see :class:`~hardpatch.models.encoder.Encoder`.
    """

    monitors_tokens = True

    def __init__(self, *, vocabulary: int, decoder_width: int | None = None, **encoder: Any) -> None:
        vit = Encoder(drop_masked=False, **encoder)
        super().__init__(vit, nn.Linear(vit.width, vocabulary), decoder_width)

    def reconstruction_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return token_loss(prediction, target)

    @torch.no_grad()
    def token_metrics(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Entropy of the use of visual tokens in predictions and targets, in [0, 1]; 1 is even use."""
        vocabulary = prediction.shape[-1]
        return {
            "token_entropy": token_entropy(prediction.argmax(dim=-1), vocabulary),
            "target_entropy": token_entropy(target, vocabulary),
        }
