"""Masks made of blocks and of windows: what counts is where patches lie on the grid.

Patch ``n`` of a grid of (rows, columns) lies in row ``n // columns`` and column ``n % columns``. A mask is bool
``[B, N]``, True = masked; ``mined`` is a mask too, of patches that are already chosen. Only additions, products and
square roots, which every device rounds alike, turn noise into blocks: the same noise gives the same blocks anywhere.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ATTEMPTS = 40
"""Blocks tried in an image. 75 or 147 of 14 x 14 patches then lack 1.2 or 1.0 on average, 10 attempts 4 or 10."""


class Blocks(NamedTuple):
    """What :func:`draw_blocks` gives."""

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
    """Block-wise masking as in BEiT (Bao et al., ICLR 2022, Algorithm 1): *at most* ``masked`` patches an image.

    An attempt draws an area between ``smallest`` and the number of patches still wanted, a ratio of height to width,
    log-uniform in ``[aspect, 1 / aspect]``, and a place. The sides are the nearest whole numbers, so the ratio of a
    block's sides may lie outside those bounds by what half a patch makes in each. A block is placed if it is in the
    grid, has ``smallest`` patches or more, and covers no more new patches than are wanted: as in the authors' code,
    blocks overlap and only what is new counts. Unlike there, blocks stay this large when fewer patches are wanted,
    may be as long as the grid, and the attempts are counted over the image (theirs end after ten failures on end).

    Args:
        noise: uniform in [0, 1), ``[B, 4 * attempts]``.
        masked: M, the mined patches included.
        grid: (rows, columns) of patches.
        mined: masked beforehand, at most M of an image; None for none.
        smallest: patches of the smallest block; M if that is less.
        aspect: the smallest ratio of height to width, in (0, 1].

    Raises:
        ValueError: if the noise does not come in fours.
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
    wanted = masked - covered.sum(dim=(1, 2))
    boxes = []
    for attempt in range(u.shape[1]):
        area = smallest + u[:, attempt, 0] * (wanted - smallest).clamp(min=0)
        side = area.sqrt()
        height = (side * taller[:, attempt]).round().long()
        width = (side * wider[:, attempt]).round().long()
        top = (u[:, attempt, 2] * (rows - height + 1)).floor().long()
        left = (u[:, attempt, 3] * (columns - width + 1)).floor().long()
        box = torch.stack([top, left, height, width], dim=1)
        y, x, h, w = box.view(-1, 4, 1, 1).unbind(1)
        block = (row >= y) & (row < y + h) & (column >= x) & (column < x + w)
        new = (block & ~covered).sum(dim=(1, 2))
        placed = (height <= rows) & (width <= columns) & (height * width >= smallest) & (new > 0) & (new <= wanted)
        covered = covered | (block & placed.view(-1, 1, 1))
        wanted = wanted - new * placed
        boxes.append(box * placed.unsqueeze(1))
    return Blocks(covered.flatten(1), torch.stack(boxes, dim=1))


def inverse_block_mask(
    noise: Tensor, masked: int, grid: tuple[int, int], mined: Tensor | None = None, *, side: int = 3
) -> Tensor:
    """Keep blocks and mask the rest, as in data2vec 2.0 (Baevski et al., ICML 2023, inverse block masking).

    Blocks of ``side`` x ``side`` patches around random centers, cut at the edge of the image, are kept visible one
    after the other until N - M patches are; of the last one only as many as are missing, at random. (The authors draw
    a fixed number of blocks and remove or add single patches until the count is right.) Given patches stay masked.

    Args:
        noise: ``[B, N]``, uniform in [0, 1): the centers' order.
        masked: M, exactly.
        grid: (rows, columns) of patches.
        mined: masked beforehand, at most M of an image; None for none.
        side: of a block, in patches; 3 for images in the paper.
    """
    rows, columns = grid
    patches = rows * columns
    order = noise.argsort(dim=1, stable=True).argsort(dim=1).unflatten(1, (1, rows, columns))
    # The block that keeps a patch is the first around it. Ranks, unlike noise, have no ties, and a float holds them.
    first = F.max_pool2d(order.float(), side, stride=1, padding=side // 2)[..., :rows, :columns]
    priority = (first.int() * patches + order.int()).flatten(1)
    if mined is not None:
        priority = priority.masked_fill(mined, -1)
    visible = priority.topk(patches - masked, dim=1, sorted=False).indices
    return torch.ones_like(priority, dtype=torch.bool).scatter(1, visible, False)


def grid_mask(noise: Tensor, masked: int, grid: tuple[int, int], mined: Tensor | None = None) -> Tensor:
    """Keep one patch of every window of 2 x 2 visible: uniform sampling (Li et al., UM-MAE, 2022).

    The visible patch is drawn evenly among those of its window that are not mined. Where all four are mined one of
    them is visible nevertheless: there the definition goes before ``mined``, and nowhere else.

    Args:
        noise: ``[B, N]``, uniform in [0, 1).
        masked: M; 3/4 of the patches is the only number there can be.
        grid: (rows, columns) of patches, both even.
        mined: masked beforehand; None for none.

    Raises:
        ValueError: if the grid has no whole windows, or M is not 3/4 of its patches.
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
    """Taylor's series in Horner's form. ``torch.exp`` has another last bit on another device: one of many roundings
    of a side would then fall otherwise. Error below 1e-8 for |x| < 0.7, and float32's own.
    """
    result = torch.ones_like(x)
    for n in range(10, 0, -1):
        result = result * (x * (1.0 / n)) + 1.0
    return result
