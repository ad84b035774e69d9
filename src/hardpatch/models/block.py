"""The Transformer block of encoder and decoders: pre-norm attention and MLP (Dosovitskiy et al. 2021)."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hardpatch.models.positions import RelativePositionBias, Rotary, rotate
from hardpatch.models.variant import NORM_EPS, PLAIN, ActivationName, Variant, activate
from hardpatch.randomness import random_keep

__all__ = ["NORM_EPS"]


class Attention(nn.Module):
    """Multi-head attention with the fused kernel of torch.

    Args:
        width: width D of the tokens.
        heads: number of heads, a divisor of the width.
        variant: whether there are biases, and norms of queries and keys.

    Raises:
        ValueError: if the heads do not divide the width.
    """

    def __init__(self, width: int, heads: int, variant: Variant = PLAIN) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads: expected a divisor of the width {width}, got {heads}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=variant.qkv_bias)
        self.q_norm, self.k_norm = (_head_norm(width // heads, variant) for _ in range(2))
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Tensor, bias: Tensor | None = None, context: Tensor | None = None, rotary: Rotary | None = None
    ) -> Tensor:
        """Attend from tokens ``x [B, Q, D]`` to themselves, or to a context: ``[B, Q, D]``.

        Args:
            x: the tokens.
            bias: ``[1, heads, L, L]``, added to the scores before the softmax.
            context: ``[B, L, D]``. Keys and values are computed from it, and only queries from ``x``.
            rotary: rotary positions of ``x``, without a context.
        """
        if context is None:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
        else:
            q, (k, v) = self.queries(x), self.keys_values(context).chunk(2, dim=-1)
        return self.attend(q, k, v, bias, rotary)

    def queries(self, x: Tensor) -> Tensor:
        """Apply the first third of ``qkv``: ``[..., D]`` -> ``[..., D]``."""
        width = x.shape[-1]
        return F.linear(x, self.qkv.weight[:width], None if self.qkv.bias is None else self.qkv.bias[:width])

    def keys_values(self, x: Tensor) -> Tensor:
        """Apply the other two thirds of ``qkv``: ``[..., D]`` -> ``[..., 2 * D]``."""
        width = x.shape[-1]
        return F.linear(x, self.qkv.weight[width:], None if self.qkv.bias is None else self.qkv.bias[width:])

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, rotary: Rotary | None = None
    ) -> Tensor:
        """Attend from queries ``[B, Q, D]`` to keys and values ``[B, L, D]``, and project: ``[B, Q, D]``."""
        q, k = self._placed(q, self.q_norm, rotary), self._placed(k, self.k_norm, rotary)
        v = self._split_heads(v)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))
        return self.proj(x.transpose(1, 2).flatten(2))

    def first_token_attention(self, x: Tensor, bias: Tensor | None = None, rotary: Rotary | None = None) -> Tensor:
        """Attention of the first token of ``x [B, L, D]`` to the others, mean of the heads: ``[B, L - 1]``."""
        q, k, _ = self.qkv(x).chunk(3, dim=-1)
        q, k = self._placed(q, self.q_norm, rotary), self._placed(k, self.k_norm, rotary)
        scores = (q[:, :, :1] @ k.transpose(2, 3)).float() * q.shape[-1] ** -0.5  # [B, heads, 1, L]
        if bias is not None:
            scores = scores + bias[:, :, :1]
        return scores.softmax(dim=-1).mean(dim=1)[:, 0, 1:]

    def _placed(self, x: Tensor, norm: nn.Module, rotary: Rotary | None) -> Tensor:
        """Return queries or keys ``[B, heads, L, D / heads]`` with their norm and rotary positions."""
        x = norm(self._split_heads(x))
        return x if rotary is None else rotate(x, rotary)

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, L, D] -> [B, heads, L, D / heads]


def _head_norm(width: int, variant: Variant) -> nn.Module:
    return nn.LayerNorm(width, eps=variant.norm_eps) if variant.qk_norm else nn.Identity()


class MLP(nn.Module):
    """Two layers with an activation between them, ``[B, L, D]`` -> ``[B, L, D]``."""

    def __init__(self, width: int, ratio: float, activation: ActivationName = "gelu") -> None:
        super().__init__()
        hidden = int(width * ratio)
        self.activation = activation
        self.fc1 = nn.Linear(width, 2 * hidden if activation == "swiglu" else hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers to tokens ``[B, L, D]``."""
        return self.fc2(activate(self.fc1(x), self.activation))


class LayerScale(nn.Module):
    """A learned factor for each channel (Touvron et al. 2021, CaiT)."""

    def __init__(self, width: int, value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), value))

    def forward(self, x: Tensor) -> Tensor:
        """Scale tokens ``[B, L, D]``."""
        return x * self.gamma


class Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``. Parameters have timm's names.

    Args:
        width: width D of the tokens.
        heads: number of attention heads.
        mlp_ratio: hidden width of the MLP divided by ``width``.
        layer_scale: initial value of a learned factor on each branch; None for no such factor.
        drop_path: probability in training that an image skips a branch (Huang et al. 2016).
        variant: what other libraries' blocks have.
    """

    recompute = False
    """keep only the inputs for the backward pass, which computes the block again (activation checkpointing)"""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float = 4.0,
        *,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        variant: Variant = PLAIN,
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(width, eps=variant.norm_eps)
        self.attn = Attention(width, heads, variant)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.norm2 = nn.LayerNorm(width, eps=variant.norm_eps)
        self.mlp = MLP(width, mlp_ratio, variant.activation)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.relative_bias: RelativePositionBias | None = None  # see hardpatch.models.transfer

    def forward(
        self, x: Tensor, bias: Tensor | None = None, context: Tensor | None = None, rotary: Rotary | None = None
    ) -> Tensor:
        """Apply the block to tokens ``x [B, Q, D]``: ``[B, Q, D]``.

        Args:
            x: the tokens.
            bias: added to the attention scores.
            context: ``[B, L, D]``, the tokens that ``x`` attends to; None is ``x``. A last block uses it to compute
                only the tokens whose output is needed.
            rotary: rotary positions of ``x``, without a context.
        """
        return checkpointed(Block._forward, self, x, bias, context, rotary)

    def _forward(self, x: Tensor, bias: Tensor | None, context: Tensor | None, rotary: Rotary | None) -> Tensor:
        context = None if context is None else self.norm1(context)
        return self.after_attention(x, self.attn(self.norm1(x), bias, context, rotary))

    def after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        """Apply the rest of the block to ``x`` and the output of its attention: both ``[B, Q, D]``."""
        x = x + self.drop_rows(self.ls1(attended))
        return x + self.drop_rows(self.ls2(self.mlp(self.norm2(x))))

    def drop_rows(self, branch: Tensor) -> Tensor:
        """Drop a residual branch ``[B, ...]`` of some images, in training; the others are scaled up."""
        if not self.training or self.drop_path == 0.0:
            return branch
        return branch * random_keep(branch, self.drop_path)


T = TypeVar("T")


def checkpointed(compute: Callable[..., T], block: Block, *inputs: Any) -> T:
    """Compute ``compute(block, *inputs)``, with activation checkpointing if the block is to be recomputed."""
    if block.recompute and torch.is_grad_enabled():
        return checkpoint(compute, block, *inputs, use_reentrant=False, preserve_rng_state=block.drop_path > 0.0)
    return compute(block, *inputs)


def initialize(module: nn.Module) -> None:
    """Initialize as MAE does: Xavier-uniform linear layers with zero biases; norms keep one and zero."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
