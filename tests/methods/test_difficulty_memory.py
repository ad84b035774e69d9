import torch
from torch.testing import assert_close

from hardpatch.methods.difficulty_memory import DifficultyMemory
from hardpatch.patches import all_masked, to_indices

GRID = (4, 6)
WHOLE, NOT_FLIPPED = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([False])


def told(scores: torch.Tensor, images: int = 1) -> DifficultyMemory:
    """Remembers ``scores [B, N]`` of the first images, seen whole."""
    memory, count = DifficultyMemory(images, GRID), len(scores)
    everything = all_masked(count, 24, scores.device)
    boxes, flipped = WHOLE.expand(count, -1), NOT_FLIPPED.expand(count)
    memory.write(torch.arange(count), boxes, flipped, everything, scores, GRID)
    return memory


def standardized(scores: torch.Tensor) -> torch.Tensor:
    return (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True)


def test_what_was_seen_whole_comes_back_whole() -> None:
    scores = torch.randn(3, 24)
    found = told(scores, images=3).recall(torch.arange(3), WHOLE.expand(3, -1), NOT_FLIPPED.expand(3), GRID)
    assert_close(found, standardized(scores), rtol=1e-3, atol=1e-3)  # it is kept in half precision


def test_a_crop_reads_its_part_of_the_map() -> None:
    scores = torch.randn(1, 24)
    box = torch.tensor([[0.5, 0.0, 0.5, 0.5]])  # the lower left quarter: 2 x 3 cells
    found = told(scores).recall(torch.tensor([0]), box, NOT_FLIPPED, (2, 3))
    wanted = standardized(scores).view(GRID)[2:, :3]
    assert_close(found.view(2, 3), wanted, rtol=1e-3, atol=1e-3)
    flipped = told(scores).recall(torch.tensor([0]), box, torch.tensor([True]), (2, 3))
    assert_close(flipped.view(2, 3), wanted.flip(1), rtol=1e-3, atol=1e-3)


def test_a_flipped_crop_is_written_where_it_belongs() -> None:
    scores, memory = torch.randn(1, 24), DifficultyMemory(1, GRID)
    memory.write(torch.tensor([0]), WHOLE, torch.tensor([True]), all_masked(1, 24, scores.device), scores, GRID)
    found = memory.recall(torch.tensor([0]), WHOLE, NOT_FLIPPED, GRID)
    assert_close(found.view(GRID), standardized(scores).view(GRID).flip(1), rtol=1e-3, atol=1e-3)


def test_only_masked_patches_within_the_crop_are_written() -> None:
    memory = DifficultyMemory(2, GRID)
    mask = torch.zeros(1, 6, dtype=torch.bool)
    mask[0, [0, 4]] = True
    upper_right = torch.tensor([[0.0, 0.5, 0.5, 0.5]])
    memory.write(torch.tensor([1]), upper_right, NOT_FLIPPED, to_indices(mask), torch.tensor([[-1.0, 1.0]]), (2, 3))
    assert memory.maps[0].isnan().all()
    known = {(0, 3): -(0.5**0.5), (1, 4): 0.5**0.5}  # two numbers of which each is this far from their mean
    for row in range(4):
        for column in range(6):
            value = memory.maps[1, row, column].item()
            assert ((row, column) in known) == (value == value)
            assert (row, column) not in known or abs(value - known[row, column]) < 1e-3


def test_news_are_mixed_with_what_was_known() -> None:
    one, other = torch.randn(1, 24), torch.randn(1, 24)
    memory = told(one)
    memory.write(torch.tensor([0]), WHOLE, NOT_FLIPPED, all_masked(1, 24, one.device), other, GRID)
    wanted = (standardized(one) + standardized(other)) / 2
    assert_close(memory.maps.flatten(1).float(), wanted, rtol=1e-2, atol=1e-3)


def test_nothing_is_known_at_first() -> None:
    assert torch.equal(
        DifficultyMemory(2, GRID).recall(torch.tensor([1]), WHOLE, NOT_FLIPPED, GRID), torch.zeros(1, 24)
    )
