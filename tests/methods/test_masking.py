"""Masks: exact counts, shapes and distributions of every strategy."""

from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hardpatch.choices import MaskName
from hardpatch.methods.block_masks import draw_blocks, grid_mask, grow, inverse_block_mask
from hardpatch.methods.curriculum import linear_alpha, mined_count
from hardpatch.methods.masking import (
    STRATEGIES,
    attention_high_mask,
    attention_hint_mask,
    attention_low_mask,
    block_mask,
    chosen_count,
    draw_mask,
    hint_count,
    masked_count,
    noise_count,
    random_mask,
    secondary_mask,
)
from hardpatch.methods.mining import Masking, hard_patches

DRAWS = 1000
GRID, MASKED = (14, 14), 147
MASKS: tuple[MaskName, ...] = get_args(MaskName)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def draw(mask: MaskName, mined: Tensor | None = None, masked: int = MASKED, grid: tuple[int, int] = GRID) -> Tensor:
    patches = grid[0] * grid[1]
    noise, attention = uniform(DRAWS, noise_count(mask, patches)), uniform(DRAWS, patches, seed=1)
    return draw_mask(mask, noise, masked, grid=grid, mined=mined, attention=attention)


def masked_counts(mask: MaskName, mined_counts: Tensor, chosen: int = MASKED) -> Tensor:
    """Count the masked patches of each image: all that are chosen, or those that are not revealed as hints."""
    return chosen - (chosen - mined_counts).clamp(max=int(0.1 * chosen) if mask == "attention_hint" else 0)


def random_patches(counts: Tensor, patches: int = 196) -> Tensor:
    """Mark ``counts [B]`` patches of each image at random."""
    rank = uniform(len(counts), patches, seed=2).argsort(dim=1).argsort(dim=1)
    return rank < counts.unsqueeze(1)


def test_random_mask_is_uniform() -> None:
    share = random_mask(torch.rand(20_000, 16), 12).float().mean(dim=0)
    assert (share - 0.75).abs().max() < 5 * (0.75 * 0.25 / 20_000) ** 0.5


@pytest.mark.parametrize(
    ("patches", "ratio", "masked"), [(196, 0.75, 147), (64, 0.75, 48), (100, 0.9, 91), (49, 0.6, 30)]
)
def test_masked_counts_by_hand(patches: int, ratio: float, masked: int) -> None:
    assert masked_count(patches, ratio) == masked


def test_the_papers_curriculum() -> None:
    mined = [mined_count(147, linear_alpha(progress / 200)) for progress in range(201)]
    assert mined[0] == 0
    assert mined[-1] == 73
    assert mined == sorted(mined)
    assert linear_alpha(0.25, 0.5, 0.0) == 0.375  # hard to easy
    assert linear_alpha(0.9, 0.5, 0.5) == 0.5  # constant


def test_counts_and_shares_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"mask_ratio: expected a number between 0 and 1, got 1\.2"):
        masked_count(196, 1.2)
    with pytest.raises(ValueError, match="leaves 0 visible"):
        masked_count(4, 0.9)
    with pytest.raises(ValueError, match="progress"):
        linear_alpha(1.1)
    with pytest.raises(ValueError, match="0 <= mined <= masked"):
        hard_patches(torch.rand(1, 4), torch.rand(1, 4), 2, 3)
    with pytest.raises(ValueError, match="difficulty"):
        hard_patches(None, torch.rand(1, 4), 2, 1)


def test_every_strategy_has_a_function() -> None:
    assert tuple(STRATEGIES) == MASKS


@pytest.mark.parametrize("mask", MASKS)
def test_every_strategy_masks_exactly_the_count_and_the_mined_patches(mask: MaskName) -> None:
    assert draw(mask).dtype == torch.bool
    assert (draw(mask).sum(dim=1) == MASKED - hint_count(mask, MASKED)).all()
    mined = random_patches(torch.arange(DRAWS) % (MASKED + 1))  # none, all, and any number between
    result = draw(mask, mined)
    assert result.sum(dim=1).equal(masked_counts(mask, mined.sum(dim=1)))
    missing = mined & ~result
    if mask == "grid":  # only in windows whose four patches are mined
        full = mined.unflatten(1, (7, 2, 7, 2)).all(dim=2, keepdim=True).all(dim=4, keepdim=True)
        assert not (missing & ~full.expand(-1, -1, 2, -1, 2).flatten(1)).any()
        assert missing.any()
    else:
        assert not missing.any()


@given(
    mask=st.sampled_from(MASKS),
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    share=st.floats(0, 1),
    mined=st.floats(0, 1),
    seed=st.integers(0, 2**31),
    easy=st.booleans(),
)
def test_any_grid_and_any_count(
    mask: MaskName, rows: int, columns: int, share: float, mined: float, seed: int, easy: bool
) -> None:
    if mask == "grid":
        rows, columns, share = 2 * rows, 2 * columns, 0.75
    patches = rows * columns
    masked = int(share * patches)
    noise = uniform(3, noise_count(mask, patches), seed=seed)
    attention, difficulty = uniform(3, patches, seed=seed + 1), uniform(3, patches, seed=seed + 2)
    result = hard_patches(
        difficulty,
        noise,
        masked,
        int(mined * masked),
        "easy" if easy else "hard",
        strategy=mask,
        grid=(rows, columns),
        attention=attention,
    )
    assert result.sum(dim=1).equal(masked_counts(mask, torch.full((3,), int(mined * masked)), masked))
    order = (difficulty if easy else -difficulty).argsort(dim=1)[:, : int(mined * masked)]
    if mask != "grid":
        assert result.gather(1, order).all()


@pytest.mark.parametrize("mask", MASKS)
def test_the_mask_of_an_image_depends_on_its_own_noise_alone(mask: MaskName) -> None:
    noise, attention = uniform(64, noise_count(mask, 196)), uniform(64, 196, seed=1)
    mined = random_patches(torch.full((64,), 50))
    before = noise.clone(), attention.clone(), mined.clone()
    state = torch.get_rng_state()
    result = draw_mask(mask, noise, MASKED, grid=GRID, mined=mined, attention=attention)
    again = draw_mask(mask, noise, MASKED, grid=GRID, mined=mined, attention=attention)
    assert result.equal(again)
    assert torch.get_rng_state().equal(state)
    assert all(map(torch.equal, (noise, attention, mined), before))
    for image in (0, 31, 63):
        one = slice(image, image + 1)
        alone = draw_mask(mask, noise[one], MASKED, grid=GRID, mined=mined[one], attention=attention[one])
        assert alone[0].equal(result[image])
    longer = torch.cat([noise, uniform(64, 100, seed=3)], dim=1)
    assert draw_mask(mask, longer, MASKED, grid=GRID, mined=mined, attention=attention).equal(result)
    if mask not in ("attention_high", "attention_low"):
        other = uniform(64, noise_count(mask, 196), seed=4)
        assert not draw_mask(mask, other, MASKED, grid=GRID, mined=mined, attention=attention).equal(result)


def test_strategy_names_call_the_public_functions() -> None:
    noise, attention = uniform(DRAWS, noise_count("block", 196)), uniform(DRAWS, 196, seed=1)
    first = noise[:, :196]
    assert draw("block").equal(block_mask(noise, MASKED, GRID))
    assert noise_count("random", 196) == 196
    pairs: list[tuple[MaskName, Tensor]] = [
        ("random", random_mask(first, MASKED)),
        ("inverse_block", inverse_block_mask(first, MASKED, GRID)),
        ("grid", grid_mask(first, MASKED, GRID)),
        ("attention_high", attention_high_mask(attention, MASKED)),
        ("attention_low", attention_low_mask(attention, MASKED)),
        ("attention_hint", attention_hint_mask(first, attention, MASKED)),
    ]
    for mask, expected in pairs:
        assert draw_mask(mask, noise, MASKED, grid=GRID, attention=attention).equal(expected)


def test_block_mask_grows_the_blocks() -> None:
    noise = uniform(DRAWS, noise_count("block", 196))
    mined = random_patches(torch.arange(DRAWS) % 76)
    for already in (None, mined):
        blocks = draw_blocks(noise[:, 196:], 75, GRID, already).mask
        assert (blocks.sum(dim=1) < 75).any()
        assert block_mask(noise, 75, GRID, already).equal(grow(noise[:, :196], blocks, 75, GRID))


@pytest.mark.parametrize("lowest", [False, True])
@pytest.mark.parametrize("ties", [False, True])
def test_attention_masks_are_the_top_of_a_sort(ties: bool, lowest: bool) -> None:
    attention = uniform(DRAWS, 196, seed=1)
    if ties:
        attention = attention.mul(20).round()
    mined = random_patches(torch.arange(DRAWS) % (MASKED + 1))
    function = attention_low_mask if lowest else attention_high_mask
    alone, composed = function(attention, MASKED), function(attention, MASKED, mined)
    for image in range(0, DRAWS, 4):
        values = attention[image].tolist()
        order = sorted(range(196), key=lambda patch: values[patch], reverse=not lowest)  # stable
        assert alone[image].nonzero().flatten().tolist() == sorted(order[:MASKED])
        mined_patches = mined[image].nonzero().flatten().tolist()
        rest = [patch for patch in order if patch not in mined_patches][: MASKED - len(mined_patches)]
        assert composed[image].nonzero().flatten().tolist() == sorted(mined_patches + rest)


def test_attmask_hint_masks_as_many_patches_as_the_authors() -> None:
    """At ratio 0.3, 58 of 196 patches are chosen and 5 of the 19 most attended revealed."""
    assert chosen_count("attention_hint", 196, 0.3) == 58
    assert chosen_count("attention_high", 196, 0.3) == 59
    assert hint_count("attention_hint", 58) == 5
    assert hint_count("attention_high", 58) == 0
    noise, attention = uniform(DRAWS, 196), uniform(DRAWS, 196, seed=1)
    mask = attention_hint_mask(noise, attention, 58)
    order = attention.argsort(dim=1, descending=True)
    assert (mask.sum(dim=1) == 53).all()
    assert (mask.gather(1, order[:, :19]).sum(dim=1) == 14).all()
    assert mask.gather(1, order[:, 19:58]).all()
    assert not mask.gather(1, order[:, 58:]).any()  # none is masked in the place of a hint
    masking = Masking((14, 14), "attention_hint")
    assert masking.counts(0.3, 0.5) == (53, 26)
    result = masking.mine_mask(noise, mask_ratio=0.3, alpha=0.5, difficulty=-attention, attention=attention)
    assert result.mask.masked.shape == (DRAWS, 53)
    assert result.mask.visible.shape == (DRAWS, 143)
    assert masking.mine_mask(noise, mask_ratio=0.3, alpha=0.0, attention=attention).mask.masked.shape == (DRAWS, 53)


@pytest.mark.parametrize("chosen", [12, 58, 147, 196])
def test_hints_are_among_the_most_attended(chosen: int) -> None:
    noise, attention = uniform(DRAWS, 196), uniform(DRAWS, 196, seed=1)
    mined = random_patches(torch.arange(DRAWS) % (chosen + 1))
    mined[: DRAWS // 2] = False
    mask = attention_hint_mask(noise, attention, chosen, mined)
    for image in range(0, DRAWS, 4):
        values, chance = attention[image].tolist(), noise[image].tolist()
        mined_patches = mined[image].nonzero().flatten().tolist()
        order = sorted(set(range(196)) - set(mined_patches), key=lambda patch: values[patch], reverse=True)
        drawn = order[: chosen - len(mined_patches)]
        hints = min(int(0.1 * chosen), len(drawn))
        top = sorted(drawn[:19], key=lambda patch: chance[patch], reverse=True)
        assert mask[image].nonzero().flatten().tolist() == sorted(mined_patches + list(set(drawn) - set(top[:hints])))
    high = attention_high_mask(attention, chosen)
    assert attention_hint_mask(noise, attention, chosen, share=0.0).equal(high)
    assert not attention_hint_mask(noise, attention, chosen, share=1.0).any()


def test_each_of_the_most_attended_patches_is_a_hint_equally_often() -> None:
    attention = torch.arange(196.0).flip(0).expand(DRAWS, -1)
    mask = attention_hint_mask(uniform(DRAWS, 196), attention, 98)
    shown = (~mask[:, :19]).sum(dim=0).double()  # 9 of 19
    assert shown.sum() == 9 * DRAWS
    assert (shown / DRAWS - 9 / 19).abs().max() < 5 * (9 / 19 * 10 / 19 / DRAWS) ** 0.5


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_secondary_masking_hides_a_share_of_the_visible_patches(share: float) -> None:
    mask = draw("grid")
    noise = uniform(DRAWS, 196, seed=5)
    hidden = secondary_mask(noise, mask, share, MASKED)
    count = {0.0: 0, 0.25: 13, 0.5: 25, 1.0: 49}[share]  # 36 and 24 of 49 stay at 0.25 and 0.5
    assert (hidden.sum(dim=1) == count).all()
    assert not (hidden & mask).any()
    assert secondary_mask(noise, mask, share).equal(hidden)
    for image in range(100):
        values = noise[image].tolist()
        visible = sorted((~mask[image]).nonzero().flatten().tolist(), key=lambda patch: values[patch], reverse=True)
        assert hidden[image].nonzero().flatten().tolist() == sorted(visible[:count])


def test_draw_mask_refuses_arguments_that_do_not_fit() -> None:
    noise = torch.rand(2, 16)
    with pytest.raises(ValueError, match=r"strategy: expected one of random, block, .*, got 'blocks'"):
        draw_mask("blocks", noise, 12, grid=(4, 4))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"masked: expected 0 to 16 patches, got 17"):
        draw_mask("random", noise, 17, grid=(4, 4))
    with pytest.raises(ValueError, match=r"noise: expected \[B, 256\] for block on a \(4, 4\) grid, got \[2, 16\]"):
        draw_mask("block", noise, 12, grid=(4, 4))
    with pytest.raises(ValueError, match=r"mined: expected \[2, 16\], got \[2, 15\]"):
        draw_mask("random", noise, 12, grid=(4, 4), mined=torch.zeros(2, 15, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"attention: expected \[2, 16\], got \[1, 16\]"):
        draw_mask("attention_low", noise, 12, grid=(4, 4), attention=torch.rand(1, 16))
    names: tuple[MaskName, ...] = ("attention_high", "attention_low", "attention_hint")
    for name in names:
        with pytest.raises(ValueError, match=r"attention: expected \[B, N\] .*, got None"):
            draw_mask(name, noise, 12, grid=(4, 4))
    with pytest.raises(ValueError, match=r"grid: expected even rows and columns"):
        draw_mask("grid", noise[:, :15], 11, grid=(3, 5))
    with pytest.raises(ValueError, match=r"grid: expected \(rows, columns\) for mask strategy block, got None"):
        hard_patches(None, noise, 12, 0, strategy="block")
    with pytest.raises(ValueError, match=r"share: expected a number in \[0, 1\], got 1\.5"):
        secondary_mask(noise, noise > 0.5, 1.5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU to compare with")
@pytest.mark.parametrize("mask", MASKS)
def test_masks_are_the_same_on_a_gpu_without_synchronization(mask: MaskName) -> None:
    noise, attention = uniform(DRAWS, noise_count(mask, 196)), uniform(DRAWS, 196, seed=1)
    difficulty = uniform(DRAWS, 196, seed=6)
    on_cpu = hard_patches(difficulty, noise, MASKED, 30, strategy=mask, grid=GRID, attention=attention)
    moved = difficulty.cuda(), noise.cuda(), attention.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_gpu = hard_patches(moved[0], moved[1], MASKED, 30, strategy=mask, grid=GRID, attention=moved[2])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert on_gpu.cpu().equal(on_cpu)
