"""Mining: the hardest patches are masked, whatever draws the others."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hardpatch.choices import MaskName, MiningName
from hardpatch.methods.curriculum import mined_count
from hardpatch.methods.masking import (
    draw_mask,
    hint_count,
    masked_count,
    noise_count,
    random_mask,
)
from hardpatch.methods.mining import hard_patches, pool_units, spread_units
from tests.methods.test_masking import DRAWS, GRID, MASKED, MASKS, uniform


@given(
    patches=st.integers(2, 400),
    ratio=st.floats(0.01, 0.99),
    alpha=st.floats(0, 1),
    easy=st.booleans(),
    b=st.integers(1, 4),
)
def test_counts_are_exact(patches: int, ratio: float, alpha: float, easy: bool, b: int) -> None:
    visible = int(patches * (1 - ratio))
    if visible in (0, patches):
        with pytest.raises(ValueError, match="mask_ratio"):
            masked_count(patches, ratio)
        return
    masked = masked_count(patches, ratio)
    mined = mined_count(masked, alpha)
    assert masked == patches - visible
    assert mined == int(masked * alpha)
    difficulty, noise = torch.randn(b, patches), torch.rand(b, patches)
    mining: MiningName = "easy" if easy else "hard"
    mask = hard_patches(difficulty, noise, masked, mined, mining)
    assert mask.dtype == torch.bool
    assert mask.sum(dim=1).tolist() == [masked] * b
    assert random_mask(noise, masked).sum(dim=1).tolist() == [masked] * b


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("mining", ["hard", "easy"])
def test_mined_patches_are_the_extreme_ones_and_the_rest_is_random(mining: MiningName, ties: bool) -> None:
    difficulty = torch.randn(50, 196).round(decimals=1 if ties else 8)
    noise = torch.rand(50, 196)
    mask = hard_patches(difficulty, noise, masked=147, mined=60, mining=mining)
    for row in range(50):
        values = difficulty[row].tolist()
        order = sorted(range(196), key=lambda n: values[n], reverse=mining == "hard")
        threshold = values[order[59]]
        beyond = [n for n in range(196) if (values[n] > threshold if mining == "hard" else values[n] < threshold)]
        assert mask[row, beyond].all()
        if not ties:
            rest = sorted(set(range(196)) - set(order[:60]), key=lambda n: noise[row, n].item(), reverse=True)
            assert mask[row].nonzero().flatten().tolist() == sorted(order[:60] + rest[:87])


def test_alpha_zero_is_random_masking_bit_for_bit() -> None:
    noise = torch.rand(64, 196)
    assert torch.equal(hard_patches(torch.randn(64, 196), noise, 147, 0), random_mask(noise, 147))
    assert torch.equal(hard_patches(None, noise, 147, 0), random_mask(noise, 147))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("mining", ["hard", "easy"])
def test_mining_composes_with_every_mask(mask: MaskName, mining: MiningName) -> None:
    """The mined patches are masked first, and the strategy draws the rest around them."""
    noise, attention = uniform(DRAWS, noise_count(mask, 196)), uniform(DRAWS, 196, seed=1)
    difficulty = uniform(DRAWS, 196, seed=6)
    hardest = difficulty.argsort(dim=1, descending=mining == "hard")[:, :73]
    mined = torch.zeros(DRAWS, 196, dtype=torch.bool).scatter(1, hardest, True)
    result = hard_patches(difficulty, noise, MASKED, 73, mining, strategy=mask, grid=GRID, attention=attention)
    assert result.equal(draw_mask(mask, noise, MASKED, grid=GRID, mined=mined, attention=attention))
    assert (result.sum(dim=1) == MASKED - hint_count(mask, MASKED)).all()
    if mask == "grid":
        visible = (~result).unflatten(1, (7, 2, 7, 2)).sum(dim=(2, 4))
        assert (visible == 1).all()
    else:
        assert (result & mined).equal(mined)
    none = hard_patches(None, noise, MASKED, 0, mining, strategy=mask, grid=GRID, attention=attention)
    assert none.equal(draw_mask(mask, noise, MASKED, grid=GRID, attention=attention))
    every = hard_patches(difficulty, noise, MASKED, MASKED, mining, strategy=mask, grid=GRID, attention=attention)
    if mask != "grid":
        hardest = difficulty.argsort(dim=1, descending=mining == "hard")[:, :MASKED]
        assert every.equal(torch.zeros_like(every).scatter(1, hardest, True))


def test_units_are_whole_and_difficulty_is_their_mean() -> None:
    values, grid, unit = uniform(DRAWS, 6 * 8), (6, 8), 2
    pooled = pool_units(values, grid, unit)
    mask = pooled > 0.5
    spread = spread_units(mask, grid, unit)
    assert pooled.shape == (DRAWS, 12)
    assert spread.dtype == torch.bool
    for patch in range(48):
        row, column = divmod(patch, 8)
        assert spread[:, patch].equal(mask[:, (row // 2) * 4 + column // 2])
        unit_of = [r * 8 + c for r in (row // 2 * 2, row // 2 * 2 + 1) for c in (column // 2 * 2, column // 2 * 2 + 1)]
        torch.testing.assert_close(pooled[:, (row // 2) * 4 + column // 2], values[:, unit_of].mean(dim=1))
    torch.testing.assert_close(pool_units(spread.float(), grid, unit), mask.float())
    assert pool_units(values, grid, 1).equal(values)
    assert spread_units(mask[:, :1], (3, 3), 3).equal(mask[:, :1].expand(-1, 9))


@pytest.mark.parametrize("unit", [0, 4, 3])
def test_a_unit_divides_the_grid(unit: int) -> None:
    with pytest.raises(
        ValueError, match=rf"unit: expected a number of patches that divides the grid of 6 x 8, got {unit}"
    ):
        pool_units(torch.rand(1, 48), (6, 8), unit)
    with pytest.raises(ValueError, match=r"unit: "):
        spread_units(torch.ones(1, 12, dtype=torch.bool), (6, 8), unit)
