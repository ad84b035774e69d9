"""Network that is exported: an encoder as its file holds it and, of a fine-tuned classifier, the layers after it."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hardpatch.choices import PoolName
from hardpatch.errors import UserError
from hardpatch.models.block import NORM_EPS, Block, LayerScale
from hardpatch.models.encoder import Encoder


class Head(NamedTuple):
    """Classifier on the tokens of an encoder: pooling, perhaps a norm, a linear layer."""

    pool: PoolName
    norm: nn.LayerNorm | None
    """after pooling, instead of the encoder's last norm; None of a linear probe"""
    weight: Tensor
    """``[classes, D]``; with the batch norm of a linear probe in it"""
    bias: Tensor
    classes: tuple[str, ...]

    def logits(self, tokens: Tensor) -> Tensor:
        """Classify the output of the encoder: ``[B, 1 + N, D]`` -> ``[B, classes]``."""
        x = tokens[:, 1:].mean(dim=1) if self.pool == "mean" else tokens[:, 0]
        x = x if self.norm is None else self.norm(x)
        return nn.functional.linear(x, self.weight, self.bias)


class Traits(NamedTuple):
    """Parts of an encoder by which another library's class is chosen; the other parts all classes have."""

    norm: nn.LayerNorm | None
    """after the last block"""
    layer_scale: bool
    absolute: bool
    """has a vector for each position"""
    shared_bias: bool
    """has a relative position bias that all blocks share"""
    block_bias: bool
    """has a relative position bias in each block"""
    activation: str
    eps: float
    square: bool


def traits(encoder: Encoder, head: Head | None = None) -> Traits:
    """Return the parts of an encoder.

    Raises:
        UserError: if the norm of the head adds another number to the variance than those of the encoder, which no other
            library's class can do.
    """
    block = first_block(encoder)
    eps = encoder.variant.norm_eps
    if head is not None and head.norm is not None and eps != NORM_EPS:
        raise UserError(
            f"--to: the norms of this encoder add {eps:g} to the variance, that of its head {NORM_EPS:g}; other "
            "libraries have one number for all; expected --to onnx"
        )
    return Traits(
        norm=encoder.norm if isinstance(encoder.norm, nn.LayerNorm) else None,
        layer_scale=isinstance(block.ls1, LayerScale),
        absolute=encoder.positions is not None,
        shared_bias=encoder.relative_bias is not None,
        block_bias=block.relative_bias is not None,
        activation=encoder.variant.activation,
        eps=eps,
        square=encoder.grid[0] == encoder.grid[1],
    )


def first_block(encoder: Encoder) -> Block:
    """Return the first block."""
    block = encoder.blocks[0]
    assert isinstance(block, Block)
    return block


def has_key_bias(encoder: Encoder) -> bool:
    """Return whether some block adds a bias to keys that is not zero."""
    if not encoder.variant.qkv_bias:
        return False
    return any(isinstance(block, Block) and bool(block.attn.qkv.bias.chunk(3)[1].any()) for block in encoder.blocks)


def hidden_width(encoder: Encoder) -> int:
    """Return the width of the hidden layer in the MLP of a block; of a gated one, after the gate."""
    return first_block(encoder).mlp.fc2.in_features


def positions_with_class(encoder: Encoder) -> Tensor:
    """Return the positions ``[1, 1 + N, D]``, the class token's first: zero if it has none of its own."""
    assert encoder.positions is not None
    own = encoder.class_position
    first = encoder.positions.new_zeros(1, encoder.width) if own is None else own[0]
    return torch.cat([first, encoder.positions])[None]


def beyond_plain(encoder: Encoder, head: Head | None) -> dict[str, bool]:
    """Return, by name, whether a network has each part that MAE's ViT with a class token as its output has not.

    Layer scale is not among them: it can be multiplied into the layers before it.
    """
    has, variant = traits(encoder, head), encoder.variant
    return {
        "a relative position bias": has.shared_bias or has.block_bias,
        "rotary positions": variant.rope_theta is not None,
        "register tokens": bool(variant.registers),
        "a norm before the blocks": variant.pre_norm,
        "norms of queries and keys": variant.qk_norm,
        "SwiGLU": has.activation == "swiglu",
        "no bias of patches": not variant.patch_bias,
        "no norm after the last block": has.norm is None and (head is None or head.norm is None),
        "a mean of tokens before its head": head is not None and head.pool == "mean",
    }


def refuse(library: str, parts: dict[str, bool], instead: str) -> None:
    """Refuse an encoder some of whose parts another library's class cannot hold.

    Args:
        library: and its class, named in the message.
        parts: whether the encoder has each part that the class cannot hold.
        instead: what to do.

    Raises:
        UserError: names the parts.
    """
    found = [name for name, has in parts.items() if has]
    if found:
        raise UserError(f"--to: {library} cannot hold {', '.join(found)}, as this network has; {instead}")
