"""A host for weights without a decoder: it encodes, and cannot reconstruct."""

from torch import Tensor

from hardpatch.errors import UserError
from hardpatch.methods.base import Host
from hardpatch.models.decoder import Tokens
from hardpatch.models.encoder import Encoder
from hardpatch.patches import PatchIndices

NO_DECODER = (
    "RUN: expected weights with a decoder or a loss predictor, these have an encoder only; it can be embedded, "
    "measured by knn and linear, fine-tuned and exported"
)


class EncoderOnly(Host):
    """Encoder whose file has no decoder.

    Args:
        encoder: with its weights.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def decoder_tokens(
        self, latent: Tensor, mask: Tensor | PatchIndices | None = None, grid: tuple[int, int] | None = None
    ) -> Tokens:
        """Refuse to decode.

        Raises:
            UserError: always.
        """
        raise UserError(NO_DECODER)

    def target(self, images: Tensor) -> Tensor:
        """Refuse to make targets, which nothing could reconstruct.

        Raises:
            UserError: always.
        """
        raise UserError(NO_DECODER)
