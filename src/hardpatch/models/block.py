"""The Transformer block of encoder and decoders: pre-norm attention and MLP (Dosovitskiy et al. 2021)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6


class Attention(nn.Module):
    """Multi-head self-attention, ``[B, L, D]`` -> ``[B, L, D]``, by the fused kernel of torch."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads: expected a divisor of the width {width}, got {heads}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``bias`` ``[1, heads, L, L]`` is added before the softmax."""
        q, k, v = self._queries_keys_values(x)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))
        return self.proj(x.transpose(1, 2).flatten(2))

    def of_first_token(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Where the first token of ``x [B, L, D]`` looks: ``[B, L - 1]`` over the others, mean of the heads."""
        q, k, _ = self._queries_keys_values(x)
        scores = (q[:, :, :1] @ k.transpose(2, 3)).float() * q.shape[-1] ** -0.5  # [B, heads, 1, L]
        if bias is not None:
            scores = scores + bias[:, :, :1]
        return scores.softmax(dim=-1).mean(dim=1)[:, 0, 1:]

    def _queries_keys_values(self, x: Tensor) -> tuple[Tensor, ...]:
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads)
        return qkv.permute(2, 0, 3, 1, 4).unbind(0)


class MLP(nn.Module):
    """Two layers with GELU between them, ``[B, L, D]`` -> ``[B, L, D]``."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, int(width * ratio))
        self.fc2 = nn.Linear(int(width * ratio), width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned factor for each channel (Touvron et al. 2021, CaiT)."""

    def __init__(self, width: int, value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), value))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``. Parameter names are timm's, so weights move freely.

    Args:
        width, heads, mlp_ratio: of the two branches.
        layer_scale: first value of a learned factor on each branch; None has none.
        drop_path: probability of leaving a branch out in training, image by image (Huang et al. 2016).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float = 4.0,
        *,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = MLP(width, mlp_ratio)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        x = x + self._dropped(self.ls1(self.attn(self.norm1(x), bias)))
        return x + self._dropped(self.ls2(self.mlp(self.norm2(x))))

    def _dropped(self, branch: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0.0:
            return branch
        return branch * F.dropout(branch.new_ones(len(branch), 1, 1), self.drop_path)


def initialise(module: nn.Module) -> None:
    """MAE's initialisation: Xavier-uniform linear layers, zero biases, norms at one and zero."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
