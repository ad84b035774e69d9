"""Which patches to mask. Every function returns bool ``[B, N]``, True = masked (the paper's M is 1 for *visible*).

All randomness enters as ``noise``, uniform in [0, 1) (see :func:`hardpatch.randomness.patch_noise`): the same noise
gives the same mask, on any device, and the counts are exact. ``mined`` is a mask of patches that are already chosen,
at most M of an image: hard patches mining puts the mined ones first and has any strategy draw the others.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hardpatch.choices import MaskName
from hardpatch.methods.block_masks import ATTEMPTS, draw_blocks, grid_mask, inverse_block_mask


def masked_count(patches: int, mask_ratio: float) -> int:
    """Number of masked patches: what is left beside ``int(N * (1 - ratio))`` visible ones (147 of 196 at 0.75).

    Raises:
        ValueError: if the ratio is outside (0, 1), or leaves no patch visible or none masked.
    """
    if not 0.0 < mask_ratio < 1.0:
        raise ValueError(f"mask_ratio: expected a number between 0 and 1, got {mask_ratio}")
    visible = int(patches * (1.0 - mask_ratio))  # in floating point, as in the reference: 9 of 100 at 0.9
    if visible == 0 or visible == patches:
        raise ValueError(f"mask_ratio: {mask_ratio} of {patches} patches leaves {visible} visible")
    return patches - visible


def noise_count(strategy: MaskName, patches: int) -> int:
    """How many random numbers :func:`draw_mask` needs for an image of N ``patches``; N but for blocks."""
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

    Args:
        strategy: a name of :data:`STRATEGIES`.
        noise: uniform in [0, 1), ``[B, noise_count(strategy, N)]`` or more.
        masked: M, the mined patches included.
        grid: (rows, columns) of patches, N in all.
        mined: ``[B, N]``, at most M of an image; contained in the result, but for
            :func:`~hardpatch.methods.block_masks.grid_mask` where it fills a window. None for none.
        attention: ``[B, N]``, what the teacher's class token pays to each patch; only for the strategies of that name.

    Raises:
        ValueError: for an unknown strategy, ``masked`` beyond the patches, noise that does not suffice, a tensor of
            another shape, or attention that is missing.
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
    return _extreme(noise if mined is None else noise.masked_fill(mined, 2.0), masked)


def block_mask(noise: Tensor, masked: int, grid: tuple[int, int], mined: Tensor | None = None) -> Tensor:
    """BEiT's blocks (:func:`~hardpatch.methods.block_masks.draw_blocks`), and at random what they lack of ``masked``.

    BEiT itself masks *at most* that many; an exact count is what DINOv3 makes of it too. The first N of
    ``noise [B, N + 4 * attempts]`` complete, the rest draws the blocks.
    """
    patches = grid[0] * grid[1]
    blocks = draw_blocks(noise[:, patches:], masked, grid, mined)
    return random_mask(noise[:, :patches], masked, blocks.mask)


def attention_high_mask(attention: Tensor | None, masked: int, mined: Tensor | None = None) -> Tensor:
    """Mask the patches that the teacher attends to most: AttMask-High (Kakogeorgiou et al., ECCV 2022).

    Args:
        attention: ``[B, N]``, of the class token in the last layer, averaged over heads; of equals the first goes
            first.
        masked: M, the mined patches included.
        mined: masked beforehand, at most M of an image; None for none.

    Raises:
        ValueError: without attention.
    """
    attention = _present(attention)
    if mined is not None:
        attention = attention.masked_fill(mined, float("inf"))
    chosen = attention.argsort(dim=1, descending=True, stable=True)[:, :masked]
    return torch.zeros_like(attention, dtype=torch.bool).scatter(1, chosen, True)


def attention_low_mask(attention: Tensor | None, masked: int, mined: Tensor | None = None) -> Tensor:
    """Mask the patches that the teacher attends to least: AttMask-Low; arguments as :func:`attention_high_mask`."""
    return attention_high_mask(-_present(attention), masked, mined)


def attention_hint_mask(
    noise: Tensor, attention: Tensor | None, masked: int, mined: Tensor | None = None, *, share: float = 0.1
) -> Tensor:
    """AttMask-Hint: as :func:`attention_high_mask`, but a few of the most attended patches are shown.

    With n patches that are not mined, m of them to be masked: ``int(share * m)`` at random of the
    ``int(share * n)`` most attended stay visible, and the next most attended are masked in their place. (The authors'
    code, whence the default, masks that many fewer.) No more are shown than the count leaves room for.

    Args:
        noise: ``[B, N]``, uniform in [0, 1).
        attention, masked, mined: as :func:`attention_high_mask`.
        share: of the patches, in [0, 1].

    Raises:
        ValueError: without attention.
    """
    attention, patches = _present(attention), noise.shape[1]
    mined = torch.zeros_like(noise, dtype=torch.bool) if mined is None else mined
    taken = mined.sum(dim=1, keepdim=True)
    most_attended = _rank(attention.masked_fill(mined, -float("inf"))) < (share * (patches - taken)).floor()
    count = (share * (masked - taken)).floor().clamp(max=patches - masked)
    shown = _rank(noise.masked_fill(~most_attended, -1.0)) < count
    return attention_high_mask(attention.masked_fill(shown, -float("inf")), masked, mined)


def secondary_mask(noise: Tensor, mask: Tensor, share: float, masked: int | None = None) -> Tensor:
    """Which visible patches a mask token replaces in the encoder: secondary masking (Li et al., UM-MAE, 2022).

    Args:
        noise: ``[B, N]``, uniform in [0, 1), other than what drew ``mask``.
        mask: ``[B, N]``, as many masked patches in every image.
        share: of the V visible patches, in [0, 1]: ``int(V * share)`` are chosen. 0.25 in the paper.
        masked: M; without it, it is read off the mask, which waits for the device.

    Raises:
        ValueError: if the share is outside [0, 1].
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share: expected a number in [0, 1], got {share}")
    if masked is None:
        masked = int(mask[0].sum())
    return _extreme(noise.masked_fill(mask, -1.0), int((mask.shape[1] - masked) * share))


def subsample_masked(masked: Tensor, noise: Tensor, share: float) -> Tensor:
    """A random ``share`` of the masked patches, at least one: ``[B, M]`` -> ``[B, int(M * share)]``, both increasing.

    Only these are then rebuilt (Fu et al. 2024, CrossMAE). ``noise [B, N]`` is uniform in [0, 1), other than what drew
    the mask.
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


def _extreme(priority: Tensor, count: int, largest: bool = True) -> Tensor:
    chosen = priority.topk(count, dim=1, largest=largest, sorted=False).indices
    return torch.zeros_like(priority, dtype=torch.bool).scatter(1, chosen, True)


def _rank(values: Tensor) -> Tensor:
    """Place of each value in its row, 0 for the highest; of equals the first goes first."""
    return values.argsort(dim=1, descending=True, stable=True).argsort(dim=1)


def _present(attention: Tensor | None) -> Tensor:
    if attention is None:
        raise ValueError("attention: expected [B, N] from the teacher's class token to draw a mask by it, got None")
    return attention
