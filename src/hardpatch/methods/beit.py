"""BEiT (Bao et al., ICLR 2022): the encoder sees mask tokens and predicts the visual token of each masked patch.

The visual tokens come from a tokenizer that is trained beforehand (:mod:`hardpatch.models.tokenizer`). BEiT masks
blocks, and its ViT has a relative position bias and layer scale; the recipes set these. The start weights are those of
the authors' code (:func:`~hardpatch.models.start_weights.start_as_beit`); the head starts likewise, with zero biases.
"""

from typing import Any

import torch
from torch import Tensor, nn

from hardpatch.methods.base import TokenHost
from hardpatch.methods.distillation import token_entropy
from hardpatch.methods.losses import token_loss
from hardpatch.models.encoder import Encoder
from hardpatch.models.start_weights import start_as_beit, truncate_at_one_sigma_

TOKENS = ("encoder.cls_token", "encoder.mask_token", "encoder.positions", "encoder.class_position")
"""Parameters of the encoder that BEiT does not decay. The authors' code does decay the mask token."""


class BEiT(TokenHost):
    """Masked classification of visual tokens.

    Args:
        vocabulary: number of visual tokens.
        decoder_width: width of the loss predictor's tokens; None without a predictor.
        encoder: see :class:`~hardpatch.models.encoder.Encoder`.
    """

    has_token_metrics = True
    no_weight_decay = TOKENS

    def __init__(self, *, vocabulary: int, decoder_width: int | None = None, **encoder: Any) -> None:
        vit = Encoder(drop_masked=False, **encoder)
        start_as_beit(vit)
        head = nn.Linear(vit.width, vocabulary)
        truncate_at_one_sigma_(head.weight)
        nn.init.zeros_(head.bias)
        super().__init__(vit, head, decoder_width)

    def reconstruction_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of each masked patch ``[B, M]``: logits ``[B, M, K]``, tokens ``[B, M]`` (BEiT, Eq. 2)."""
        return token_loss(prediction, target)

    @torch.no_grad()
    def token_metrics(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Entropy of the use of visual tokens in predictions and targets, in [0, 1]; 1 means even use."""
        vocabulary = prediction.shape[-1]
        return {
            "token_entropy": token_entropy(prediction.argmax(dim=-1), vocabulary),
            "target_entropy": token_entropy(target, vocabulary),
        }
