from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from hardpatch.choices import SIZES
from hardpatch.methods.masking import random_mask
from hardpatch.models.block import Block
from hardpatch.models.encoder import Encoder
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
def test_output_does_not_depend_on_dropped_patches() -> None:
    model = encoder()
    images = torch.randn(3, 3, 16, 24)
    mask = random_mask(torch.rand(3, 24), 18)
    latent = model(images, mask)
    assert latent.shape == (3, 1 + 6, 32)
    noisy = images + 100 * mask.reshape(3, 1, 4, 6).repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert torch.equal(model(noisy, mask), latent)
    assert not torch.allclose(model(noisy, ~mask), model(images, ~mask))


@torch.no_grad()
def test_dropping_patches_removes_their_tokens() -> None:
    # Without blocks, tokens do not depend on each other, so dropping patches commutes with encoding.
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
def test_patch_embedding_equals_the_convolution() -> None:
    model = encoder(channels=5)
    from hardpatch.patches import patchify

    images = torch.randn(2, 5, 16, 24)
    assert_close(model.patch_embed(patchify(images, 4)), model.patch_embed.proj(images).flatten(2).transpose(1, 2))


@torch.no_grad()
def test_positions_are_interpolated_for_other_image_sizes() -> None:
    model = encoder()
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 1 + 64, 32)
    positions = sincos_positions(32, (4, 6))
    assert resample_positions(positions, (4, 6), (4, 6)) is positions
    constant = resample_positions(torch.ones(24, 8), (4, 6), (7, 3))
    assert_close(constant, torch.ones(21, 8))
    # rows are not mistaken for columns
    ramp = torch.arange(4.0).repeat_interleave(6)[:, None]
    resampled = resample_positions(ramp, (4, 6), (8, 6)).reshape(8, 6)
    assert (resampled.diff(dim=0) >= 0).all()
    assert_close(resampled, resampled[:, :1].expand(8, 6))


def test_sizes_have_as_many_parameters_as_in_timm() -> None:
    # timm's counts include learned positions of the patches and the class token; ours are fixed
    millions = {"tiny": 5.52, "small": 21.67, "base": 85.80, "large": 303.30, "huge": 630.76}
    with torch.device("meta"):
        for size, shape in SIZES.items():
            shape = {**shape, "patch_size": 14 if size == "huge" else 16}
            model = Encoder(image_size=(224, 224), **shape)  # type: ignore[arg-type]
            assert model.positions is not None
            count = sum(p.numel() for p in model.parameters()) + (1 + len(model.positions)) * model.width
            assert count / 1e6 == pytest.approx(millions[size], abs=0.01), size


def test_sizes_that_do_not_fit() -> None:
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
def test_output_does_not_depend_on_patches_replaced_by_mask_tokens(positions: str) -> None:
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
def test_mask_with_fewer_rows_than_images() -> None:
    model = token_encoder()
    images = torch.randn(5, 3, 16, 24)
    mask = random_mask(torch.rand(2, 24), 10)
    assert_close(model(images, mask), torch.cat([model(images[:2], mask), model(images[2:])]))


@torch.no_grad()
def test_output_does_not_depend_on_hidden_patches() -> None:
    torch.manual_seed(0)
    model = Encoder(image_size=(16, 24), patch_size=4, width=32, depth=2, heads=2, mask_token=True).eval()
    images = torch.randn(2, 3, 16, 24)
    mask = random_mask(torch.rand(2, 24), 18)
    indices = to_indices(mask)
    hidden = torch.tensor([[True, False, True, False, False, False], [False] * 6])
    latent = model(images, indices._replace(hidden=hidden))
    assert latent.shape == (2, 7, 32)
    changed = images.clone()
    row, column = divmod(int(indices.visible[0, 2]), 6)
    changed[0, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 9.0
    assert_close(model(changed, indices._replace(hidden=hidden)), latent)
    assert not torch.allclose(model(changed, indices), model(images, indices))
    assert_close(model(images, indices)[1], latent[1])
    with pytest.raises(ValueError, match="without one"):
        encoder()(images, indices._replace(hidden=hidden))


@torch.no_grad()
@pytest.mark.parametrize("positions", ["sincos", "relative"])
def test_attention_of_the_class_token_equals_a_loop_over_heads(positions: str) -> None:
    model = token_encoder(positions=positions)
    if model.relative_bias is not None:
        torch.nn.init.normal_(model.relative_bias.table)
    images = torch.randn(2, 3, 16, 24)
    latent, attention = model.forward_with_attention(images)
    assert_close(latent, model(images))
    inputs_of_attention: list[torch.Tensor] = []
    last = model.blocks[-1]
    assert isinstance(last, Block)
    last.norm1.register_forward_hook(lambda module, inputs, output: inputs_of_attention.append(output))
    model(images)
    attn = last.attn
    q, k, _ = attn.qkv(inputs_of_attention[0]).chunk(3, dim=-1)
    bias = torch.zeros(1, 2, 25, 25) if model.relative_bias is None else model.relative_bias()
    expected = torch.zeros(2, 24)
    for head in range(2):
        channels = slice(16 * head, 16 * head + 16)
        scores = q[..., channels] @ k[..., channels].transpose(1, 2) / 4.0 + bias[0, head]
        expected += scores.softmax(dim=-1)[:, 0, 1:] / 2
    assert_close(attention, expected)


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
    changed = (trained != x).flatten(1).any(dim=1).float().mean().item()
    tolerance = 4 * (0.75 * 0.25 / 400) ** 0.5  # 4 standard deviations
    assert changed == pytest.approx(1 - 0.5**2, abs=tolerance)  # images that either branch changes


def test_relative_positions_need_all_patches() -> None:
    with pytest.raises(ValueError, match="positions: a relative bias needs all patches"):
        Encoder(image_size=(16, 16), patch_size=4, width=32, depth=1, heads=2, positions="relative")


def test_relative_bias_reads_one_entry_for_each_offset() -> None:
    from hardpatch.models.positions import RelativePositionBias

    bias = RelativePositionBias((2, 3), heads=2)
    with torch.no_grad():
        bias.table.copy_(torch.arange(18.0).unsqueeze(1) + torch.tensor([0.0, 100.0]))
    values = bias()[0]
    assert_close(values[1], values[0] + 100.0)
    positions = [(row, column) for row in range(2) for column in range(3)]
    for i, (row, column) in enumerate(positions):
        for j, (other_row, other_column) in enumerate(positions):
            assert values[0, 1 + i, 1 + j] == (row - other_row + 1) * 5 + (column - other_column + 2)
    assert values[0, 0, 1:].tolist() == [15.0] * 6
    assert values[0, 1:, 0].tolist() == [16.0] * 6
    assert values[0, 0, 0] == 17.0
    assert bias((4, 5)).shape == (1, 2, 21, 21)
    with torch.no_grad():
        bias.table.fill_(3.0)
    assert_close(bias((4, 5)), torch.full((1, 2, 21, 21), 3.0))  # interpolation does not change a constant
