import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hardpatch.patches import PatchIndices, gather, patchify, scatter, to_indices, unpatchify


@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    patch=st.integers(1, 5),
    channels=st.integers(1, 5),
    b=st.integers(1, 3),
)
def test_unpatchify_undoes_patchify(rows: int, columns: int, patch: int, channels: int, b: int) -> None:
    images = torch.rand(b, channels, rows * patch, columns * patch)
    patches = patchify(images, patch)
    assert patches.shape == (b, rows * columns, patch * patch * channels)
    assert torch.equal(unpatchify(patches, patch, (rows, columns)), images)


def test_layout_is_row_column_channel_and_patches_run_row_by_row() -> None:
    images = torch.arange(2 * 4 * 6.0).reshape(1, 2, 4, 6)
    patch = patchify(images, 2)[0, 4]  # second row of patches, second column: pixels [2:4, 2:4]
    expected = [images[0, c, y, x] for y in (2, 3) for x in (2, 3) for c in (0, 1)]
    assert patch.tolist() == [value.item() for value in expected]


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="divisible by patch_size=4, got 8x9"):
        patchify(torch.zeros(1, 3, 8, 9), 4)
    with pytest.raises(ValueError, match=r"expected \[B, 4, 4\*4\*C\] for a 2x2 grid"):
        unpatchify(torch.zeros(1, 5, 48), 4, (2, 2))


@given(st.integers(1, 30), st.data())
def test_indices_of_visible_and_masked_patches_are_in_order(n: int, data: st.DataObject) -> None:
    masked = data.draw(st.integers(0, n))
    rows = [data.draw(st.permutations([True] * masked + [False] * (n - masked))) for _ in range(3)]
    mask = torch.tensor(rows)
    visible, masked_indices, hidden = to_indices(mask)
    assert hidden is None
    for row in range(3):
        assert visible[row].tolist() == [i for i in range(n) if not rows[row][i]]
        assert masked_indices[row].tolist() == [i for i in range(n) if rows[row][i]]
    with_count = to_indices(mask, masked)
    assert torch.equal(with_count.visible, visible)
    assert torch.equal(with_count.masked, masked_indices)
    assert to_indices(PatchIndices(visible, masked_indices)).visible is visible


def test_masks_need_equal_counts() -> None:
    with pytest.raises(ValueError, match=r"same number of masked patches in every image, got \[1, 2\]"):
        to_indices(torch.tensor([[True, False], [True, True]]))


def test_scatter_undoes_gather() -> None:
    tokens = torch.rand(2, 7, 3)
    indices = torch.stack([torch.randperm(7)[:4] for _ in range(2)])
    selected = gather(tokens, indices)
    assert torch.equal(selected[1, 2], tokens[1, indices[1, 2]])
    assert torch.equal(scatter(selected, indices, into=tokens), tokens)
    assert scatter(selected, indices, into=torch.zeros_like(tokens)).count_nonzero() == 2 * 4 * 3
