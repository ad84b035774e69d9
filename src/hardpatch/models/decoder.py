"""The decoder, one class with two uses: it reconstructs the masked patches, and it predicts how hard that will be."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpatch.models.block import NORM_EPS, Block, initialise
from hardpatch.models.positions import resample_positions, sincos_positions
from hardpatch.patches import Split, gather, scatter, split


class DecoderEmbed(nn.Module):
    """What reconstructor and loss predictor share: the embedding of the latent, the mask token and the positions.

    Args:
        latent_width: width of the encoder.
        width: width of the decoders.
        grid: (rows, columns) of patches.
        mask_token: have one; not where the encoder hands on all patches.
    """

    positions: Tensor

    def __init__(self, *, latent_width: int, width: int, grid: tuple[int, int], mask_token: bool = True) -> None:
        super().__init__()
        self.grid = grid
        self.proj = nn.Linear(latent_width, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width)) if mask_token else None
        self.register_buffer("positions", sincos_positions(width, grid), persistent=False)
        if self.mask_token is not None:
            nn.init.normal_(self.mask_token, std=0.02)
        initialise(self)

    def forward(
        self, latent: Tensor, mask: Tensor | Split | None = None, grid: tuple[int, int] | None = None
    ) -> Tensor:
        """Latent ``[B, 1 + V, D]`` -> decoder tokens ``[B, 1 + N, width]`` in image order, mask tokens put in.

        ``grid`` is that of the images where they have another size than the model was built for.
        """
        x = self.proj(latent)
        class_token, patches = x[:, :1], x[:, 1:]
        positions = resample_positions(self.positions, self.grid, grid or self.grid).to(x.dtype)
        if mask is not None:
            assert self.mask_token is not None
            mask_tokens = self.mask_token.to(x.dtype).expand(len(x), len(positions), -1)
            patches = scatter(patches, split(mask).visible, into=mask_tokens)
        return torch.cat([class_token, patches + positions], dim=1)


class Decoder(nn.Module):
    """Transformer blocks over all tokens, then norm and head on the patches that are asked for.

    Args:
        width, depth, heads: of the Transformer.
        outputs: numbers predicted for each patch.
    """

    def __init__(self, *, width: int, depth: int, heads: int, outputs: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.head = nn.Linear(width, outputs)
        initialise(self)

    def forward(self, tokens: Tensor, mask: Tensor | Split | None = None) -> Tensor:
        """Tokens ``[B, 1 + N, width]`` -> predictions ``[B, M, outputs]`` of the masked patches, ``[B, N, outputs]``
        of all of them where there is no mask."""
        return self.head(self._features(tokens, mask))

    def mean_output(self, tokens: Tensor, mask: Tensor | Split | None = None) -> Tensor:
        """The mean of :meth:`forward` over the outputs, ``[B, M]`` or ``[B, N]``: the loss predictor's score.

        The head's rows are averaged first, which is the same number for one output's work. The parameter keeps its full
        shape: another one would change initialisation, gradient clipping and Adam, and would not load reference
        weights.
        """
        features = self._features(tokens, mask)
        return F.linear(
            features, self.head.weight.mean(dim=0, keepdim=True), self.head.bias.mean(dim=0, keepdim=True)
        ).squeeze(-1)

    def _features(self, tokens: Tensor, mask: Tensor | Split | None) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens)
        patches = tokens[:, 1:]
        return self.norm(patches if mask is None else gather(patches, split(mask).masked))
