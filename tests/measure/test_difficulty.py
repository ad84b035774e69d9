from itertools import pairwise
from typing import cast

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hardpatch.measure.difficulty import fixed_masks, losses_over_masks
from hardpatch.methods.hpm import HPM
from hardpatch.patches import patchify
from tests.measure.brightness_model import BrightnessModel


@settings(deadline=None, max_examples=40)
@given(images=st.integers(1, 4), masked=st.integers(1, 15), spare=st.integers(0, 6), seed=st.integers(0, 99))
def test_every_patch_is_masked_equally_often_and_its_loss_averaged(
    images: int, masked: int, spare: int, seed: int
) -> None:
    draws = -(-16 // masked) + spare
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.rand(images, 3, 16, 16, generator=generator)
    model = BrightnessModel()
    losses = losses_over_masks(
        cast(HPM, model),
        pictures,
        torch.arange(images) + seed,
        model.target(pictures),
        masked=masked,
        draws=draws,
        seed=seed,
        predict=True,
    )
    # The model's loss does not depend on what is visible: the average over draws is the loss itself.
    torch.testing.assert_close(losses.true_loss, patchify(pictures, 4).square().mean(dim=-1))
    torch.testing.assert_close(losses.predicted, -patchify(pictures, 4).mean(dim=-1))
    times = torch.zeros(images, 16)
    for indices in model.masks:
        assert indices.shape == (images, masked)
        times.scatter_add_(1, indices, torch.ones(images, masked))
    assert len(model.masks) == draws
    assert int(times.min()) == draws * masked // 16
    assert int(times.max()) == -(-draws * masked // 16)


def test_each_single_mask_is_uniformly_random() -> None:
    model = BrightnessModel()
    images = 4000
    pictures = torch.zeros(images, 3, 16, 16)
    target = model.target(pictures)
    losses_over_masks(cast(HPM, model), pictures, torch.arange(images), target, masked=12, draws=3, seed=0)
    for indices in model.masks:
        masked = torch.zeros(images, 16).scatter(1, indices, 1.0)
        # Means of 4,000 draws with a standard deviation of at most 0.5: within 5 standard errors, 0.04.
        assert (masked.mean(dim=0) - 12 / 16).abs().max() < 0.04
        pairs = masked.T @ masked / images  # two patches masked together
        pairs.fill_diagonal_(12 / 16 * 11 / 15)
        assert (pairs - 12 / 16 * 11 / 15).abs().max() < 0.04
    assert any(not torch.equal(one, other) for one, other in pairwise(model.masks))


def test_fixed_masks_take_every_patch_equally_often_and_whole_units() -> None:
    indices = torch.arange(5)
    masks = torch.stack(list(fixed_masks(indices, (4, 6), 4, 3, seed=1, unit=2)))  # [draws, B, N], 6 units
    assert (masks.sum(2) == 4 * 4).all()
    assert (masks.sum(0) == 2).all()
    blocks = masks.unflatten(2, (2, 2, 3, 2)).transpose(3, 4).flatten(4)
    assert torch.equal(blocks.any(4), blocks.all(4))
    alone = torch.stack(list(fixed_masks(indices[3:4], (4, 6), 4, 3, seed=1, unit=2)))
    assert torch.equal(alone[:, 0], masks[:, 3])
