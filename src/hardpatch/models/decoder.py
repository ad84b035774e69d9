"""The decoder, one class with two uses: it reconstructs the masked patches, and it predicts their losses.

Attention does not depend on the order of its tokens, so mask tokens come last. Three computations are cheaper than in
a literal decoder: see :func:`first_block`, :func:`last_block` and :meth:`Decoder.mean_output`.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpatch.models.block import NORM_EPS, Block, checkpointed, initialize
from hardpatch.models.positions import resample_positions, sincos_positions
from hardpatch.patches import PatchIndices, gather, to_indices


class Tokens(NamedTuple):
    """Input of a decoder of width ``W``: a sequence of tokens, and the patches to predict (queries).

    The queried patches are either tokens of the sequence, or mask tokens that the first block appends to it.
    """

    sequence: Tensor
    """``[B, L, W]``: embedded latent with positions, class token first"""
    queries: slice | Tensor
    """the queried patches: indices into ``sequence`` (slice, or int64 ``[B, M]``), or patch indices of mask tokens"""
    mask_tokens: Tensor | None = None
    """``[N, W]``: the mask token with the position of each patch, the same for all images; None if there is none"""

    @property
    def queries_are_mask_tokens(self) -> bool:
        """True if the queried patches are mask tokens, which are not in the sequence yet."""
        return self.mask_tokens is not None and isinstance(self.queries, Tensor)

    @property
    def parts(self) -> tuple[Tensor, Tensor]:
        """Sequence and mask tokens; only if there are mask tokens."""
        assert self.mask_tokens is not None
        return self.sequence, self.mask_tokens

    @property
    def query_tokens(self) -> Tensor:
        """Mask tokens of the queried patches, ``[B, M, W]``."""
        return self.at_queries(self.parts[1])

    def at_queries(self, per_patch: Tensor) -> Tensor:
        """Select the queried patches of a tensor ``[N, *]`` that is the same for all images: ``[B, M, *]``."""
        if isinstance(self.queries, slice):  # every patch
            return per_patch.expand(self.sequence.shape[0], -1, -1)
        return F.embedding(self.queries, per_patch)

    def append_queries(self, sequence: Tensor, per_patch: Tensor) -> Tensor:
        """Append the queried patches of ``[N, *]`` to a tensor of the sequence ``[B, L, *]``: ``[B, L + M, *]``."""
        return torch.cat([sequence, self.at_queries(per_patch)], dim=1)


class DecoderEmbed(nn.Module):
    """Embedding of the latent, mask token and positions, which reconstructor and loss predictor share.

    Args:
        latent_width: width of the encoder.
        width: width of the decoders.
        grid: (rows, columns) of patches.
        mask_token: create a mask token; False if the encoder returns all patches.
    """

    positions: Tensor
    class_position: Tensor | None
    """position of the class token ``[1, 1, W]``, in weights of others that learned one"""

    def __init__(self, *, latent_width: int, width: int, grid: tuple[int, int], mask_token: bool = True) -> None:
        super().__init__()
        self.grid = grid
        self.proj = nn.Linear(latent_width, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width)) if mask_token else None
        self.register_buffer("positions", sincos_positions(width, grid), persistent=False)
        self.register_buffer("class_position", None)
        if self.mask_token is not None:
            nn.init.normal_(self.mask_token, std=0.02)
        initialize(self)

    def forward(
        self, latent: Tensor, mask: Tensor | PatchIndices | None = None, grid: tuple[int, int] | None = None
    ) -> Tokens:
        """Embed the output of the encoder.

        Args:
            latent: ``[B, 1 + V, D]`` of the visible patches, or ``[B, 1 + N, D]`` of all.
            mask: its masked patches are the queries; None queries every patch.
            grid: (rows, columns) of patches; None is that of the image size the model was built for.
        """
        x = self.proj(latent)
        positions = resample_positions(self.positions, self.grid, grid or self.grid).to(x.dtype)
        indices = None if mask is None else to_indices(mask)
        if indices is None or self.mask_token is None:  # the latent has all patches
            sequence_positions = positions
        else:
            sequence_positions = F.embedding(indices.visible, positions)
        first = x[:, :1] if self.class_position is None else x[:, :1] + self.class_position.to(x.dtype)
        sequence = torch.cat([first, x[:, 1:] + sequence_positions], dim=1)
        every_patch = slice(1, None)  # after the class token
        if self.mask_token is None:
            return Tokens(sequence, every_patch if indices is None else indices.masked + 1)
        mask_tokens = self.mask_token[0].to(x.dtype) + positions
        return Tokens(sequence, every_patch if indices is None else indices.masked, mask_tokens)


class Decoder(nn.Module):
    """Transformer blocks on all tokens, then norm and head on the queried patches.

    Args:
        width: width of the tokens.
        depth: number of blocks.
        heads: number of attention heads.
        outputs: numbers to predict for each patch.
        cross: mask tokens attend to the sequence and not to each other (Fu et al. 2024, CrossMAE).
    """

    def __init__(self, *, width: int, depth: int, heads: int, outputs: int, cross: bool = False) -> None:
        super().__init__()
        self.cross = cross
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.head = nn.Linear(width, outputs)
        initialize(self)

    def forward(self, tokens: Tokens) -> Tensor:
        """Predict the outputs of the queried patches, ``[B, M, outputs]``."""
        return self.head(self._features(tokens))

    def mean_output(self, tokens: Tokens) -> Tensor:
        """Compute the mean of :meth:`forward` over the outputs, ``[B, M]``: the predicted loss of each patch.

        The rows of the head are averaged first, which gives the same number at the cost of one output. The parameter
        keeps its full shape, because another shape would change initialization, gradient clipping and Adam, and could
        not load reference weights.
        """
        features = self._features(tokens)
        return F.linear(
            features, self.head.weight.mean(dim=0, keepdim=True), self.head.bias.mean(dim=0, keepdim=True)
        ).squeeze(-1)

    def _features(self, tokens: Tokens) -> Tensor:
        blocks = cast(Sequence[Block], self.blocks)
        if self.cross:
            return self.norm(cross_attend(blocks, tokens))
        *others, last = blocks
        if others:
            tokens = run_blocks(others, tokens)
        return self.norm(last_block(last, tokens))


def run_blocks(blocks: Sequence[Block], tokens: Tokens) -> Tokens:
    """Apply one or more ``blocks`` to all tokens."""
    tokens = first_block(blocks[0], tokens)
    for block in blocks[1:]:
        tokens = tokens._replace(sequence=block(tokens.sequence))
    return tokens


def first_block(block: Block, tokens: Tokens) -> Tokens:
    """Apply the first block to all tokens, and append the mask tokens to the sequence.

    Before the first block, mask tokens are the same in all images. Their norm, queries, keys and values are therefore
    computed once for each position, not for each image.
    """
    if not tokens.queries_are_mask_tokens:
        return tokens._replace(sequence=block(tokens.sequence))
    return Tokens(checkpointed(_first_block, block, tokens), slice(tokens.sequence.shape[1], None))


def _first_block(block: Block, tokens: Tokens) -> Tensor:
    q, k, v = tokens.append_queries(*(block.attn.qkv(block.norm1(x)) for x in tokens.parts)).chunk(3, dim=-1)
    return block.after_attention(tokens.append_queries(*tokens.parts), block.attn.attend(q, k, v))


def last_block(block: Block, tokens: Tokens) -> Tensor:
    """Apply the last block to the queried patches, ``[B, M, W]``; the other tokens are only keys and values."""
    if tokens.queries_are_mask_tokens:  # the only block is the first and the last one
        sequence, mask_tokens = (block.norm1(x) for x in tokens.parts)
        keys_values = tokens.append_queries(block.attn.keys_values(sequence), block.attn.keys_values(mask_tokens))
        k, v = keys_values.chunk(2, dim=-1)
        q = tokens.at_queries(block.attn.queries(mask_tokens))
        return block.after_attention(tokens.query_tokens, block.attn.attend(q, k, v))
    sequence, queries = tokens.sequence, tokens.queries
    return block(sequence[:, queries] if isinstance(queries, slice) else gather(sequence, queries), context=sequence)


def cross_attend(blocks: Sequence[Block], tokens: Tokens) -> Tensor:
    """Apply blocks in which the queried mask tokens attend to the sequence only, ``[B, M, W]``.

    The weights are those of usual blocks: queries are computed from mask tokens, keys and values from the sequence,
    which stays unchanged. As in :func:`first_block`, the first queries are computed once for each position.
    """
    first, *others = blocks
    x = checkpointed(_first_cross_block, first, tokens)
    for block in others:
        x = block(x, context=tokens.sequence)
    return x


def _first_cross_block(block: Block, tokens: Tokens) -> Tensor:
    sequence, mask_tokens = tokens.parts
    k, v = block.attn.keys_values(block.norm1(sequence)).chunk(2, dim=-1)
    q = tokens.at_queries(block.attn.queries(block.norm1(mask_tokens)))
    return block.after_attention(tokens.query_tokens, block.attn.attend(q, k, v))
