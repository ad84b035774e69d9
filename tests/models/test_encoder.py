import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from hardpatch.masking import random_mask
from hardpatch.models.encoder import SIZES, Encoder
from hardpatch.models.positions import resample_positions, sincos_positions
from hardpatch.patches import gather, split


def encoder(image_size: tuple[int, int] = (16, 24), patch_size: int = 4, channels: int = 3, width: int = 32) -> Encoder:
    torch.manual_seed(0)
    return Encoder(
        image_size=image_size, patch_size=patch_size, channels=channels, width=width, depth=2, heads=2
    ).eval()


@torch.no_grad()
def test_equals_timm_with_the_same_weights() -> None:
    import timm

    ours = Encoder(image_size=(32, 48), patch_size=8, width=64, depth=3, heads=4).eval()
    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=(32, 48), patch_size=8, embed_dim=64, depth=3, num_heads=4, num_classes=0, global_pool=""
    ).eval()
    state = ours.state_dict()
    state["pos_embed"] = torch.cat([torch.zeros(1, 1, 64), ours.positions[None]], dim=1)
    theirs.load_state_dict(state)
    images = torch.randn(2, 3, 32, 48)
    assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_dropped_patches_are_not_seen() -> None:
    model = encoder()
    images = torch.randn(3, 3, 16, 24)
    mask = random_mask(torch.rand(3, 24), 18)
    latent = model(images, mask)
    assert latent.shape == (3, 1 + 6, 32)
    noisy = images + 100 * mask.reshape(3, 1, 4, 6).repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert torch.equal(model(noisy, mask), latent)
    assert not torch.allclose(model(noisy, ~mask), model(images, ~mask))


@torch.no_grad()
def test_is_the_whole_image_with_tokens_taken_out() -> None:
    # With no block, each token is independent of the others: dropping must commute with everything.
    model = encoder()
    del model.blocks[:]
    images = torch.randn(2, 3, 16, 24)
    mask = random_mask(torch.rand(2, 24), 18)
    whole, part = model(images), model(images, mask)
    assert_close(part[:, 0], whole[:, 0])
    assert_close(part[:, 1:], gather(whole[:, 1:], split(mask).visible))


@given(
    rows=st.integers(1, 3), columns=st.integers(1, 4), patch=st.integers(1, 5), channels=st.sampled_from([1, 2, 3, 13])
)
@torch.no_grad()
def test_any_patch_size_image_size_and_number_of_channels(rows: int, columns: int, patch: int, channels: int) -> None:
    model = encoder((rows * patch, columns * patch), patch, channels)
    images = torch.randn(2, channels, rows * patch, columns * patch)
    assert model(images).shape == (2, 1 + rows * columns, 32)


@torch.no_grad()
def test_embedding_is_the_convolution_whose_shape_it_has() -> None:
    model = encoder(channels=5)
    from hardpatch.patches import patchify

    images = torch.randn(2, 5, 16, 24)
    assert_close(model.patch_embed(patchify(images, 4)), model.patch_embed.proj(images).flatten(2).transpose(1, 2))


@torch.no_grad()
def test_other_image_sizes_get_interpolated_positions() -> None:
    model = encoder()
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 1 + 64, 32)
    positions = sincos_positions(32, (4, 6))
    assert resample_positions(positions, (4, 6), (4, 6)) is positions
    constant = resample_positions(torch.ones(24, 8), (4, 6), (7, 3))
    assert_close(constant, torch.ones(21, 8))
    # Transposing the grid and resampling commute: rows are not taken for columns.
    ramp = torch.arange(4.0).repeat_interleave(6)[:, None]
    resampled = resample_positions(ramp, (4, 6), (8, 6)).reshape(8, 6)
    assert (resampled.diff(dim=0) >= 0).all()
    assert_close(resampled, resampled[:, :1].expand(8, 6))


def test_sizes_have_the_parameters_that_the_field_knows() -> None:
    # timm's counts, which include positions for the patches and the class token; ours are fixed.
    millions = {"tiny": 5.52, "small": 21.67, "base": 85.80, "large": 303.30, "huge": 630.76}
    with torch.device("meta"):
        for size, shape in SIZES.items():
            model = Encoder(image_size=(224, 224), patch_size=14 if size == "huge" else 16, **shape)
            count = sum(p.numel() for p in model.parameters()) + (1 + len(model.positions)) * model.width
            assert count / 1e6 == pytest.approx(millions[size], abs=0.01), size


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="patch_size: expected a divisor of the image size 16x24, got 5"):
        encoder(patch_size=5)
    with pytest.raises(ValueError, match="multiple of 4, got 30"):
        encoder(width=30)
    with pytest.raises(ValueError, match="heads"):
        Encoder(image_size=(16, 16), patch_size=4, width=32, depth=1, heads=3)
