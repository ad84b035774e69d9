import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hardpatch.curriculum import linear_alpha, mined_count
from hardpatch.masking import Mining, hard_patches, masked_count, random_mask


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
    mining: Mining = "easy" if easy else "hard"
    mask = hard_patches(difficulty, noise, masked, mined, mining)
    assert mask.dtype == torch.bool
    assert mask.sum(dim=1).tolist() == [masked] * b
    assert random_mask(noise, masked).sum(dim=1).tolist() == [masked] * b


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("mining", ["hard", "easy"])
def test_mined_patches_are_the_extreme_ones_and_the_rest_is_random(mining: Mining, ties: bool) -> None:
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


def test_random_mask_is_uniform() -> None:
    share = random_mask(torch.rand(20_000, 16), 12).float().mean(dim=0)
    assert (share - 0.75).abs().max() < 5 * (0.75 * 0.25 / 20_000) ** 0.5


@pytest.mark.parametrize(
    ("patches", "ratio", "masked"), [(196, 0.75, 147), (64, 0.75, 48), (100, 0.9, 91), (49, 0.6, 30)]
)
def test_known_counts(patches: int, ratio: float, masked: int) -> None:
    assert masked_count(patches, ratio) == masked


def test_the_papers_curriculum() -> None:
    mined = [mined_count(147, linear_alpha(progress / 200)) for progress in range(201)]
    assert mined[0] == 0
    assert mined[-1] == 73
    assert mined == sorted(mined)
    assert linear_alpha(0.25, 0.5, 0.0) == 0.375  # hard to easy
    assert linear_alpha(0.9, 0.5, 0.5) == 0.5  # constant


def test_mistakes() -> None:
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
