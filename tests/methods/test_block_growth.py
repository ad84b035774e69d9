"""Growth of block masks: no masked patch is isolated, as (almost) none is in the original algorithm."""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hardpatch.methods.block_masks import grow, steps_to_mask
from hardpatch.methods.masking import block_mask, noise_count
from tests.methods.test_block_masks import DRAWS, GRIDS, cells, uniform


def steps_between(a: int, b: int, columns: int) -> int:
    return abs(a // columns - b // columns) + abs(a % columns - b % columns)


def slow_grow(noise: list[float], mask: set[int], masked: int, grid: tuple[int, int]) -> set[int]:
    columns = grid[1]
    order = sorted(range(grid[0] * columns), key=lambda patch: noise[patch])
    steps = {p: min((steps_between(p, q, columns) for q in mask), default=0) for p in order if p not in mask}
    start = min(steps, key=lambda patch: (steps[patch], order.index(patch)), default=0)

    def key(patch: int) -> tuple[int, int, int]:
        down, right = patch // columns - start // columns, patch % columns - start % columns
        return steps[patch], down**2 + right**2, order.index(patch)

    return mask | set(sorted(steps, key=key)[: masked - len(mask)])


@pytest.mark.parametrize(("rows", "columns", "masked"), [*GRIDS, (1, 7, 4), (5, 1, 5)])
def test_growth_is_that_of_a_loop(rows: int, columns: int, masked: int) -> None:
    noise = uniform(100, rows * columns)
    rank = uniform(100, rows * columns, seed=3).argsort(dim=1).argsort(dim=1)
    mask = rank < (torch.arange(100) % (masked + 1)).unsqueeze(1)  # from an empty mask to a full one
    grown = grow(noise, mask, masked, (rows, columns))
    for image in range(100):
        start = set(mask[image].nonzero().flatten().tolist())
        expected = slow_grow(noise[image].tolist(), start, masked, (rows, columns))
        assert set(grown[image].nonzero().flatten().tolist()) == expected


def test_growth_and_steps_by_hand() -> None:
    """One patch of 3 x 4 is masked. The border patch with the lowest noise starts, the nearest to it follows."""
    mask = torch.zeros(1, 12, dtype=torch.bool)
    mask[0, 5] = True
    assert steps_to_mask(mask, (3, 4)).tolist() == [[2, 1, 2, 3, 1, 0, 1, 2, 2, 1, 2, 3]]
    noise = torch.full((1, 12), 0.9)
    noise[0, [0, 6, 9, 7]] = torch.tensor([0.0, 0.1, 0.2, 0.3])  # 0 and 7 are two steps away
    grown = [grow(noise, mask, masked, (3, 4)).nonzero()[:, 1].tolist() for masked in (1, 2, 3, 5, 6)]
    assert grown == [[5], [5, 6], [5, 6, 9], [1, 4, 5, 6, 9], [1, 4, 5, 6, 7, 9]]


def original_blocks(rng: random.Random, at_most: float) -> set[int]:
    """Mask one image of 14 x 14 patches by BEiT's Algorithm 1 and iBOT's form of it, until ten blocks in a row fail.

    Unlike in this package, a block has less than 16 patches if fewer are missing, and it is shorter than the grid.
    """
    mask: set[int] = set()
    failures = 0
    while len(mask) < at_most and failures < 10:
        area = rng.uniform(16, at_most - len(mask))
        ratio = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        new: set[int] = set()
        if height < 14 and width < 14:
            new = cells(rng.randint(0, 14 - height), rng.randint(0, 14 - width), height, width, 14) - mask
        fits = 0 < len(new) <= at_most - len(mask)
        mask |= new if fits else set()
        failures = 0 if fits else failures + 1
    return mask


def isolated(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mark the masked patches without a masked neighbor above, below, left or right: bool ``[B, N]``."""
    padded = torch.nn.functional.pad(mask.unflatten(1, grid), (1, 1, 1, 1))
    inner, rows, columns = slice(1, -1), padded[:, 1:-1], padded[:, :, 1:-1]
    neighbor = columns[:, :-2] | columns[:, 2:] | rows[:, :, :-2] | rows[:, :, 2:]
    return (padded[:, inner, inner] & ~neighbor).flatten(1)


def boundary(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Count the pairs of neighbors of which one is masked, ``[B]``."""
    cells_2d = mask.unflatten(1, grid)
    down, right = cells_2d[:, 1:] ^ cells_2d[:, :-1], cells_2d[:, :, 1:] ^ cells_2d[:, :, :-1]
    return down.sum(dim=(1, 2)) + right.sum(dim=(1, 2))


@pytest.mark.parametrize("host", ["beit", "ibot"])
def test_no_masked_patch_is_isolated_as_in_the_original(host: str) -> None:
    """Isolated patches an image, and length of the boundary, beside the original algorithm.

    BEiT masks up to 75 patches, iBOT up to 10 to 50 % of 196. Random fill left 0.7 (BEiT) and 1.0 (iBOT) isolated.
    """
    rng = random.Random(0)
    limits = [75.0 if host == "beit" else rng.uniform(19.6, 98.0) for _ in range(DRAWS)]
    original = torch.zeros(DRAWS, 196, dtype=torch.bool)
    for image, limit in enumerate(limits):
        original[image, list(original_blocks(rng, limit))] = True
    noise, counts = uniform(DRAWS, noise_count("block", 196)), torch.tensor(limits).floor().long()
    ours = torch.zeros_like(original)
    for masked in counts.unique().tolist():
        ours[counts == masked] = block_mask(noise[counts == masked], masked, (14, 14))
    assert ours.sum(dim=1).equal(counts)
    assert 0.0 < isolated(original, (14, 14)).sum() / DRAWS < 0.1
    assert isolated(ours, (14, 14)).sum() == 0
    lengths = [boundary(mask, (14, 14)).double().mean() for mask in (ours, original)]
    assert 0.85 < lengths[0] / lengths[1] < 1.0  # as compact as the original's, or a little more


@given(
    rows=st.integers(1, 16),
    columns=st.integers(1, 16),
    share=st.floats(0, 1),
    mined=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_only_mined_patches_can_be_isolated(rows: int, columns: int, share: float, mined: float, seed: int) -> None:
    patches = rows * columns
    masked = int(share * patches)
    already = uniform(4, patches, seed=seed).argsort(dim=1).argsort(dim=1) < int(mined * masked)
    mask = block_mask(uniform(4, noise_count("block", patches), seed=seed), masked, (rows, columns), already)
    assert mask.sum(dim=1).tolist() == [masked] * 4
    assert (mask | already).equal(mask)
    if masked > 1:
        assert not (isolated(mask, (rows, columns)) & ~already).any()
