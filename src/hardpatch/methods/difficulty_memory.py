"""Difficulty from earlier epochs, in place of a teacher: a map for each image, of losses that the student predicted."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpatch.patches import PatchIndices
from hardpatch.processes import gather_rows

DECAY = 0.5
"""Weight of the old value of a map when a new one is written."""


class CropBox(NamedTuple):
    """Part of an image that a crop shows, for each of B crops."""

    indices: Tensor
    """int64 ``[B]``: indices of the images in the set"""
    boxes: Tensor
    """``[B, 4]``: top, left, height and width as shares of the image"""
    flipped: Tensor
    """bool ``[B]``: left and right are swapped"""


class DifficultyMemory(nn.Module):
    """A map of difficulty for each image of the set, in the coordinates of the image, not of a crop.

    A crop reads its difficulty from the map, and writes back the losses that the student predicted for its masked
    patches. These are standardized within the crop first, because the relative loss leaves the scale of the predictor
    free. A map is in half precision: 2 bytes for each cell, 0.4 KB for 14 x 14.

    Args:
        images: number of images in the set.
        grid: (rows, columns) of a map, for example those of the patches of a crop.
    """

    maps: Tensor

    def __init__(self, images: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.register_buffer("maps", torch.full((images, *grid), float("nan"), dtype=torch.float16))

    def read(self, crops: CropBox, grid: tuple[int, int]) -> Tensor:
        """Read the difficulty of each patch of B crops, ``[B, N]``; 0, the mean, for cells that were never written.

        Args:
            crops: which part of which image each crop shows.
            grid: (rows, columns) of patches of a crop.
        """
        indices, boxes, flipped = crops
        maps = self.maps[indices].float().nan_to_num(0.0).unsqueeze(1)  # [B, 1, rows, columns]
        down, right = centers(grid[0], boxes.device), centers(grid[1], boxes.device).expand(len(boxes), -1)
        right = torch.where(flipped.unsqueeze(1), right.flip(1), right)
        top, left, height, width = boxes.unsqueeze(2).unbind(1)  # [B, 1] each
        rows, columns = top + height * down, left + width * right  # [B, rows], [B, columns] in [0, 1]
        points = torch.stack(
            torch.broadcast_tensors(columns.unsqueeze(1), rows.unsqueeze(2)), dim=-1
        )  # [B, rows, columns, 2]
        return F.grid_sample(maps, 2.0 * points - 1.0, padding_mode="border", align_corners=False).flatten(1)

    @torch.no_grad()
    def write(self, crops: CropBox, mask: PatchIndices, predicted: Tensor, grid: tuple[int, int]) -> None:
        """Write the predicted losses of the masked patches of B crops, and of those of the other processes.

        Args:
            crops: which part of which image each crop shows.
            mask: the masked patches of each crop.
            predicted: their predicted losses ``[B, M]``.
            grid: (rows, columns) of patches of a crop.
        """
        indices, boxes, flipped = crops
        scores = predicted.float()
        scores = (scores - scores.mean(dim=1, keepdim=True)) / (scores.std(dim=1, keepdim=True) + 1e-6)
        maps = scores.new_full((len(scores), grid[0] * grid[1]), float("nan")).scatter(1, mask.masked, scores)
        # for each cell of the map: the patch of the crop that covers its center
        top, left, height, width = boxes.unsqueeze(2).unbind(1)
        down = (centers(self.grid[0], boxes.device) - top) / height  # [B, rows], in [0, 1) within the crop
        right = (centers(self.grid[1], boxes.device) - left) / width
        right = torch.where(flipped.unsqueeze(1), 1.0 - right, right)
        inside = within(down).unsqueeze(2) & within(right).unsqueeze(1)  # [B, rows, columns]
        row = (down * grid[0]).long().clamp(0, grid[0] - 1)
        column = (right * grid[1]).long().clamp(0, grid[1] - 1)
        patch = row.unsqueeze(2) * grid[1] + column.unsqueeze(1)
        new = torch.where(inside, maps.gather(1, patch.flatten(1)).view_as(patch), float("nan"))
        old = self.maps[indices].float()
        merged = torch.where(old.isnan(), new, DECAY * old + (1.0 - DECAY) * new)
        self.maps[gather_rows(indices)] = gather_rows(torch.where(new.isnan(), old, merged).half())


def centers(count: int, device: torch.device) -> Tensor:
    """Return the centers of ``count`` equal parts of [0, 1]."""
    return (torch.arange(count, device=device) + 0.5) / count


def within(share: Tensor) -> Tensor:
    """Mark the numbers that lie in [0, 1): bool of the same shape."""
    return (share >= 0.0) & (share < 1.0)
