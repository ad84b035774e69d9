"""Positions of patches: fixed sine-cosine (MAE), a relative position bias (BEiT), or learned ones (iBOT).

Sine-cosine positions are two-dimensional. Learned ones start at random, see
:class:`~hardpatch.models.encoder.Encoder`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sincos_positions(width: int, grid: tuple[int, int]) -> Tensor:
    """Compute the positions of a ``grid`` of (rows, columns): ``[rows * columns, width]``.

    The first half of the channels encodes the column, the second the row; each half is sines, then cosines, with
    wavelengths from 2 pi to 10,000 * 2 pi.

    Raises:
        ValueError: if ``width`` is not divisible by 4.
    """
    if width % 4:
        raise ValueError(f"width: sine-cosine positions need a multiple of 4, got {width}")
    omega = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    rows, columns = (torch.arange(n, dtype=torch.float64) for n in grid)
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    halves = [
        torch.cat([angle.sin(), angle.cos()], dim=1)
        for angle in (column.reshape(-1, 1) * omega, row.reshape(-1, 1) * omega)
    ]
    return torch.cat(halves, dim=1).float()


def resample_positions(
    positions: Tensor, grid: tuple[int, int], new_grid: tuple[int, int], *, learned: bool = False
) -> Tensor:
    """Interpolate positions ``[N, D]`` of ``grid`` bicubically to the patches of ``new_grid``: ``[new N, D]``.

    Learned positions are interpolated as DINO and iBOT do while they train: without antialiasing, and with a scale that
    belongs to a tenth of a patch more than there are, which their code adds as a guard against rounding.
    """
    if grid == new_grid:
        return positions
    image = positions.reshape(1, *grid, -1).permute(0, 3, 1, 2)
    if learned:
        scale = [(new + 0.1) / old for new, old in zip(new_grid, grid, strict=True)]
        image = F.interpolate(image, scale_factor=scale, mode="bicubic", align_corners=False)
    else:
        image = F.interpolate(image, size=new_grid, mode="bicubic", antialias=True, align_corners=False)
    return image.permute(0, 2, 3, 1).reshape(new_grid[0] * new_grid[1], -1)


Rotary = tuple[Tensor, Tensor]
"""Cosines and sines of rotary positions, ``[1 or B, 1, L, D / heads]``"""


def rotary_positions(width: int, grid: tuple[int, int], theta: float, device: torch.device | None = None) -> Rotary:
    """Compute the rotary positions of patches, as DINOv3 has them (Simeoni et al. 2025): each ``[N, width]``.

    The first half of the rotated pairs turns with the row, the second with the column; both run from -1 to 1 over the
    image, whatever its size.

    Args:
        width: of a head.
        grid: (rows, columns) of patches.
        theta: base of the wavelengths.
        device: on which they are computed.

    Raises:
        ValueError: if ``width`` is not divisible by 4.
    """
    if width % 4:
        raise ValueError(f"heads: rotary positions need heads of a multiple of 4 channels, got {width}")
    rows, columns = (2.0 * (torch.arange(n, dtype=torch.float32, device=device) + 0.5) / n - 1.0 for n in grid)
    places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).reshape(-1, 2, 1)
    frequencies = 1.0 / theta ** torch.arange(0.0, 1.0, 4.0 / width, device=device)
    angles = (2.0 * torch.pi * places * frequencies).flatten(1).tile(2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Turn queries or keys ``[B, heads, L, D / heads]`` by rotary positions."""
    cosine, sine = (part.to(x.dtype) for part in rotary)
    one, other = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-other, one), dim=-1) * sine


class RelativePositionBias(nn.Module):
    """A learned bias for each head and offset between two patches, added to the attention of every block.

    The class token has three entries of its own: to it, from it, and to itself (Bao et al. 2022, BEiT; shared by the
    blocks as in Raffel et al. 2020). For images of another size the table is interpolated.

    Args:
        grid: (rows, columns) of patches.
        heads: of the attention.
    """

    index: Tensor

    def __init__(self, grid: tuple[int, int], heads: int) -> None:
        super().__init__()
        self.grid, self.heads = grid, heads
        self.table = nn.Parameter(torch.zeros((2 * grid[0] - 1) * (2 * grid[1] - 1) + 3, heads))
        self.register_buffer("index", relative_index(grid), persistent=False)

    def forward(self, grid: tuple[int, int] | None = None) -> Tensor:
        """Compute the bias ``[1, heads, 1 + N, 1 + N]`` for images of a ``grid`` of patches."""
        grid = grid or self.grid
        table: Tensor = self.table
        index = self.index
        if grid != self.grid:
            offsets, class_token = table[:-3], table[-3:]
            sizes = [(2 * rows - 1, 2 * columns - 1) for rows, columns in (self.grid, grid)]
            table = torch.cat([resample_positions(offsets, *sizes), class_token])
            index = relative_index(grid).to(index.device)
        return table[index].permute(2, 0, 1).unsqueeze(0)


def relative_index(grid: tuple[int, int]) -> Tensor:
    """Compute the table entry of each pair of tokens on a ``grid``: int64 ``[1 + N, 1 + N]``, class token first.

    Two patches have entry ``(row offset + rows - 1) * (2 * columns - 1) + (column offset + columns - 1)``. The last
    three entries are class token to patch, patch to class token, and class token to itself.
    """
    rows, columns = grid
    row, column = (x.flatten() for x in torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"))
    row_offset = row[:, None] - row[None, :] + rows - 1
    column_offset = column[:, None] - column[None, :] + columns - 1
    entries = (2 * rows - 1) * (2 * columns - 1)
    index = torch.empty(rows * columns + 1, rows * columns + 1, dtype=torch.int64)
    index[1:, 1:] = row_offset * (2 * columns - 1) + column_offset
    index[0, :], index[:, 0], index[0, 0] = entries, entries + 1, entries + 2
    return index
