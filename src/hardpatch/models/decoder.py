"""The decoder, one class with two uses: it reconstructs the masked patches, and it predicts how hard that will be.

Attention does not care for the order of its tokens, so mask tokens simply stand last. Three things are computed once
that a literal decoder computes many times: see :func:`first_block`, :func:`last_block` and :meth:`Decoder.mean_output`.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpatch.models.block import NORM_EPS, Block, initialize, sparing
from hardpatch.models.positions import resample_positions, sincos_positions
from hardpatch.patches import PatchIndices, gather, to_indices


class Tokens(NamedTuple):
    """What a decoder reads, and what it is asked about. Width ``W`` is the decoder's."""

    seen: Tensor
    """``[B, L, W]``: tokens of what the encoder gave, class token first, positions added"""
    asked: slice | Tensor
    """where answers are wanted: places in ``seen`` (slice, or int64 ``[B, M]``), or patches where there are blanks"""
    blanks: Tensor | None = None
    """``[N, W]``: the mask token with the position of each patch, alike for all images; None where there are none"""

    @property
    def has_mask_tokens(self) -> bool:
        """Whether what is asked for is not among the tokens that are seen."""
        return self.blanks is not None and isinstance(self.asked, Tensor)

    @property
    def parts(self) -> tuple[Tensor, Tensor]:
        """``seen`` and ``blanks``, where there are both."""
        assert self.blanks is not None
        return self.seen, self.blanks

    def of_asked(self, blanks: Tensor) -> Tensor:
        """Something of each position, ``[N, *]``, for the patches that are asked for: ``[B, M, *]``."""
        if isinstance(self.asked, slice):  # every patch
            return blanks.expand(len(self.seen), -1, -1)
        return F.embedding(self.asked, blanks)

    def joined(self, seen: Tensor, blanks: Tensor) -> Tensor:
        """Something of the tokens seen, ``[B, L, *]``, and of each position, ``[N, *]``: ``[B, L + M, *]``."""
        return torch.cat([seen, self.of_asked(blanks)], dim=1)


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
        initialize(self)

    def forward(
        self, latent: Tensor, mask: Tensor | PatchIndices | None = None, grid: tuple[int, int] | None = None
    ) -> Tokens:
        """Latent ``[B, 1 + V, D]`` of the visible patches, or ``[B, 1 + N, D]`` of all -> what the decoders read.

        With a ``mask`` the masked patches are asked for, else all. ``grid`` is that of the images where they have
        another size than the model was built for.
        """
        x = self.proj(latent)
        positions = resample_positions(self.positions, self.grid, grid or self.grid).to(x.dtype)
        parts = None if mask is None else to_indices(mask)
        where = positions if parts is None or self.mask_token is None else F.embedding(parts.visible, positions)
        seen = torch.cat([x[:, :1], x[:, 1:] + where], dim=1)
        if self.mask_token is None:
            return Tokens(seen, slice(1, None) if parts is None else parts.masked + 1)  # after the class token
        blanks = self.mask_token[0].to(x.dtype) + positions
        return Tokens(seen, slice(1, None) if parts is None else parts.masked, blanks)


class Decoder(nn.Module):
    """Transformer blocks over all tokens, then norm and head on the patches that are asked for.

    Args:
        width, depth, heads: of the Transformer.
        outputs: numbers predicted for each patch.
        cross: mask tokens look at the tokens that are seen, and not at each other (Fu et al. 2024, CrossMAE).
    """

    def __init__(self, *, width: int, depth: int, heads: int, outputs: int, cross: bool = False) -> None:
        super().__init__()
        self.cross = cross
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.head = nn.Linear(width, outputs)
        initialize(self)

    def forward(self, tokens: Tokens) -> Tensor:
        """Predictions for the patches that are asked for, ``[B, M, outputs]``."""
        return self.head(self._features(tokens))

    def mean_output(self, tokens: Tokens) -> Tensor:
        """The mean of :meth:`forward` over the outputs, ``[B, M]``: the loss predictor's score.

        The head's rows are averaged first, which is the same number for one output's work. The parameter keeps its full
        shape: another one would change initialization, gradient clipping and Adam, and would not load reference
        weights.
        """
        features = self._features(tokens)
        return F.linear(
            features, self.head.weight.mean(dim=0, keepdim=True), self.head.bias.mean(dim=0, keepdim=True)
        ).squeeze(-1)

    def _features(self, tokens: Tokens) -> Tensor:
        blocks = cast(Sequence[Block], self.blocks)
        if self.cross:
            return self.norm(looking(blocks, tokens))
        *others, last = blocks
        if others:
            tokens = through(others, tokens)
        return self.norm(last_block(last, tokens))


def through(blocks: Sequence[Block], tokens: Tokens) -> Tokens:
    """All tokens after some ``blocks``, at least one."""
    tokens = first_block(blocks[0], tokens)
    for block in blocks[1:]:
        tokens = tokens._replace(seen=block(tokens.seen))
    return tokens


def first_block(block: Block, tokens: Tokens) -> Tokens:
    """All tokens after the first block, mask tokens last.

    There, a mask token is the same in all images: its norm, query, key and value are computed once for each position
    and not for each image.
    """
    if not tokens.has_mask_tokens:
        return tokens._replace(seen=block(tokens.seen))
    return Tokens(sparing(_all_after, block, tokens), slice(tokens.seen.shape[1], None))


def _all_after(block: Block, tokens: Tokens) -> Tensor:
    q, k, v = tokens.joined(*(block.attn.qkv(block.norm1(part)) for part in tokens.parts)).chunk(3, dim=-1)
    return block.after_attention(tokens.joined(*tokens.parts), block.attn.attend(q, k, v))


def last_block(block: Block, tokens: Tokens) -> Tensor:
    """What is asked for after the last block, ``[B, M, W]``: the other tokens are keys and values there, no more."""
    if tokens.has_mask_tokens:  # the last block is the first one, too
        seen, blanks = (block.norm1(part) for part in tokens.parts)
        k, v = tokens.joined(block.attn.keys_values(seen), block.attn.keys_values(blanks)).chunk(2, dim=-1)
        q = tokens.of_asked(block.attn.queries(blanks))
        return block.after_attention(tokens.of_asked(tokens.parts[1]), block.attn.attend(q, k, v))
    seen, places = tokens.seen, tokens.asked
    return block(seen[:, places] if isinstance(places, slice) else gather(seen, places), context=seen)


def looking(blocks: Sequence[Block], tokens: Tokens) -> Tensor:
    """What is asked for after blocks in which mask tokens look at the tokens that are seen, ``[B, M, W]``.

    The weights are those of any block, put to another use: queries are of mask tokens only, keys and values of the
    others, which stay as they are. As in :func:`first_block`, the first queries are computed once for each position.
    """
    first, *others = blocks
    x = sparing(_asked_after, first, tokens)
    for block in others:
        x = block(x, context=tokens.seen)
    return x


def _asked_after(block: Block, tokens: Tokens) -> Tensor:
    seen, blanks = tokens.parts
    k, v = block.attn.keys_values(block.norm1(seen)).chunk(2, dim=-1)
    q = tokens.of_asked(block.attn.queries(block.norm1(blanks)))
    return block.after_attention(tokens.of_asked(blanks), block.attn.attend(q, k, v))
