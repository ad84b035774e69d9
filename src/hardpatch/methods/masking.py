"""Mask strategies: bool masks ``[B, N]`` of patches, True = masked (the paper's M is 1 for *visible*).

The only random input is ``noise``, uniform in [0, 1) (see :func:`hardpatch.randomness.patch_noise`): the same noise
gives the same mask on any device, and the counts are exact. ``mined`` is a mask of patches that are already chosen, at
most M of an image: hard patches mining chooses these first, and the strategy draws the others.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hardpatch.choices import MaskName
from hardpatch.methods.block_masks import ATTEMPTS, draw_blocks, grid_mask, grow, inverse_block_mask

HINT_SHARE = 0.1
"""Share of hints of AttMask-Hint, in its authors' code."""


def masked_count(patches: int, mask_ratio: float) -> int:
    """Count the masked patches, all but ``int(N * (1 - ratio))`` visible ones: 147 of 196 at 0.75.

    Raises:
        ValueError: if the ratio is outside (0, 1), or if no patch would be visible or none masked.
    """
    if not 0.0 < mask_ratio < 1.0:
        raise ValueError(f"mask_ratio: expected a number between 0 and 1, got {mask_ratio}")
    visible = int(patches * (1.0 - mask_ratio))  # in floating point, as in the reference: 9 of 100 at 0.9
    if visible == 0 or visible == patches:
        raise ValueError(f"mask_ratio: {mask_ratio} of {patches} patches leaves {visible} visible")
    return patches - visible


def chosen_count(strategy: MaskName, patches: int, mask_ratio: float) -> int:
    """Count the patches that a strategy chooses: :func:`masked_count`; ``int(N * ratio)`` for ``attention_hint``.

    These are 59 and 58 of 196 at 0.3. The second is how the authors of AttMask round; see :func:`hint_count`.

    Raises:
        ValueError: from :func:`masked_count`.
    """
    masked = masked_count(patches, mask_ratio)
    return max(1, int(patches * mask_ratio)) if strategy == "attention_hint" else masked


def hint_count(strategy: MaskName, chosen: int) -> int:
    """Count those of the ``chosen`` patches that stay visible as hints: a tenth for ``attention_hint``, else none.

    5 of 58, so that 53 are masked, as in the authors' code.
    """
    return int(chosen * HINT_SHARE) if strategy == "attention_hint" else 0


def noise_count(strategy: MaskName, patches: int) -> int:
    """Count the random numbers that :func:`draw_mask` needs for an image of N ``patches``: N, and more for blocks."""
    return patches + 4 * ATTEMPTS if strategy == "block" else patches


def draw_mask(
    strategy: MaskName,
    noise: Tensor,
    masked: int,
    *,
    grid: tuple[int, int],
    mined: Tensor | None = None,
    attention: Tensor | None = None,
) -> Tensor:
    """Mask exactly ``masked`` patches of every image: the mined ones, and the rest as the strategy draws them.

    ``attention_hint`` alone masks fewer: of the ``masked`` patches that it chooses, :func:`hint_count` are revealed.

    Args:
        strategy: a name of :data:`STRATEGIES`.
        noise: uniform in [0, 1), ``[B, noise_count(strategy, N)]`` or more.
        masked: M, the mined patches included.
        grid: (rows, columns) of patches, N in all.
        mined: ``[B, N]``, at most M of an image; None for none. All of them are masked, with one exception: see
            :func:`~hardpatch.methods.block_masks.grid_mask`.
        attention: attention of the teacher's class token to each patch, ``[B, N]``; only for attention strategies.

    Raises:
        ValueError: for an unknown strategy, more masked patches than N, too little noise, a tensor of another shape,
            or missing attention.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy: expected one of {', '.join(STRATEGIES)}, got {strategy!r}")
    patches, needed = grid[0] * grid[1], noise_count(strategy, grid[0] * grid[1])
    if not 0 <= masked <= patches:
        raise ValueError(f"masked: expected 0 to {patches} patches, got {masked}")
    if noise.ndim != 2 or noise.shape[1] < needed:
        raise ValueError(f"noise: expected [B, {needed}] for {strategy} on a {grid} grid, got {list(noise.shape)}")
    for name, tensor in (("mined", mined), ("attention", attention)):
        if tensor is not None and tensor.shape != (len(noise), patches):
            raise ValueError(f"{name}: expected [{len(noise)}, {patches}], got {list(tensor.shape)}")
    return STRATEGIES[strategy](noise[:, :needed], masked, grid, mined, attention)


def random_mask(noise: Tensor, masked: int, mined: Tensor | None = None) -> Tensor:
    """Mask ``masked`` patches of every image at random: the mined ones and those with the highest ``noise [B, N]``."""
    return _mark_highest(noise if mined is None else noise.masked_fill(mined, 2.0), masked)


def block_mask(noise: Tensor, masked: int, grid: tuple[int, int], mined: Tensor | None = None) -> Tensor:
    """Mask BEiT's blocks (:func:`~hardpatch.methods.block_masks.draw_blocks`), and grow them to ``masked`` patches.

    BEiT itself masks *at most* that many. The first N numbers of ``noise [B, N + 4 * attempts]`` decide where blocks
    grow (:func:`~hardpatch.methods.block_masks.grow`), the others draw them.
    """
    patches = grid[0] * grid[1]
    blocks = draw_blocks(noise[:, patches:], masked, grid, mined)
    return grow(noise[:, :patches], blocks.mask, masked, grid)


def attention_high_mask(attention: Tensor | None, masked: int, mined: Tensor | None = None) -> Tensor:
    """Mask the patches with the highest attention of the teacher: AttMask-High (Kakogeorgiou et al., ECCV 2022).

    Args:
        attention: attention of the class token in the last layer, averaged over heads, ``[B, N]``; among equal values
            the first patch is masked first.
        masked: M, the mined patches included.
        mined: patches that are already masked, at most M of an image; None for none.

    Raises:
        ValueError: without attention.
    """
    attention = _require_attention(attention)
    if mined is not None:
        attention = attention.masked_fill(mined, float("inf"))
    chosen = attention.argsort(dim=1, descending=True, stable=True)[:, :masked]
    return torch.zeros_like(attention, dtype=torch.bool).scatter(1, chosen, True)


def attention_low_mask(attention: Tensor | None, masked: int, mined: Tensor | None = None) -> Tensor:
    """Mask the patches with the lowest attention: AttMask-Low; arguments as of :func:`attention_high_mask`."""
    return attention_high_mask(-_require_attention(attention), masked, mined)


def attention_hint_mask(
    noise: Tensor, attention: Tensor | None, chosen: int, mined: Tensor | None = None, *, share: float = HINT_SHARE
) -> Tensor:
    """Mask the patches with the highest attention, but reveal a few of them as hints: AttMask-Hint.

    Of the ``chosen`` patches, ``int(share * chosen)`` are revealed, and no others are masked in their place. They are
    drawn from the ``int(share * N)`` most attended patches, of those that are chosen and not mined.

    Args:
        noise: ``[B, N]``, uniform in [0, 1).
        attention: ``[B, N]``, as for :func:`attention_high_mask`.
        chosen: number of patches before the hints are revealed, the mined ones included.
        mined: patches that are already masked, at most ``chosen`` of an image; None for none. They are not revealed: an
            image whose chosen patches are nearly all mined has fewer hints.
        share: share of hints, in [0, 1].

    Raises:
        ValueError: without attention.
    """
    attention, patches = _require_attention(attention), noise.shape[1]
    mined = torch.zeros_like(noise, dtype=torch.bool) if mined is None else mined
    drawn = chosen - mined.sum(dim=1, keepdim=True)
    most_attended = _rank(attention.masked_fill(mined, -float("inf"))) < drawn.clamp(max=int(share * patches))
    revealed = _rank(noise.masked_fill(~most_attended, -1.0)) < drawn.clamp(max=int(share * chosen))
    return attention_high_mask(attention, chosen, mined) & ~revealed


def secondary_mask(noise: Tensor, mask: Tensor, share: float, masked: int | None = None) -> Tensor:
    """Draw the visible patches that the encoder sees as mask tokens: secondary masking (Li et al., UM-MAE, 2022).

    Args:
        noise: ``[B, N]``, uniform in [0, 1), independent of the noise that drew ``mask``.
        mask: ``[B, N]``, with the same number of masked patches in every image.
        share: share of the V visible patches, in [0, 1]: all but ``int(V * (1 - share))`` are drawn. 0.25 in the UM-MAE
            paper: 13 of 49, and 36 stay.
        masked: M; None counts them in the mask, which waits for the device.

    Returns:
        bool ``[B, N]``.

    Raises:
        ValueError: if the share is outside [0, 1].
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share: expected a number in [0, 1], got {share}")
    if masked is None:
        masked = int(mask[0].sum())
    visible = mask.shape[1] - masked
    return _mark_highest(noise.masked_fill(mask, -1.0), visible - int(visible * (1.0 - share)))


def subsample_masked(masked: Tensor, noise: Tensor, share: float) -> Tensor:
    """Draw the masked patches to reconstruct (Fu et al. 2024, CrossMAE).

    Args:
        masked: indices of the masked patches, int64 ``[B, M]``, increasing.
        noise: ``[B, N]``, uniform in [0, 1), independent of the noise that drew the mask.
        share: share of the masked patches; at least one is drawn.

    Returns:
        Indices ``[B, int(M * share)]``, increasing.
    """
    count = max(1, int(masked.shape[1] * share))
    chosen = noise.gather(1, masked).topk(count, dim=1, sorted=False).indices.sort(dim=1).values
    return masked.gather(1, chosen)


Strategy = Callable[[Tensor, int, tuple[int, int], Tensor | None, Tensor | None], Tensor]

STRATEGIES: dict[MaskName, Strategy] = {
    "random": lambda noise, masked, grid, mined, attention: random_mask(noise, masked, mined),
    "block": lambda noise, masked, grid, mined, attention: block_mask(noise, masked, grid, mined),
    "inverse_block": lambda noise, masked, grid, mined, attention: inverse_block_mask(noise, masked, grid, mined),
    "grid": lambda noise, masked, grid, mined, attention: grid_mask(noise, masked, grid, mined),
    "attention_high": lambda noise, masked, grid, mined, attention: attention_high_mask(attention, masked, mined),
    "attention_low": lambda noise, masked, grid, mined, attention: attention_low_mask(attention, masked, mined),
    "attention_hint": lambda noise, masked, grid, mined, attention: attention_hint_mask(
        noise, attention, masked, mined
    ),
}


def _mark_highest(priority: Tensor, count: int) -> Tensor:
    chosen = priority.topk(count, dim=1, sorted=False).indices
    return torch.zeros_like(priority, dtype=torch.bool).scatter(1, chosen, True)


def _rank(values: Tensor) -> Tensor:
    """Rank each value in its row, 0 for the highest; among equal values the first has the lower rank."""
    return values.argsort(dim=1, descending=True, stable=True).argsort(dim=1)


def _require_attention(attention: Tensor | None) -> Tensor:
    if attention is None:
        raise ValueError("attention: expected [B, N] of the teacher's class token for this mask strategy, got None")
    return attention
