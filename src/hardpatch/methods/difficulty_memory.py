"""Difficulty from earlier epochs, in place of a teacher: a map of each image, of what the student predicted there."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpatch.patches import PatchIndices

KEPT = 0.5
"""Weight of what was known about a place when something new is learned about it."""


class DifficultyMemory(nn.Module):
    """A map of difficulty for every image of the set, in the coordinates of the image and not of a crop.

    A crop reads its difficulty off the map, and writes back what the student predicted for its masked patches. Scores
    are standardized within a crop first, as the predictor's scale is its own affair. Half-precision: 2 bytes for each
    of the image's cells, 0.4 KB for 14 x 14.

    Args:
        images: in the set.
        grid: (rows, columns) of a map; that of a crop's patches will do.
    """

    maps: Tensor

    def __init__(self, images: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.register_buffer("maps", torch.full((images, *grid), float("nan"), dtype=torch.float16))

    def recall(self, indices: Tensor, boxes: Tensor, flipped: Tensor, grid: tuple[int, int]) -> Tensor:
        """What is known of each patch of some crops, ``[B, N]``; 0, the mean, where nothing is.

        Args:
            indices: int64 ``[B]``, of the images.
            boxes: ``[B, 4]``, top, left, height and width of the crops as shares of the images.
            flipped: bool ``[B]``, whether left and right are swapped.
            grid: (rows, columns) of patches of a crop.
        """
        maps = self.maps[indices].float().nan_to_num(0.0).unsqueeze(1)  # [B, 1, rows, columns]
        down, right = centers(grid[0], boxes.device), centers(grid[1], boxes.device).expand(len(boxes), -1)
        right = torch.where(flipped.unsqueeze(1), right.flip(1), right)
        top, left, height, width = boxes.unsqueeze(2).unbind(1)  # [B, 1] each
        rows, columns = top + height * down, left + width * right  # [B, rows], [B, columns] in [0, 1]
        places = torch.stack(
            torch.broadcast_tensors(columns.unsqueeze(1), rows.unsqueeze(2)), dim=-1
        )  # [B, rows, columns, 2]
        return F.grid_sample(maps, 2.0 * places - 1.0, padding_mode="border", align_corners=False).flatten(1)

    @torch.no_grad()
    def write(
        self,
        indices: Tensor,
        boxes: Tensor,
        flipped: Tensor,
        mask: PatchIndices,
        predicted: Tensor,
        grid: tuple[int, int],
    ) -> None:
        """Take in the ``predicted [B, M]`` losses of the masked patches of some crops; the rest as :meth:`recall`."""
        scores = predicted.float()
        scores = (scores - scores.mean(dim=1, keepdim=True)) / (scores.std(dim=1, keepdim=True) + 1e-6)
        crops = scores.new_full((len(scores), grid[0] * grid[1]), float("nan")).scatter(1, mask.masked, scores)
        # for each cell of the map: which patch of the crop lies on its center
        top, left, height, width = boxes.unsqueeze(2).unbind(1)
        down = (centers(self.grid[0], boxes.device) - top) / height  # [B, rows], in [0, 1) within the crop
        right = (centers(self.grid[1], boxes.device) - left) / width
        right = torch.where(flipped.unsqueeze(1), 1.0 - right, right)
        inside = within(down).unsqueeze(2) & within(right).unsqueeze(1)  # [B, rows, columns]
        row = (down * grid[0]).long().clamp(0, grid[0] - 1)
        column = (right * grid[1]).long().clamp(0, grid[1] - 1)
        patch = row.unsqueeze(2) * grid[1] + column.unsqueeze(1)
        news = torch.where(inside, crops.gather(1, patch.flatten(1)).view_as(patch), float("nan"))
        old = self.maps[indices].float()
        known = torch.where(old.isnan(), news, KEPT * old + (1.0 - KEPT) * news)
        self.maps[indices] = torch.where(news.isnan(), old, known).half()


def centers(count: int, device: torch.device) -> Tensor:
    """Middles of ``count`` equal parts of [0, 1]."""
    return (torch.arange(count, device=device) + 0.5) / count


def within(share: Tensor) -> Tensor:
    """Whether each number lies in [0, 1): bool of the same shape."""
    return (share >= 0.0) & (share < 1.0)
