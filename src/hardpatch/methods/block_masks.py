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

ATTEMPTS = 40
"""Blocks tried in an image. With 75 or 147 of 14 x 14 patches to mask, 1.2 or 1.0 are then missing on average (with 10
attempts 4 or 10)."""


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
    missing, no blocks as long as the grid, and it stops after ten failures in a row.

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
    rows, columns = grid
    smallest = min(smallest, masked)
    u = noise.float().unflatten(1, (-1, 4))
    stretch = (u[..., 1] - 0.5) * -math.log(aspect)  # log of the square root of the ratio
    taller, wider = _exp(stretch), _exp(-stretch)
    row = torch.arange(rows, device=noise.device).view(1, rows, 1)
    column = torch.arange(columns, device=noise.device).view(1, 1, columns)
    covered = torch.zeros(len(noise), rows, columns, dtype=torch.bool, device=noise.device)
    if mined is not None:
        covered = mined.unflatten(1, grid)
    missing = masked - covered.sum(dim=(1, 2))
    boxes = []
    for attempt in range(u.shape[1]):
        area = smallest + u[:, attempt, 0] * (missing - smallest).clamp(min=0)
        side = area.sqrt()
        height = (side * taller[:, attempt]).round().long()
        width = (side * wider[:, attempt]).round().long()
        top = (u[:, attempt, 2] * (rows - height + 1)).floor().long()
        left = (u[:, attempt, 3] * (columns - width + 1)).floor().long()
        box = torch.stack([top, left, height, width], dim=1)
        y, x, h, w = box.view(-1, 4, 1, 1).unbind(1)
        block = (row >= y) & (row < y + h) & (column >= x) & (column < x + w)
        new = (block & ~covered).sum(dim=(1, 2))
        placed = (height <= rows) & (width <= columns) & (height * width >= smallest) & (new > 0) & (new <= missing)
        covered = covered | (block & placed.view(-1, 1, 1))
        missing = missing - new * placed
        boxes.append(box * placed.unsqueeze(1))
    return Blocks(covered.flatten(1), torch.stack(boxes, dim=1))


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
