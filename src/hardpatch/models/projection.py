"""The projection head of DINO (Caron et al. 2021, Section 3.1) and iBOT (Zhou et al., ICLR 2022)."""

import itertools

import torch.nn.functional as F
from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """From tokens to logits over prototypes, ``[..., D]`` -> ``[..., outputs]``; one for class and patch tokens alike.

    An MLP with GELU ends in a bottleneck, whose vectors are brought to length 1; the logits are their cosines with the
    rows of ``last.weight``, the prototypes. That is weight normalization with the gain fixed at 1, computed when it is
    needed, so that every parameter is a plain one: it can be copied, saved and averaged. iBOT freezes ``last.weight``
    while a run begins.

    Initialized as in the reference implementation: the MLP from a normal distribution of standard deviation 0.02 with
    zero biases, the prototypes as torch does a linear layer.

    Args:
        width: D, of the tokens.
        outputs: number of prototypes.
        hidden: width between the MLP's layers.
        bottleneck: width of what is compared with the prototypes.
        layers: linear layers up to the bottleneck; at 1 there is no hidden one.

    Raises:
        ValueError: for less than one of anything.
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
        # in float32: in half precision the 1e-12 that keeps a length of 0 from dividing is itself 0
        directions = F.normalize(self.mlp(tokens).float(), dim=-1)
        return F.linear(directions, F.normalize(self.last.weight.float(), dim=-1))
