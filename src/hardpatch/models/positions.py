"""Fixed two-dimensional sine-cosine positions, as in MAE."""

import torch
import torch.nn.functional as F
from torch import Tensor


def sincos_positions(width: int, grid: tuple[int, int]) -> Tensor:
    """Positions of a ``grid`` of (rows, columns): ``[rows * columns, width]``.

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


def resample_positions(positions: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Positions ``[N, D]`` of ``grid`` for the patches of ``new_grid`` by bicubic interpolation: ``[new N, D]``."""
    if grid == new_grid:
        return positions
    image = positions.reshape(1, *grid, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=new_grid, mode="bicubic", antialias=True, align_corners=False)
    return image.permute(0, 2, 3, 1).reshape(new_grid[0] * new_grid[1], -1)
