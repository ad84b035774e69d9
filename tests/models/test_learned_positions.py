"""Learned positions of iBOT's encoder: against timm, against bicubic interpolation by hand, and when absorbed."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.testing import assert_close

from hardpatch.models.encoder import Encoder
from hardpatch.models.encoder_settings import absorb_class_position, build_encoder, encoder_settings
from hardpatch.models.positions import resample_positions
from tests.small import small_ibot


def learned_encoder(**changes: Any) -> Encoder:
    """Two blocks of 64 for images of 16 x 24 in patches of 4, with positions large enough to matter."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"image_size": (16, 24), "patch_size": 4, "width": 64, "depth": 2, "heads": 1}
    encoder = Encoder(**{**settings, "positions": "learned", "drop_masked": False, **changes}).eval()
    assert encoder.positions is not None
    assert encoder.class_position is not None
    with torch.no_grad():
        encoder.positions.mul_(50)
        encoder.class_position.mul_(50)
    return encoder


def images(height: int = 16, width: int = 24) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_whole_images_equal_timm() -> None:
    ours = learned_encoder()
    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=(16, 24), patch_size=4, embed_dim=64, depth=2, num_heads=1, num_classes=0
    ).eval()
    state = {name: value for name, value in ours.state_dict().items() if name != "mask_token"}
    state["pos_embed"] = torch.cat([state.pop("class_position")[0], state.pop("positions")])[None]
    theirs.load_state_dict(state)
    assert_close(ours(images()), theirs.forward_features(images()))


@torch.no_grad()
def test_dropped_patches_keep_their_own_position() -> None:
    encoder = learned_encoder(drop_masked=True)
    mask = torch.arange(24) % 3 == 1
    (tokens,) = encoder.latents(images(), mask.expand(2, -1), (0,))
    (whole,) = encoder.latents(images(), None, (0,))
    assert_close(tokens, whole[:, torch.cat([torch.tensor([True]), ~mask])])


def cubic(distance: float) -> float:
    """Keys' kernel with a = -0.75, that of torch without antialiasing."""
    a, x = -0.75, abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def by_hand(positions: Tensor, old: int, new: int, axis: int) -> Tensor:
    """Interpolate an axis of length ``old``: sample k lies at ``(k + 0.5) * old / (new + 0.1) - 0.5``."""
    columns = []
    for k in range(new):
        place = (k + 0.5) * old / (new + 0.1) - 0.5
        low = int(place // 1)
        parts = [
            cubic(place - neighbor) * positions.select(axis, min(max(neighbor, 0), old - 1))
            for neighbor in range(low - 1, low + 3)
        ]
        columns.append(torch.stack(parts).sum(dim=0))
    return torch.stack(columns, dim=axis)


@pytest.mark.parametrize("grid", [(6, 6), (2, 3), (14, 6), (15, 20)])
def test_interpolation_is_that_of_ibot(grid: tuple[int, int]) -> None:
    table = torch.randn(14, 14, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected = by_hand(by_hand(table, 14, grid[0], 0), 14, grid[1], 1)
    result = resample_positions(table.reshape(196, 8), (14, 14), grid, learned=True)
    assert_close(result.reshape(*grid, 8), expected)
    plain = resample_positions(table.reshape(196, 8), (14, 14), grid)
    assert (result - plain).abs().max() > 0.05  # the antialiased one of sine-cosine positions is another


def test_small_crops_see_and_train_interpolated_positions() -> None:
    encoder = learned_encoder()
    assert encoder.positions is not None
    assert encoder.class_position is not None
    (tokens,) = encoder.latents(images(8, 8), None, (0,))
    with torch.no_grad():
        patches = encoder.patch_embed.proj(images(8, 8)).flatten(2).transpose(1, 2)
        first = (encoder.cls_token + encoder.class_position).expand(2, -1, -1)
        local = resample_positions(encoder.positions, (4, 6), (2, 2), learned=True)
        expected = encoder.norm(torch.cat([first, patches + local], dim=1))
    assert_close(tokens, expected)
    encoder(images(8, 8)).square().mean().backward()
    for parameter in (encoder.positions, encoder.class_position):
        assert parameter.grad is not None
        assert parameter.grad.count_nonzero() > 0


@torch.no_grad()
def test_absorbing_the_class_position_changes_no_output_and_can_be_rebuilt() -> None:
    encoder = learned_encoder()
    before = encoder(images())
    absorb_class_position(encoder)
    assert encoder.class_position is None
    assert not dict(encoder.named_parameters()).keys() & {"positions", "class_position"}
    assert torch.equal(encoder(images()), before)
    encoder.mask_token = None
    settings = encoder_settings(encoder)
    assert settings["positions"] == "learned"
    rebuilt = build_encoder(settings).eval()
    rebuilt.load_state_dict(encoder.state_dict())
    assert torch.equal(rebuilt(images()), before)
    absorb_class_position(rebuilt)  # there is none any more
    assert torch.equal(rebuilt(images()), before)


def test_checkpoints_with_sine_cosine_positions_have_the_same_keys_as_ever() -> None:
    keys = [key for key in small_ibot().encoder.state_dict() if "blocks" not in key]
    assert sorted(keys) == [
        "cls_token",
        "mask_token",
        "norm.bias",
        "norm.weight",
        "patch_embed.proj.bias",
        "patch_embed.proj.weight",
    ]
