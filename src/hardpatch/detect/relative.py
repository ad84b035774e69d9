"""Decomposed relative positions, which ViTDet adds to every attention when a detector is trained.

A score gets a term for the difference of the rows and one for that of the columns, each the product of the query with a
learned vector (Li et al., *MViTv2*, CVPR 2022, Eq. 4; ViTDet, Appendix A.2).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpatch.models.block import Attention


class DecomposedPositions(nn.Module):
    """Vectors for the difference of two patches in rows and in columns, zero at first.

    Args:
        grid: (rows, columns) of the patches that attend to each other; for other grids the vectors are interpolated.
        width: of a head.
    """

    def __init__(self, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.zeros(2 * grid[0] - 1, width))
        self.columns = nn.Parameter(torch.zeros(2 * grid[1] - 1, width))

    def forward(self, queries: Tensor, grid: tuple[int, int]) -> Tensor:
        """Compute what is added to the scores of queries ``[B, heads, N, d]``: ``[B, heads, N, N]``.

        Args:
            queries: not scaled, of the patches of ``grid``, row after row.
            grid: (rows, columns) of patches.
        """
        queries = queries.unflatten(2, grid)
        rows, columns = (_differences(table, side) for table, side in zip((self.rows, self.columns), grid, strict=True))
        of_rows = torch.einsum("bnhwd,hkd->bnhwk", queries, rows.to(queries.dtype))
        of_columns = torch.einsum("bnhwd,wkd->bnhwk", queries, columns.to(queries.dtype))
        bias = of_rows.unsqueeze(-1) + of_columns.unsqueeze(-2)  # [B, heads, rows, columns, rows, columns]
        return bias.flatten(4).flatten(2, 3)


def _differences(table: Tensor, side: int) -> Tensor:
    """Look up the vectors ``[2 * side - 1, d]`` of query minus key on ``side`` places: ``[side, side, d]``."""
    if len(table) != 2 * side - 1:
        table = F.interpolate(table.T.unsqueeze(0), size=2 * side - 1, mode="linear")[0].T
    places = torch.arange(side, device=table.device)
    return table[places[:, None] - places[None, :] + side - 1]


def attend(attention: Attention, x: Tensor, grid: tuple[int, int], bias: Tensor | None) -> Tensor:
    """Attend among the patches of ``grid``, with the attention's decomposed positions if it has them.

    Args:
        attention: of a block.
        x: ``[B, N, D]``.
        grid: (rows, columns) of these N patches.
        bias: added to the scores, ``[B or 1, heads or 1, N or 1, N]``.
    """
    positions = getattr(attention, "positions", None)
    if positions is None:
        return attention(x, bias)
    q, k, v = attention.qkv(x).chunk(3, dim=-1)
    own = positions(q.unflatten(-1, (attention.heads, -1)).transpose(1, 2), grid)
    return attention.attend(q, k, v, own if bias is None else own + bias)
