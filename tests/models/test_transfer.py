"""What an encoder gets at transfer: nothing changes at first, everything is trained, and it can be saved."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from hardpatch.models.block import Block
from hardpatch.models.encoder import Encoder
from hardpatch.models.encoder_settings import build_encoder, encoder_settings, learn_positions
from hardpatch.models.positions import RelativePositionBias, resample_positions
from hardpatch.models.transfer import add_layer_scale, add_relative_bias, train_positions, trains_positions

GRID = (5, 8)
"""Not that of the encoder's images."""


def small_encoder(**options: Any) -> Encoder:
    """Three blocks for images of 4 x 6 patches of 4 px."""
    torch.manual_seed(0)
    return Encoder(image_size=(16, 24), patch_size=4, width=32, depth=3, heads=2, **options).eval()


def transferred(**options: Any) -> Encoder:
    encoder = small_encoder(**options)
    train_positions(encoder, GRID)
    add_relative_bias(encoder, GRID)
    add_layer_scale(encoder)
    return encoder


def biases(encoder: Encoder) -> list[RelativePositionBias | None]:
    blocks = [block for block in encoder.blocks if isinstance(block, Block)]
    return [block.relative_bias for block in blocks]


@torch.no_grad()
@pytest.mark.parametrize("size", [(20, 32), (16, 24), (28, 12)])
def test_bias_and_scale_change_no_bit_at_first(size: tuple[int, int]) -> None:
    images = torch.randn(2, 3, *size)
    plain, encoder = small_encoder(), small_encoder()
    add_relative_bias(encoder, GRID)
    add_layer_scale(encoder)
    assert torch.equal(encoder(images), plain(images))
    for ours, theirs in zip(encoder.forward_with_attention(images), plain.forward_with_attention(images), strict=True):
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_trained_positions_change_no_bit_on_their_grid() -> None:
    encoder, plain, images = transferred(), small_encoder(), torch.randn(2, 3, 20, 32)
    assert torch.equal(encoder(images), plain(images))
    assert plain.positions is not None
    assert encoder.positions is not None
    assert torch.equal(encoder.positions, resample_positions(plain.positions, (4, 6), GRID))
    assert encoder.grid == GRID


def test_every_addition_is_trained() -> None:
    encoder = transferred().train()
    encoder(torch.randn(2, 3, 20, 32))[:, 1:].square().mean(dim=1).prod().backward()
    new = {name: parameter for name, parameter in encoder.named_parameters() if name not in dict(small_named())}
    assert set(new) == {"positions"} | {
        f"blocks.{k}.{name}" for k in range(3) for name in ("relative_bias.table", "ls1.gamma", "ls2.gamma")
    }
    for name, parameter in new.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    gradients = [bias.table.grad for bias in biases(encoder) if bias is not None]
    assert gradients[0] is not None
    assert gradients[1] is not None
    assert not torch.equal(gradients[0], gradients[1])  # one for each block, not one for all


def small_named() -> list[tuple[str, nn.Parameter]]:
    return list(small_encoder().named_parameters())


@torch.no_grad()
def test_each_block_has_a_bias_of_its_own() -> None:
    """With one and the same table in every block, the encoder equals one whose blocks share it."""
    shared = small_encoder(positions="relative", drop_masked=False)
    encoder = small_encoder(positions="relative", drop_masked=False)
    assert shared.relative_bias is not None
    nn.init.normal_(shared.relative_bias.table)
    encoder.relative_bias = None
    assert add_relative_bias(encoder, (4, 6))
    for bias in biases(encoder):
        assert bias is not None
        bias.table.copy_(shared.relative_bias.table)
    for size in ((16, 24), (20, 32)):  # the table is interpolated for the second
        images = torch.randn(2, 3, *size)
        assert_close(encoder(images), shared(images), rtol=0, atol=0)
    nn.init.normal_(next(iter(biases(encoder))).table)  # type: ignore[union-attr]
    assert not torch.allclose(encoder(images), shared(images))


@torch.no_grad()
def test_a_transferred_encoder_is_timms_beit_with_absolute_positions() -> None:
    """Mmsegmentation builds this network for MAE, too: BEiT's with positions of the patches."""
    timm = pytest.importorskip("timm")
    encoder = transferred()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    state = encoder.state_dict()
    state["pos_embed"] = torch.cat([torch.zeros(1, 32), state.pop("positions")])[None]
    for k in range(3):
        block = f"blocks.{k}."
        state[f"{block}attn.relative_position_bias_table"] = state.pop(f"{block}relative_bias.table")
        state[f"{block}gamma_1"], state[f"{block}gamma_2"] = (state.pop(f"{block}ls{n}.gamma") for n in (1, 2))
        # timm's Beit lacks the bias of the keys, which adds the same number to all scores of a query
        state[f"{block}attn.q_bias"], _, state[f"{block}attn.v_bias"] = state.pop(f"{block}attn.qkv.bias").chunk(3)
    shape = {"img_size": (20, 32), "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2}
    options = {"use_abs_pos_emb": True, "use_rel_pos_bias": True, "init_values": 1.0, "global_pool": "token"}
    beit = timm.create_model("beit_base_patch16_224", **shape, **options, num_classes=0).eval()
    beit.load_state_dict(state)  # strict
    images = torch.randn(2, 3, 20, 32)
    assert_close(encoder(images), beit.forward_features(images), rtol=1e-4, atol=1e-4)


def test_what_an_encoder_has_is_kept() -> None:
    encoder = small_encoder(positions="relative", drop_masked=False, layer_scale=0.1)
    before = dict(encoder.named_parameters())
    train_positions(encoder, GRID)
    assert not add_relative_bias(encoder, GRID)
    assert not add_layer_scale(encoder)
    after = dict(encoder.named_parameters())
    assert before.keys() == after.keys()
    assert all(before[name] is parameter for name, parameter in after.items())
    assert encoder.grid == (4, 6)
    assert not trains_positions(encoder)


@torch.no_grad()
def test_an_encoder_is_rebuilt_from_its_settings() -> None:
    encoder = transferred()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.1)
    again = build_encoder(encoder_settings(encoder)).eval()
    again.load_state_dict(encoder.state_dict())
    for size in ((20, 32), (12, 12)):
        images = torch.randn(1, 3, *size)
        assert torch.equal(again(images), encoder(images))
    assert "block_bias_grid" not in encoder_settings(small_encoder())  # as in files of earlier versions


def test_positions_that_were_learned_before_are_trained_too() -> None:
    encoder = small_encoder()
    learned = torch.randn(24, 32)
    learn_positions(encoder, learned)
    assert not trains_positions(encoder)
    train_positions(encoder)
    assert trains_positions(encoder)
    assert torch.equal(dict(encoder.named_parameters())["positions"], learned)
