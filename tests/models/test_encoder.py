from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from hardpatch.methods.masking import random_mask
from hardpatch.models.block import Block
from hardpatch.models.encoder import SIZES, Encoder
from hardpatch.models.positions import resample_positions, sincos_positions
from hardpatch.patches import gather, to_indices


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
    assert ours.positions is not None
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
    assert_close(part[:, 1:], gather(whole[:, 1:], to_indices(mask).visible))


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
            shape = {**shape, "patch_size": 14 if size == "huge" else 16}
            model = Encoder(image_size=(224, 224), **shape)  # type: ignore[arg-type]
            assert model.positions is not None
            count = sum(p.numel() for p in model.parameters()) + (1 + len(model.positions)) * model.width
            assert count / 1e6 == pytest.approx(millions[size], abs=0.01), size


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="patch_size: expected a divisor of the image size 16x24, got 5"):
        encoder(patch_size=5)
    with pytest.raises(ValueError, match="multiple of 4, got 30"):
        encoder(width=30)
    with pytest.raises(ValueError, match="heads"):
        Encoder(image_size=(16, 16), patch_size=4, width=32, depth=1, heads=3)


def token_encoder(**settings: Any) -> Encoder:
    torch.manual_seed(0)
    return Encoder(image_size=(16, 24), patch_size=4, width=32, depth=3, heads=2, drop_masked=False, **settings).eval()


@torch.no_grad()
@pytest.mark.parametrize("positions", ["sincos", "relative"])
def test_mask_tokens_hide_the_masked_patches(positions: str) -> None:
    model = token_encoder(positions=positions)
    images = torch.randn(3, 3, 16, 24)
    mask = random_mask(torch.rand(3, 24), 18)
    latent = model(images, mask)
    assert latent.shape == (3, 25, 32)
    pixels = mask.reshape(3, 1, 4, 6).repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert_close(model(torch.where(pixels, 7.0, images), mask), latent)
    assert not torch.allclose(model(torch.where(pixels, images, 7.0), mask), latent)
    assert not torch.allclose(model(images), latent)


@torch.no_grad()
def test_a_mask_of_fewer_rows_leaves_the_other_images_whole() -> None:
    model = token_encoder()
    images = torch.randn(5, 3, 16, 24)
    mask = random_mask(torch.rand(2, 24), 10)
    assert_close(model(images, mask), torch.cat([model(images[:2], mask), model(images[2:])]))


@torch.no_grad()
def test_hidden_patches_are_not_seen_but_stay() -> None:
    torch.manual_seed(0)
    model = Encoder(image_size=(16, 24), patch_size=4, width=32, depth=2, heads=2, mask_token=True).eval()
    images = torch.randn(2, 3, 16, 24)
    mask = random_mask(torch.rand(2, 24), 18)
    parts = to_indices(mask)
    hidden = torch.tensor([[True, False, True, False, False, False], [False] * 6])
    latent = model(images, parts._replace(hidden=hidden))
    assert latent.shape == (2, 7, 32)
    changed = images.clone()
    row, column = divmod(int(parts.visible[0, 2]), 6)
    changed[0, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 9.0
    assert_close(model(changed, parts._replace(hidden=hidden)), latent)
    assert not torch.allclose(model(changed, parts), model(images, parts))
    assert_close(model(images, parts)[1], latent[1])
    with pytest.raises(ValueError, match="without one"):
        encoder()(images, parts._replace(hidden=hidden))


@torch.no_grad()
@pytest.mark.parametrize("positions", ["sincos", "relative"])
def test_attention_of_the_class_token_equals_a_loop_over_heads(positions: str) -> None:
    model = token_encoder(positions=positions)
    if model.relative_bias is not None:
        torch.nn.init.normal_(model.relative_bias.table)
    images = torch.randn(2, 3, 16, 24)
    latent, attention = model.attend(images)
    assert_close(latent, model(images))
    seen: list[torch.Tensor] = []
    last = model.blocks[-1]
    assert isinstance(last, Block)
    last.norm1.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(images)
    attn = last.attn
    q, k, _ = attn.qkv(seen[0]).chunk(3, dim=-1)
    bias = torch.zeros(1, 2, 25, 25) if model.relative_bias is None else model.relative_bias()
    slow = torch.zeros(2, 24)
    for head in range(2):
        at = slice(16 * head, 16 * head + 16)
        scores = q[..., at] @ k[..., at].transpose(1, 2) / 4.0 + bias[0, head]
        slow += scores.softmax(dim=-1)[:, 0, 1:] / 2
    assert_close(attention, slow)


def test_layer_scale_and_drop_path() -> None:
    model = token_encoder(layer_scale=0.1, drop_path=0.5)
    assert [block.drop_path for block in model.blocks] == [0.0, 0.25, 0.5]
    block = model.blocks[2]
    assert isinstance(block, Block)
    x = torch.randn(400, 5, 32)
    with torch.no_grad():
        middle = x + 0.1 * block.attn(block.norm1(x))
        assert_close(block(x), middle + 0.1 * block.mlp(block.norm2(middle)))
        torch.manual_seed(1)
        trained = block.train()(x)
    kept = (trained != x).flatten(1).any(dim=1).float().mean().item()
    assert kept == pytest.approx(1 - 0.5**2, abs=4 * (0.75 * 0.25 / 400) ** 0.5)  # either branch, four deviations


def test_dropped_patches_have_no_relative_positions() -> None:
    with pytest.raises(ValueError, match="positions: a relative bias needs all patches"):
        Encoder(image_size=(16, 16), patch_size=4, width=32, depth=1, heads=2, positions="relative")


def test_relative_bias_reads_one_entry_for_each_offset() -> None:
    from hardpatch.models.positions import RelativePositionBias

    bias = RelativePositionBias((2, 3), heads=2)
    with torch.no_grad():
        bias.table.copy_(torch.arange(18.0).unsqueeze(1) + torch.tensor([0.0, 100.0]))
    found = bias()[0]
    assert_close(found[1], found[0] + 100.0)
    places = [(row, column) for row in range(2) for column in range(3)]
    for i, (row, column) in enumerate(places):
        for j, (other_row, other_column) in enumerate(places):
            assert found[0, 1 + i, 1 + j] == (row - other_row + 1) * 5 + (column - other_column + 2)
    assert found[0, 0, 1:].tolist() == [15.0] * 6
    assert found[0, 1:, 0].tolist() == [16.0] * 6
    assert found[0, 0, 0] == 17.0
    assert bias((4, 5)).shape == (1, 2, 21, 21)
    with torch.no_grad():
        bias.table.fill_(3.0)
    assert_close(bias((4, 5)), torch.full((1, 2, 21, 21), 3.0))  # interpolation leaves a constant alone
