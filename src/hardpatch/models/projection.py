"""The projection head of DINO (Caron et al. 2021, Section 3.1) and iBOT (Zhou et al., ICLR 2022)."""

import itertools

import torch.nn.functional as F
from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """Logits over prototypes, ``[..., D]`` -> ``[..., outputs]``, for class and patch tokens alike.

    An MLP with GELU ends in a bottleneck, whose output is normalized. The logits are its cosines with the rows of
    ``last.weight``, the prototypes. This equals weight normalization with a gain of 1, but it is computed in each
    forward pass, so that all parameters are plain tensors that can be copied, saved and averaged. iBOT freezes
    ``last.weight`` at the beginning of a run.

    The initialization is that of the reference implementation: a truncated normal distribution of standard deviation
    0.02 and zero biases for the MLP, torch's default for linear layers for the prototypes.

    Args:
        width: D, of the tokens.
        outputs: number of prototypes.
        hidden: width of the hidden layers.
        bottleneck: width of the vectors that are compared with the prototypes.
        layers: linear layers up to the bottleneck; with 1 there is no hidden one.

    Raises:
        ValueError: if a number is below 1.
    """

    def __init__(
        self, width: int, outputs: int = 8192, *, hidden: int = 2048, bottleneck: int = 256, layers: int = 3
    ) -> None:
        super().__init__()
        sizes = {"width": width, "outputs": outputs, "hidden": hidden, "bottleneck": bottleneck, "layers": layers}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}: expected 1 or more, got {size}")
        widths = [width, *[hidden] * (layers - 1), bottleneck]
        linears = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
        for linear in linears:
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        parts: list[nn.Module] = [linears[0]]
        for linear in linears[1:]:
            parts += [nn.GELU(), linear]
        self.mlp = nn.Sequential(*parts)
        self.last = nn.Linear(bottleneck, outputs, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute logits ``[..., outputs]`` of tokens ``[..., D]``."""
        # normalized in float32: in half precision F.normalize's eps of 1e-12 is 0, and a zero vector would become NaN
        directions = F.normalize(self.mlp(tokens).float(), dim=-1)
        return F.linear(directions, F.normalize(self.last.weight.float(), dim=-1))
