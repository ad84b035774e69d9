"""Mask generation: mask the hardest patches, and draw the rest of the masked patches (Sec. 3.4, Algorithm S1).

Masks are bool ``[B, N]``, True = masked (the paper's M is 1 for *visible*).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hardpatch.choices import MaskName, MiningName
from hardpatch.methods.curriculum import mined_count
from hardpatch.methods.masking import (
    chosen_count,
    draw_mask,
    hint_count,
    noise_count,
    secondary_mask,
    subsample_masked,
)
from hardpatch.patches import PatchIndices, to_indices


class MinedMask(NamedTuple):
    """The mask of a batch, and which of its patches were mined."""

    mask: PatchIndices
    """masked patches ``[B, M]`` to reconstruct and visible patches ``[B, V]``"""
    mined: Tensor | None = None
    """bool ``[B, N]``, patches chosen by difficulty; None where nothing was mined"""
    drawn: Tensor | None = None
    """bool ``[B, N]``, the mask that the same noise gives without mining; only if it was requested"""


@dataclass(frozen=True)
class Masking:
    """Rule by which the masks of a run are made."""

    grid: tuple[int, int]
    """(rows, columns) of patches"""
    strategy: MaskName = "random"
    """strategy that draws the masked patches that are not mined"""
    mining: MiningName = "hard"
    """mine the hardest patches, or the easiest"""
    unit: int = 1
    """side, in patches, of the square units that are masked as a whole (SimMIM)"""
    secondary_ratio: float = 0.0
    """share of the visible patches that the encoder sees as mask tokens (UM-MAE)"""
    prediction_ratio: float = 1.0
    """share of the masked patches that is reconstructed (CrossMAE)"""

    @property
    def uses_attention(self) -> bool:
        """True if the strategy needs the attention of the teacher."""
        return self.strategy.startswith("attention")

    @property
    def units(self) -> tuple[int, int]:
        """(rows, columns) of units."""
        return self.grid[0] // self.unit, self.grid[1] // self.unit

    @property
    def noise_count(self) -> int:
        """Number of random numbers that the mask of an image needs."""
        rows, columns = self.units
        whole_grids = (self.secondary_ratio > 0.0) + (self.prediction_ratio < 1.0)
        return noise_count(self.strategy, rows * columns) + whole_grids * self.grid[0] * self.grid[1]

    def counts(self, mask_ratio: float, alpha: float) -> tuple[int, int]:
        """Count the masked units of each image, and the mined ones among them."""
        chosen = self._chosen(mask_ratio)
        masked = chosen - hint_count(self.strategy, chosen)
        return masked, mined_count(masked, alpha)

    def _chosen(self, mask_ratio: float) -> int:
        """Count the units that the strategy chooses, before it reveals hints."""
        return chosen_count(self.strategy, self.units[0] * self.units[1], mask_ratio)

    def mine_mask(
        self,
        noise: Tensor,
        *,
        mask_ratio: float,
        alpha: float,
        difficulty: Tensor | None = None,
        attention: Tensor | None = None,
        compare: bool = False,
    ) -> MinedMask:
        """Mask the hardest patches of each image, and draw the rest of its masked patches (Sec. 3.4, Algorithm S1).

        Args:
            noise: uniform in [0, 1), ``[B, noise_count]``; see :func:`hardpatch.randomness.patch_noise`.
            mask_ratio: gamma, the share of masked patches.
            alpha: mined share of the masked patches, in [0, 1]; see :mod:`hardpatch.methods.curriculum`.
            difficulty: predicted loss ``[B, N]``; may be None if nothing is mined.
            attention: of the teacher's class token, ``[B, N]``; may be None if the strategy does not use it.
            compare: also draw the mask without mining.

        Raises:
            ValueError: if patches are to be mined without a difficulty, or from
                :func:`~hardpatch.methods.masking.draw_mask`.
        """
        chosen, (masked, mined) = self._chosen(mask_ratio), self.counts(mask_ratio, alpha)
        difficulty, attention = (
            None if values is None else pool_units(values, self.grid, self.unit) for values in (difficulty, attention)
        )  # [B, units]
        hardest = hardest_patches(difficulty, mined, self.mining) if mined else None
        mask = self._draw(noise, chosen, hardest, attention)  # bool [B, N]
        indices = self._to_indices(mask, masked * self.unit**2, noise)
        if hardest is None:
            return MinedMask(indices)
        drawn = self._draw(noise, chosen, None, attention) if compare else None
        return MinedMask(indices, spread_units(hardest, self.grid, self.unit), drawn)

    def _draw(self, noise: Tensor, chosen: int, hardest: Tensor | None, attention: Tensor | None) -> Tensor:
        units = draw_mask(self.strategy, noise, chosen, grid=self.units, mined=hardest, attention=attention)
        return spread_units(units, self.grid, self.unit)

    def _to_indices(self, mask: Tensor, masked: int, noise: Tensor) -> PatchIndices:
        """Convert a mask to indices; draw the hidden visible patches and the masked patches to reconstruct."""
        indices, patches = to_indices(mask, masked), mask.shape[1]
        if self.secondary_ratio:
            hidden = secondary_mask(noise[:, -patches:], mask, self.secondary_ratio, masked)
            indices = indices._replace(hidden=hidden.gather(1, indices.visible))
            noise = noise[:, :-patches]
        if self.prediction_ratio < 1.0:
            subset = subsample_masked(indices.masked, noise[:, -patches:], self.prediction_ratio)
            indices = indices._replace(masked=subset)
        return indices


def hardest_patches(difficulty: Tensor | None, count: int, mining: MiningName = "hard") -> Tensor:
    """Mark the ``count`` patches of each image with the highest ``difficulty [B, N]``, or the lowest: bool ``[B, N]``.

    Raises:
        ValueError: if the difficulty is None.
    """
    if difficulty is None:
        raise ValueError(f"difficulty: expected [B, N] to mine {count} patches, got None")
    chosen = difficulty.topk(count, dim=1, largest=mining == "hard", sorted=False).indices
    return torch.zeros_like(difficulty, dtype=torch.bool).scatter(1, chosen, True)


def hard_patches(
    difficulty: Tensor | None,
    noise: Tensor,
    masked: int,
    mined: int,
    mining: MiningName = "hard",
    *,
    strategy: MaskName = "random",
    grid: tuple[int, int] | None = None,
    attention: Tensor | None = None,
) -> Tensor:
    """Mask the ``mined`` hardest patches and draw the rest (paper, Sec. 3.4): bool ``[B, N]``.

    With ``mined = 0`` this is :func:`~hardpatch.methods.masking.draw_mask` bit for bit, and no difficulty is needed.

    Args:
        difficulty: predicted reconstruction loss ``[B, N]``.
        noise: uniform in [0, 1), ``[B, noise_count(strategy, N)]``.
        masked: number of masked patches of each image, before ``attention_hint`` reveals hints.
        mined: number of them that are chosen by difficulty: ``int(masked * alpha)``.
        mining: ``hard`` takes the highest predicted losses (argmax), ``easy`` the lowest (argmin).
        strategy: draws the other masked patches, at random in the paper.
        grid: (rows, columns) of patches; random masks do not need it.
        attention: ``[B, N]``, see :func:`~hardpatch.methods.masking.draw_mask`.

    Raises:
        ValueError: unless ``0 <= mined <= masked <= N``, if patches are to be mined without a difficulty, or from
            :func:`~hardpatch.methods.masking.draw_mask`.
    """
    if grid is None:
        if strategy != "random":
            raise ValueError(f"grid: expected (rows, columns) for mask strategy {strategy}, got None")
        grid = (1, noise.shape[1])
    patches = grid[0] * grid[1]
    if not 0 <= mined <= masked <= patches:
        raise ValueError(f"expected 0 <= mined <= masked <= {patches} patches, got {mined} and {masked}")
    hardest = hardest_patches(difficulty, mined, mining) if mined else None
    return draw_mask(strategy, noise, masked, grid=grid, mined=hardest, attention=attention)


def pool_units(values: Tensor, grid: tuple[int, int], unit: int) -> Tensor:
    """Average values over units of ``unit`` x ``unit`` patches: ``[B, N]`` -> ``[B, U]`` (SimMIM masks whole units).

    Raises:
        ValueError: if the unit does not divide the grid.
    """
    rows, columns = _units(grid, unit)
    return values.unflatten(1, (rows, unit, columns, unit)).mean(dim=(2, 4)).flatten(1)


def spread_units(mask: Tensor, grid: tuple[int, int], unit: int) -> Tensor:
    """Expand a mask of units ``[B, U]`` to patches, ``[B, N]``; ``grid`` is that of the patches.

    Raises:
        ValueError: if the unit does not divide the grid.
    """
    rows, columns = _units(grid, unit)
    return mask.unflatten(1, (rows, 1, columns, 1)).expand(-1, -1, unit, -1, unit).flatten(1)


def _units(grid: tuple[int, int], unit: int) -> tuple[int, int]:
    if unit < 1 or grid[0] % unit or grid[1] % unit:
        raise ValueError(
            f"unit: expected a number of patches that divides the grid of {grid[0]} x {grid[1]}, got {unit}"
        )
    return grid[0] // unit, grid[1] // unit
