"""A small discrete variational autoencoder, which can be trained as a tokenizer on one's own images."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpatch.models.pixels import resize_to_grid
from hardpatch.randomness import own_rows

MAX_VOCABULARY = 8192
PIXEL_STD = 0.25
"""Approximate standard deviation of pixels in [0, 1]; the network computes in units of it."""
SHARPNESS = 50.0
"""Factor from cosines to logits. In short trials with 20 to 30 the tokens were too random (entropy 3 to 4 nats instead
of 2) and the reconstruction error was larger."""


class DiscreteVAEOutput(NamedTuple):
    """Output of a :class:`DiscreteVAE` for a batch."""

    images: Tensor
    """the reconstruction, ``[B, 3, H, W]``, approximately in [0, 1]"""
    logits: Tensor
    """a score of every token at every position, ``[B, vocabulary, rows, columns]``"""


class DiscreteVAE(nn.Module):
    """A discrete variational autoencoder (Ramesh et al. 2021, Sec. 2.1) that encodes every patch as one token.

    The score of a token is the cosine between the encoder's vector and the token's entry in the codebook (Yu et al.
    2022, ViT-VQGAN, Sec. 3.2), so no entry can win by its length. In training the token is drawn by the
    straight-through Gumbel softmax (Jang et al. 2017): the decoder sees one entry, the gradient reaches all. In eval
    mode the likeliest token is used and nothing is drawn, so :meth:`forward` reconstructs from the tokens that
    :meth:`tokens` returns.

    Args:
        patch_size: p in pixels, the total stride.
        vocabulary: number of tokens, 2 to 8192.
        width: channels at the resolution of the tokens, a multiple of 8; half as many at each doubling of the
            resolution.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(self, patch_size: int = 8, vocabulary: int = 512, width: int = 64) -> None:
        super().__init__()
        if patch_size < 1:
            raise ValueError(f"patch_size: expected 1 or more, got {patch_size}")
        if not 2 <= vocabulary <= MAX_VOCABULARY:
            raise ValueError(f"vocabulary: expected 2 to {MAX_VOCABULARY}, got {vocabulary}")
        if width < 8 or width % 8:
            raise ValueError(f"width: expected a multiple of 8, got {width}")
        self.patch_size, self.vocabulary, self.width = patch_size, vocabulary, width
        strides = _strides(patch_size)
        widths = [3, *(max(width >> k, 8) for k in reversed(range(len(strides))))]
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for stride, fine, coarse in zip(strides, widths, widths[1:], strict=False):
            # A stride of 2 reads one pixel beyond its window on each side, across the border to neighboring patches.
            size, padding = (4, 1) if stride == 2 else (stride, 0)
            down += [nn.Conv2d(fine, coarse, size, stride, padding), nn.ReLU()]
            up = [nn.ReLU(), nn.ConvTranspose2d(coarse, fine, size, stride, padding), *up]
        self.encoder = nn.Sequential(
            *down[:-1], _Residual(width), _Residual(width), nn.GroupNorm(1, width), nn.Conv2d(width, width, 1)
        )
        self.codebook = nn.Parameter(torch.randn(vocabulary, width))
        self.decoder = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), _Residual(width), _Residual(width), *up)

    def logits(self, images: Tensor) -> Tensor:
        """Score every token: ``images [B, 3, H, W]`` in [0, 1] to ``[B, vocabulary, H / p, W / p]``."""
        features = F.normalize(self.encoder((images - 0.5) / PIXEL_STD), dim=1)
        return SHARPNESS * torch.einsum("bdrc,vd->bvrc", features, F.normalize(self.codebook, dim=1))

    def decode(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Decode tokens ``[B, N]`` on a grid of (rows, columns) to images ``[B, 3, H, W]``, approximately in [0, 1]."""
        return self._decode(self._entries()[tokens.unflatten(1, grid)].permute(0, 3, 1, 2))

    def forward(
        self, images: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> DiscreteVAEOutput:
        """Reconstruct ``images [B, 3, H, W]``, values in [0, 1], from one token for each patch.

        Args:
            images: height and width must be multiples of the patch size.
            temperature: of the Gumbel softmax, in training only; the lower, the closer its gradient is to that of the
                drawn token.
            generator: draws the tokens in training, on the device of the images.
        """
        logits = self.logits(images)
        if not self.training:
            grid = (logits.shape[2], logits.shape[3])
            return DiscreteVAEOutput(self.decode(logits.argmax(dim=1).flatten(1), grid), logits)
        noise = own_rows(
            len(logits),
            lambda sizes: -logits.new_empty(*sizes, *logits.shape[1:]).exponential_(generator=generator).log(),
        )
        soft = ((logits + noise) / temperature).softmax(dim=1)
        drawn = torch.zeros_like(soft).scatter(1, soft.argmax(dim=1, keepdim=True), 1.0)
        codes = torch.einsum("bvrc,vd->bdrc", drawn + soft - soft.detach(), self._entries())
        return DiscreteVAEOutput(self._decode(codes), logits)

    @torch.no_grad()
    def tokens(self, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokenize images, see :class:`~hardpatch.models.tokenizer.Tokenizer`."""
        with torch.autocast(pixels.device.type, enabled=False):
            return self.logits(resize_to_grid(pixels, grid, self.patch_size)).argmax(dim=1).flatten(1)

    def _entries(self) -> Tensor:
        """Codebook entries as input of the decoder, ``[vocabulary, width]``, with a root mean square of 1."""
        return F.normalize(self.codebook, dim=1) * math.sqrt(self.width)

    def _decode(self, codes: Tensor) -> Tensor:
        return PIXEL_STD * self.decoder(codes) + 0.5


class _Residual(nn.Module):
    """``x + branch(x)``, where the branch is initially zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        last = nn.Conv2d(width, width, 1)
        nn.init.zeros_(last.weight)
        self.path = nn.Sequential(
            nn.GroupNorm(1, width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), last
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.path(x)


def _strides(patch_size: int) -> list[int]:
    """Factors of the patch size: as many twos as possible, then the rest. 8 is 2, 2, 2 and 14 is 2, 7."""
    strides = []
    while patch_size % 2 == 0:
        strides.append(2)
        patch_size //= 2
    return [*strides, patch_size] if patch_size > 1 or not strides else strides
