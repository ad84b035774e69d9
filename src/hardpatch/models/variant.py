"""Options of Vision Transformers of other libraries, which MAE's has not."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

NORM_EPS = 1e-6

ActivationName = Literal["gelu", "quick_gelu", "swiglu"]


@dataclass(frozen=True)
class Variant:
    """Options of an encoder; the defaults are MAE's."""

    registers: int = 0
    """tokens beside the class token that belong to no patch (Darcet et al. 2024; the distillation token of DeiT)"""
    rope_theta: float | None = None
    """base of the wavelengths of rotary positions (DINOv3); None for none"""
    pre_norm: bool = False
    """a norm before the first block (CLIP)"""
    final_norm: bool = True
    """a norm after the last block; without one it normalizes after pooling only (BEiT)"""
    patch_bias: bool = True
    """a bias in the embedding of patches"""
    qkv_bias: bool = True
    """a bias in queries, keys and values"""
    qk_norm: bool = False
    """a norm of queries and of keys, for each head"""
    activation: ActivationName = "gelu"
    """of the MLP; swiglu has a gate as wide as the hidden layer (Shazeer 2020), quick_gelu is OpenAI's CLIP's"""
    norm_eps: float = NORM_EPS
    """added to the variance in norms"""

    def changes(self) -> dict[str, Any]:
        """Return the options that are not MAE's, as plain values."""
        return {name: value for name, value in asdict(self).items() if value != getattr(PLAIN, name)}


PLAIN = Variant()
"""MAE's Vision Transformer"""


def activate(x: Tensor, activation: ActivationName) -> Tensor:
    """Apply the activation of an MLP to its hidden layer ``[B, L, H]``; swiglu returns half as many channels."""
    if activation == "swiglu":
        gate, value = x.chunk(2, dim=-1)
        return F.silu(gate) * value
    return x * (1.702 * x).sigmoid() if activation == "quick_gelu" else F.gelu(x)
