"""Masks of blocks and windows, which depend on where patches lie on the grid.

Patch ``n`` of a grid of (rows, columns) lies in row ``n // columns`` and column ``n % columns``. A mask is bool
``[B, N]``, True = masked; ``mined`` is a mask too, of patches that are already chosen. Blocks are computed from noise
by additions, products and square roots only. Every device rounds these alike, so the same noise gives the same blocks
on any device.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ATTEMPTS = 60
"""Blocks tried in an image. With 75 or 147 of 14 x 14 patches to mask, 0.6 or 0.5 are then missing on average."""


class Blocks(NamedTuple):
    """Result of :func:`draw_blocks`."""

    mask: Tensor
    """the mined patches and those of the blocks, bool ``[B, N]``"""
    boxes: Tensor
    """int64 ``[B, attempts, 4]``: top, left, height and width of each block in patches; zeros if it was not placed"""


def draw_blocks(
    noise: Tensor,
    masked: int,
    grid: tuple[int, int],
    mined: Tensor | None = None,
    *,
    smallest: int = 16,
    aspect: float = 0.3,
) -> Blocks:
    """Mask blocks as BEiT does (Bao et al., ICLR 2022, Algorithm 1): *at most* ``masked`` patches an image.

    An attempt draws an area between ``smallest`` and the number of patches still missing, an aspect ratio (height over
    width) log-uniform in ``[aspect, 1 / aspect]``, and a position. The sides are rounded to whole patches, so the
    aspect ratio may lie outside these bounds by half a patch in each side. A block is placed if it lies in the grid,
    has at least ``smallest`` patches, and covers no more new patches than are missing; blocks may overlap.

    The authors' code differs in three points: it allows blocks of less than ``smallest`` patches when fewer are
    missing, no blocks as long as the grid, and it stops after ten failures in a row. :func:`grow` masks the missing
    patches.

    Args:
        noise: uniform in [0, 1), ``[B, 4 * attempts]``.
        masked: M, the mined patches included.
        grid: (rows, columns) of patches.
        mined: patches that are already masked, at most M; None for none.
        smallest: patches of the smallest block; M if that is less.
        aspect: smallest aspect ratio, in (0, 1].

    Raises:
        ValueError: if the noise is not four numbers for each attempt.
    """
    if noise.ndim != 2 or noise.shape[1] == 0 or noise.shape[1] % 4:
        raise ValueError(f"noise: expected [B, 4 * attempts], got {list(noise.shape)}")
    smallest = min(smallest, masked)
    u = noise.float().unflatten(1, (-1, 4))
    stretch = (u[..., 1:2] - 0.5) * -math.log(aspect)  # log of the square root of the ratio
    stretch = _exp(torch.cat([stretch, -stretch], dim=2))  # [B, attempts, 2], of height and width
    # (rows, columns) on the device; torch.tensor would wait for it
    limits = torch.cat([torch.full((1,), length, device=noise.device) for length in grid])
    row, column = (torch.arange(length, device=noise.device) for length in grid)
    covered = torch.zeros(len(noise), *grid, dtype=torch.bool, device=noise.device)
    if mined is not None:
        covered = mined.unflatten(1, grid)
    missing = masked - covered.sum(dim=(1, 2))
    boxes = []
    for attempt in range(u.shape[1]):
        area = smallest + u[:, attempt, :1] * (missing - smallest).clamp(min=0).unsqueeze(1)
        sides = (area.sqrt() * stretch[:, attempt]).round()  # [B, 2], whole numbers as floats
        start = (u[:, attempt, 2:] * (limits - sides + 1)).floor()
        end = start + sides
        in_rows = (row >= start[:, :1]) & (row < end[:, :1])
        in_columns = (column >= start[:, 1:]) & (column < end[:, 1:])
        block = in_rows.unsqueeze(2) & in_columns.unsqueeze(1)
        new = (block & ~covered).sum(dim=(1, 2))
        placed = (sides <= limits).all(dim=1) & (sides.prod(dim=1) >= smallest) & (new > 0) & (new <= missing)
        covered = covered | (block & placed.view(-1, 1, 1))
        missing = missing - new * placed
        boxes.append(torch.cat([start, sides], dim=1) * placed.unsqueeze(1))
    return Blocks(covered.flatten(1), torch.stack(boxes, dim=1).long())


def grow(noise: Tensor, mask: Tensor, masked: int, grid: tuple[int, int]) -> Tensor:
    """Mask ``masked`` patches: those of the mask, and unmasked ones at its border, so that none of these is isolated.

    One patch of the border is drawn. It and the patches of the border that are nearest to it are masked. If more are
    missing than the border has, those two steps away from the mask follow, and so on. An empty mask becomes a disc
    around a random patch.

    Args:
        noise: ``[B, N]``, uniform in [0, 1): the order of patches at equal distances.
        mask: bool ``[B, N]``, with at most ``masked`` patches in an image.
        masked: M.
        grid: (rows, columns) of patches.

    Returns:
        bool ``[B, N]``.
    """
    patches, columns = mask.shape[1], grid[1]
    farther = grid[0] ** 2 + grid[1] ** 2  # more than the squared distance of any two patches
    rank = noise.argsort(dim=1, stable=True).argsort(dim=1)
    steps = steps_to_mask(mask, grid)
    drawn = (steps * patches + rank).masked_fill(mask, 2 * farther * patches).argmin(dim=1, keepdim=True)
    patch = torch.arange(patches, device=mask.device)
    distance = (patch // columns - drawn // columns).square() + (patch % columns - drawn % columns).square()
    order = ((steps * farther + distance) * patches + rank).masked_fill(mask, -1)
    chosen = order.topk(masked, dim=1, largest=False, sorted=False).indices
    return torch.zeros_like(mask).scatter(1, chosen, True)


def steps_to_mask(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Count the steps from each patch to the nearest masked one, int64 ``[B, N]``: up, down, left or right.

    In an image without a masked patch all are equally far.
    """
    steps = (~mask).unflatten(1, grid).long() * sum(grid)  # [B, rows, columns]
    for dim, length in ((2, grid[1]), (1, grid[0])):  # first to the nearest masked patch of the row, then of all rows
        position = torch.arange(length, device=mask.device).view(-1, *[1] * (2 - dim))
        from_lower = (steps - position).cummin(dim).values + position
        from_higher = (steps + position).flip(dim).cummin(dim).values.flip(dim) - position
        steps = torch.minimum(from_lower, from_higher)
    return steps.flatten(1)


def inverse_block_mask(
    noise: Tensor, masked: int, grid: tuple[int, int], mined: Tensor | None = None, *, side: int = 3
) -> Tensor:
    """Keep blocks visible and mask the rest, as data2vec 2.0 does (Baevski et al., ICML 2023, inverse block masking).

    Blocks of ``side`` x ``side`` patches around random centers, cut at the edge of the image, become visible one after
    the other until N - M patches are visible; of the last block only as many as are missing, at random. (The authors
    draw a fixed number of blocks, then remove or add single patches until the count is right.) Mined patches stay
    masked.

    Args:
        noise: ``[B, N]``, uniform in [0, 1): the order of the centers.
        masked: M, exactly.
        grid: (rows, columns) of patches.
        mined: patches that are already masked, at most M of an image; None for none.
        side: side of a block in patches; 3 for images in the data2vec paper.
    """
    rows, columns = grid
    patches = rows * columns
    order = noise.argsort(dim=1, stable=True).argsort(dim=1).unflatten(1, (1, rows, columns))
    # A patch is visible from the first block that contains it on. Ranks, unlike noise, have no ties, and they are exact
    # as floats.
    first = F.max_pool2d(order.float(), side, stride=1, padding=side // 2)[..., :rows, :columns]
    priority = (first.int() * patches + order.int()).flatten(1)
    if mined is not None:
        priority = priority.masked_fill(mined, -1)
    visible = priority.topk(patches - masked, dim=1, sorted=False).indices
    return torch.ones_like(priority, dtype=torch.bool).scatter(1, visible, False)


def grid_mask(noise: Tensor, masked: int, grid: tuple[int, int], mined: Tensor | None = None) -> Tensor:
    """Keep one patch of every 2 x 2 window visible: uniform sampling (Li et al., UM-MAE, 2022).

    The visible patch is drawn with equal probability among those of its window that are not mined. If all four are
    mined, one of them is visible all the same: this is the only mask strategy that can leave a mined patch visible.

    Args:
        noise: ``[B, N]``, uniform in [0, 1).
        masked: M; must be 3/4 of the patches.
        grid: (rows, columns) of patches, both even.
        mined: patches that are already masked; None for none.

    Raises:
        ValueError: if rows or columns are odd, or M is not 3/4 of the patches.
    """
    rows, columns = grid
    if rows % 2 or columns % 2:
        raise ValueError(f"grid: expected even rows and columns for one visible patch in each 2 x 2, got {grid}")
    if 4 * masked != 3 * rows * columns:
        raise ValueError(f"masked: a grid mask hides 3/4 of the patches, {3 * rows * columns // 4}, got {masked}")
    if mined is not None:
        noise = noise - mined.to(noise.dtype)
    windows = noise.unflatten(1, (rows // 2, 2, columns // 2, 2)).transpose(2, 3).flatten(3)  # [B, R/2, C/2, 4]
    visible = windows.argmax(dim=3, keepdim=True)
    mask = torch.ones_like(windows, dtype=torch.bool).scatter(3, visible, False)
    return mask.unflatten(3, (2, 2)).transpose(2, 3).flatten(1)


def _exp(x: Tensor) -> Tensor:
    """Compute the exponential by its Taylor series, with the same bits on every device.

    The last bit of ``torch.exp`` depends on the device, which can change how a side of a block is rounded. The error is
    below 1e-8 for |x| < 0.7, besides the rounding of float32.
    """
    result = torch.ones_like(x)
    for n in range(10, 0, -1):
        result = result * (x * (1.0 / n)) + 1.0
    return result
