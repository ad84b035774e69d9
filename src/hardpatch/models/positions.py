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
    if is_symbolic(new_grid):
        return resample_in_graph(positions, grid, new_grid, learned=learned)
    if grid == new_grid:
        return positions
    image = positions.reshape(1, *grid, -1).permute(0, 3, 1, 2)
    if learned:
        scale = [(new + 0.1) / old for new, old in zip(new_grid, grid, strict=True)]
        image = F.interpolate(image, scale_factor=scale, mode="bicubic", align_corners=False)
    else:
        image = F.interpolate(image, size=new_grid, mode="bicubic", antialias=True, align_corners=False)
    return image.permute(0, 2, 3, 1).reshape(new_grid[0] * new_grid[1], -1)


def is_symbolic(grid: tuple[int, int]) -> bool:
    """Return whether a grid is not known yet, inside ``torch.export`` with a dynamic image size."""
    return any(isinstance(side, torch.SymInt) for side in grid)


def resample_in_graph(
    positions: Tensor, grid: tuple[int, int], new_grid: tuple[int, int], *, learned: bool = False
) -> Tensor:
    """Compute :func:`resample_positions` as two products of matrices, for a grid that is known when the graph runs.

    Bicubic interpolation is linear and separable. For the grid of the positions the matrices are the identity.
    """
    new = [torch.ones(side, device=positions.device).sum() for side in new_grid]
    same = (new[0] == grid[0]) & (new[1] == grid[1])
    image = positions.reshape(*grid, -1)
    for dim, (old, side, count) in enumerate(zip(grid, new_grid, new, strict=True)):
        places = torch.arange(side, device=positions.device).float() + 0.5
        if learned:
            scale = torch.where(same, torch.ones_like(count), (count + 0.1) / old)
            weights = _cubic_weights(places / scale, old)
        else:
            weights = _smooth_cubic_weights(places * (old / count), old, (old / count).clamp(min=1.0))
        image = torch.tensordot(weights, image, dims=([1], [dim])).movedim(0, dim)
    return image.reshape(-1, positions.shape[1])


def _cubic_weights(centers: Tensor, old: int) -> Tensor:
    """Return the weights ``[new, old]`` of bicubic interpolation without antialiasing; edges are repeated."""
    start = (centers - 0.5).floor()
    old_places = torch.arange(old, device=centers.device)
    weights = centers.new_zeros(1)
    for offset in range(-1, 3):
        place = start + offset
        distance = (centers - 0.5 - place).abs()
        chosen = place.clamp(0, old - 1).unsqueeze(1) == old_places
        weights = weights + chosen * _cubic(distance, -0.75).unsqueeze(1)
    return weights


def _smooth_cubic_weights(centers: Tensor, old: int, scale: Tensor) -> Tensor:
    """Return the weights ``[new, old]`` of bicubic interpolation with antialiasing: a filter as wide as ``scale``."""
    distance = (torch.arange(old, device=centers.device) + 0.5 - centers.unsqueeze(1)).abs() / scale
    weights = _cubic(distance, -0.5)
    return weights / weights.sum(dim=1, keepdim=True)


def _cubic(x: Tensor, a: float) -> Tensor:
    """Compute the kernel of bicubic interpolation (Keys 1981) at distances ``x``; ``a`` is its slope at 1."""
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
    return torch.where(x <= 1.0, near, torch.where(x < 2.0, far, torch.zeros_like(x)))


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
        known = not is_symbolic(grid) and grid == self.grid
        index = self.index if known else relative_index(grid).to(self.index.device)
        return self.resampled(grid)[index].permute(2, 0, 1).unsqueeze(0)

    def resampled(self, grid: tuple[int, int]) -> Tensor:
        """Compute the table for a ``grid`` of patches: ``[(2 * rows - 1) * (2 * columns - 1) + 3, heads]``."""
        if not is_symbolic(grid) and grid == self.grid:
            return self.table
        offsets, class_token = self.table[:-3], self.table[-3:]
        sizes = [(2 * rows - 1, 2 * columns - 1) for rows, columns in (self.grid, grid)]
        return torch.cat([resample_positions(offsets, *sizes), class_token])


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
