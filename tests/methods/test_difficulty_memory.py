import torch
from torch.testing import assert_close

from hardpatch.methods.difficulty_memory import CropBox, DifficultyMemory
from hardpatch.patches import all_masked, to_indices

GRID = (4, 6)
WHOLE = (0.0, 0.0, 1.0, 1.0)


def crop(box: tuple[float, ...] = WHOLE, *, flipped: bool = False, image: int = 0, count: int = 1) -> CropBox:
    """Place the same crop in ``count`` images, numbered from ``image`` on."""
    boxes = torch.tensor([box]).expand(count, -1)
    return CropBox(torch.arange(image, image + count), boxes, torch.full((count,), flipped))


def memory_of(scores: torch.Tensor, images: int = 1) -> DifficultyMemory:
    """Make a memory that holds ``scores [B, N]`` of the first images, from whole images."""
    memory, count = DifficultyMemory(images, GRID), len(scores)
    memory.write(crop(count=count), all_masked(count, 24, scores.device), scores, GRID)
    return memory


def standardized(scores: torch.Tensor) -> torch.Tensor:
    return (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True)


def test_scores_of_whole_images_are_read_back() -> None:
    scores = torch.randn(3, 24)
    difficulty = memory_of(scores, images=3).read(crop(count=3), GRID)
    assert_close(difficulty, standardized(scores), rtol=1e-3, atol=1e-3)  # half precision


def test_a_crop_reads_its_part_of_the_map() -> None:
    scores = torch.randn(1, 24)
    box = (0.5, 0.0, 0.5, 0.5)  # the lower left quarter: 2 x 3 cells
    memory, expected = memory_of(scores), standardized(scores).view(GRID)[2:, :3]
    assert_close(memory.read(crop(box), (2, 3)).view(2, 3), expected, rtol=1e-3, atol=1e-3)
    flipped = memory.read(crop(box, flipped=True), (2, 3)).view(2, 3)
    assert_close(flipped, expected.flip(1), rtol=1e-3, atol=1e-3)


def test_scores_of_a_flipped_crop_are_written_unflipped() -> None:
    scores, memory = torch.randn(1, 24), DifficultyMemory(1, GRID)
    memory.write(crop(flipped=True), all_masked(1, 24, scores.device), scores, GRID)
    assert_close(memory.read(crop(), GRID).view(GRID), standardized(scores).view(GRID).flip(1), rtol=1e-3, atol=1e-3)


def test_only_masked_patches_within_the_crop_are_written() -> None:
    memory = DifficultyMemory(2, GRID)
    mask = torch.zeros(1, 6, dtype=torch.bool)
    mask[0, [0, 4]] = True
    upper_right = crop((0.0, 0.5, 0.5, 0.5), image=1)
    memory.write(upper_right, to_indices(mask), torch.tensor([[-1.0, 1.0]]), (2, 3))
    assert memory.maps[0].isnan().all()
    expected = {(0, 3): -(0.5**0.5), (1, 4): 0.5**0.5}  # two standardized numbers
    for row in range(4):
        for column in range(6):
            value = memory.maps[1, row, column].item()
            assert ((row, column) in expected) == (value == value)
            assert (row, column) not in expected or abs(value - expected[row, column]) < 1e-3


def test_new_scores_are_averaged_with_old_ones() -> None:
    one, other = torch.randn(1, 24), torch.randn(1, 24)
    memory = memory_of(one)
    memory.write(crop(), all_masked(1, 24, one.device), other, GRID)
    expected = (standardized(one) + standardized(other)) / 2
    assert_close(memory.maps.flatten(1).float(), expected, rtol=1e-2, atol=1e-3)


def test_nothing_is_known_at_first() -> None:
    assert torch.equal(DifficultyMemory(2, GRID).read(crop(image=1), GRID), torch.zeros(1, 24))
