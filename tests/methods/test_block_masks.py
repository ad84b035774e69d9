import math

import pytest
import torch
from torch import Tensor

from hardpatch.methods.block_masks import ATTEMPTS, draw_blocks, grid_mask, inverse_block_mask

DRAWS = 1000
GRIDS = [(14, 14, 75), (14, 14, 147), (8, 8, 48), (6, 10, 36)]


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def random_patches(grid: tuple[int, int], count: int, seed: int = 9) -> Tensor:
    """Mark ``count`` patches of every image at random."""
    chosen = uniform(DRAWS, grid[0] * grid[1], seed=seed).argsort(dim=1)[:, :count]
    return torch.zeros(DRAWS, grid[0] * grid[1], dtype=torch.bool).scatter(1, chosen, True)


def cells(top: int, left: int, height: int, width: int, columns: int) -> set[int]:
    return {row * columns + column for row in range(top, top + height) for column in range(left, left + width)}


def slow_blocks(
    noise: list[float], masked: int, grid: tuple[int, int], mined: set[int]
) -> tuple[set[int], list[list[int]]]:
    rows, columns = grid
    smallest, covered, boxes = min(16, masked), set(mined), []
    for start in range(0, len(noise), 4):
        for_area, for_ratio, for_top, for_left = noise[start : start + 4]
        missing = masked - len(covered)
        area = smallest + for_area * max(0, missing - smallest)
        ratio = math.exp(math.log(0.3) + for_ratio * (math.log(1 / 0.3) - math.log(0.3)))
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        boxes.append([0, 0, 0, 0])
        if height <= rows and width <= columns and height * width >= smallest:
            top, left = int(for_top * (rows - height + 1)), int(for_left * (columns - width + 1))
            new = cells(top, left, height, width, columns) - covered
            if 0 < len(new) <= missing:
                covered |= new
                boxes[-1] = [top, left, height, width]
    return covered, boxes


@pytest.mark.parametrize("mined_share", [0.0, 0.5])
@pytest.mark.parametrize(("rows", "columns", "masked"), GRIDS)
def test_blocks_are_those_of_a_loop_over_images(rows: int, columns: int, masked: int, mined_share: float) -> None:
    noise, mined = uniform(DRAWS, 4 * ATTEMPTS), random_patches((rows, columns), int(masked * mined_share))
    blocks = draw_blocks(noise, masked, (rows, columns), mined)
    for image in range(200):
        already = set(mined[image].nonzero().flatten().tolist())
        covered, boxes = slow_blocks(noise[image].tolist(), masked, (rows, columns), already)
        assert set(blocks.mask[image].nonzero().flatten().tolist()) == covered
        assert blocks.boxes[image].tolist() == boxes


@pytest.mark.parametrize("mined_share", [0.0, 0.5])
@pytest.mark.parametrize(("rows", "columns", "masked"), GRIDS)
def test_blocks_are_whole_large_and_at_most_the_count(rows: int, columns: int, masked: int, mined_share: float) -> None:
    """A block has the drawn aspect ratio up to half a patch in each side.

    So the range from (h - 1/2) / (w + 1/2) to (h + 1/2) / (w - 1/2) overlaps with [0.3, 1/0.3].
    """
    mined = random_patches((rows, columns), int(masked * mined_share))
    mask, boxes = draw_blocks(uniform(DRAWS, 4 * ATTEMPTS), masked, (rows, columns), mined)
    assert (mask.sum(dim=1) <= masked).all()
    assert (mask | mined).equal(mask)
    top, left, height, width = boxes.unbind(dim=2)
    placed = height > 0
    assert placed.any(dim=1).float().mean() > 0.99
    assert (height * width)[placed].min() >= 16
    assert (height * width)[placed].max() <= masked
    assert ((height + 0.5) / (width - 0.5))[placed].min() >= 0.3
    assert ((height - 0.5) / (width + 0.5))[placed].max() <= 1 / 0.3
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height).max() <= rows
    assert (left + width).max() <= columns
    assert boxes[~placed].eq(0).all()
    for image in range(DRAWS):  # a mask is its blocks, each of them a full rectangle
        union = set(mined[image].nonzero().flatten().tolist())
        for box in boxes[image][placed[image]].tolist():
            union |= cells(box[0], box[1], box[2], box[3], columns)
        assert set(mask[image].nonzero().flatten().tolist()) == union


def test_the_first_block_has_the_drawn_area_and_aspect_ratio() -> None:
    """On a grid that any block fits into, the first one is placed unless rounding moves its area out of [400, 1600]."""
    boxes = draw_blocks(uniform(4000, 4), 1600, (80, 80), smallest=400).boxes[:, 0]
    placed = boxes[boxes[:, 2] > 0].double()
    assert len(placed) > 3800
    top, left, height, width = placed.unbind(dim=1)
    end = -math.log(0.3)
    log_ratio, area = (height / width).log() / end, height * width
    # Uniform in [-1, 1] and [400, 1600]: 5 standard errors of mean and mean square, and the effect of rounding: half a
    # patch is up to 4.5 % of a side, which is 11 patches or more; 2 % of the range were lost above.
    assert log_ratio.abs().max() < 1 + 2 * 0.5 / 11 / end
    assert log_ratio.abs().max() > 0.97
    assert log_ratio.mean().abs() < 5 * (1 / 3 / len(placed)) ** 0.5
    assert (log_ratio.square().mean() - 1 / 3).abs() < 5 * (4 / 45 / len(placed)) ** 0.5 + 0.02
    assert (area.mean() - 1000).abs() < 5 * (1200**2 / 12 / len(placed)) ** 0.5 + 0.02 * 1200
    for start, side in ((top, height), (left, width)):
        relative = start / (80 - side)  # uniform on 0, 1/k .. 1; k is 7 or more and the variance (1 + 2/k) / 12 < 0.11
        assert (relative.mean() - 0.5).abs() < 5 * (0.11 / len(placed)) ** 0.5


def test_few_patches_are_missing_after_all_attempts() -> None:
    for masked in (75, 147):
        mask = draw_blocks(uniform(DRAWS, 4 * ATTEMPTS), masked, (14, 14)).mask
        assert masked - mask.sum(dim=1).double().mean() < 0.9


@pytest.mark.parametrize(("rows", "columns", "masked"), [(2, 2, 3), (4, 4, 12), (1, 7, 4), (3, 3, 1), (4, 4, 0)])
def test_blocks_of_small_grids(rows: int, columns: int, masked: int) -> None:
    mask, boxes = draw_blocks(uniform(DRAWS, 4 * ATTEMPTS), masked, (rows, columns))
    assert (mask.sum(dim=1) <= masked).all()
    area = boxes[..., 2] * boxes[..., 3]
    assert ((area == 0) | (area >= masked)).all()  # min(16, masked)


def slow_inverse(noise: list[float], count: int, grid: tuple[int, int], mined: set[int]) -> tuple[set[int], int]:
    """Return the visible patches, and how many of them are in whole blocks."""
    rows, columns = grid
    order = sorted(range(rows * columns), key=lambda patch: noise[patch], reverse=True)
    shown: set[int] = set()
    whole = 0
    for center in order:
        row, column = divmod(center, columns)
        top, left = max(0, row - 1), max(0, column - 1)
        block = cells(top, left, min(rows, row + 2) - top, min(columns, column + 2) - left, columns)
        new = [patch for patch in order if patch in block - shown - mined]
        shown |= set(new[: count - len(shown)])
        if block - mined <= shown:
            whole = len(shown)
        if len(shown) == count:
            return shown, whole
    raise AssertionError("every patch is the center of a block")


@pytest.mark.parametrize("mined_share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("rows", "columns", "masked"), GRIDS)
def test_inverse_blocks_are_those_of_a_loop(rows: int, columns: int, masked: int, mined_share: float) -> None:
    noise, mined = uniform(DRAWS, rows * columns), random_patches((rows, columns), int(masked * mined_share))
    mask = inverse_block_mask(noise, masked, (rows, columns), mined)
    assert (mask.sum(dim=1) == masked).all()
    assert (mask & mined).equal(mined)
    visible = rows * columns - masked
    for image in range(100):
        already = set(mined[image].nonzero().flatten().tolist())
        shown, whole = slow_inverse(noise[image].tolist(), visible, (rows, columns), already)
        assert set((~mask[image]).nonzero().flatten().tolist()) == shown
        assert visible - whole < 9  # all blocks are whole except for the last one


def test_the_visible_patches_of_inverse_blocks_touch() -> None:
    """A visible patch has more visible neighbors than in a random mask: at most 4 * 48 / 195 there."""
    visible = ~inverse_block_mask(uniform(DRAWS, 196), 147, (14, 14)).unflatten(1, (14, 14))
    pairs = (visible[:, 1:] & visible[:, :-1]).sum() + (visible[:, :, 1:] & visible[:, :, :-1]).sum()
    assert 2 * pairs / visible.sum() > 2.5


@pytest.mark.parametrize("side", [1, 2, 5])
def test_inverse_blocks_of_other_sides(side: int) -> None:
    mask = inverse_block_mask(uniform(DRAWS, 196), 147, (14, 14), side=side)
    assert (mask.sum(dim=1) == 147).all()
    if side == 1:  # a random mask: the patches with the lowest noise
        lowest = uniform(DRAWS, 196).argsort(dim=1)[:, :147]
        assert mask.equal(torch.zeros_like(mask).scatter(1, lowest, True))


def windows(values: Tensor, grid: tuple[int, int]) -> Tensor:
    """Group ``[B, N]`` by windows, ``[B, windows, 4]``, with a loop."""
    rows, columns = grid
    order = [
        [r * columns + c, r * columns + c + 1, (r + 1) * columns + c, (r + 1) * columns + c + 1]
        for r in range(0, rows, 2)
        for c in range(0, columns, 2)
    ]
    return values[:, torch.tensor(order)]


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (14, 14), (4, 10)])
def test_grid_keeps_one_patch_of_each_window_with_equal_probability(rows: int, columns: int) -> None:
    mask = grid_mask(uniform(DRAWS, rows * columns), rows * columns * 3 // 4, (rows, columns))
    visible = ~windows(mask, (rows, columns))
    assert (visible.sum(dim=2) == 1).all()
    # Every position in every window is visible in a quarter of the draws. Pearson's statistic of the 3 W free counts
    # has mean 3 W and variance about 6 W.
    expected = DRAWS / 4
    counts = visible.sum(dim=0).double()
    freedom = 3 * counts.shape[0]
    statistic = ((counts - expected).square() / expected).sum()
    assert statistic < freedom + 6 * (2 * freedom) ** 0.5
    # Windows are independent: 16 pairs of positions in the first and the last window, 15 free counts.
    if rows * columns > 4:
        position = visible.long().argmax(dim=2)
        pairs = torch.bincount(position[:, 0] * 4 + position[:, -1], minlength=16).double()
        assert ((pairs - DRAWS / 16).square() / (DRAWS / 16)).sum() < 15 + 6 * 30**0.5


def test_grid_masks_mined_patches_except_in_full_windows() -> None:
    mined = random_patches((14, 14), 73)
    mined[:, [0, 1, 14, 15]] = True  # one full window
    noise = uniform(DRAWS, 196)
    mask = grid_mask(noise, 147, (14, 14), mined)
    visible, in_mined, values = ~windows(mask, (14, 14)), windows(mined, (14, 14)), windows(noise, (14, 14))
    assert (visible.sum(dim=2) == 1).all()
    full = in_mined.all(dim=2)
    assert full[:, 0].all()
    assert not (visible & in_mined)[~full].any()
    for image in range(50):
        for window in range(49):
            free = [k for k in range(4) if full[image, window] or not in_mined[image, window, k]]
            chance = values[image, window].tolist()
            assert visible[image, window].tolist().index(True) == max(free, key=lambda k: chance[k])
    counts = visible[:, 0].sum(dim=0).double()  # in the full window each equally often: 3 free counts
    assert ((counts - 250).square() / 250).sum() < 3 + 6 * 6**0.5
    three = (in_mined.sum(dim=2) == 2) & in_mined[:, :, 0] & in_mined[:, :, 1]  # two are left, with equal probability
    assert (visible[three][:, 2].double().mean() - 0.5).abs() < 5 * (0.25 / int(three.sum())) ** 0.5


def test_grid_refuses_odd_sides_and_other_counts() -> None:
    with pytest.raises(ValueError, match=r"grid: expected even rows and columns .*, got \(7, 8\)"):
        grid_mask(torch.rand(1, 56), 42, (7, 8))
    with pytest.raises(ValueError, match=r"masked: a grid mask hides 3/4 of the patches, 147, got 118"):
        grid_mask(torch.rand(1, 196), 118, (14, 14))


def test_noise_for_blocks_is_four_numbers_for_each_attempt() -> None:
    for width in (0, 6):
        with pytest.raises(ValueError, match=rf"noise: expected \[B, 4 \* attempts\], got \[2, {width}\]"):
            draw_blocks(torch.rand(2, width), 16, (8, 8))
