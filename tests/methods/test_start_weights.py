"""Start weights of every host against the rules of the authors' code: standard deviations, bounds, zeros."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from hardpatch.methods.base import Host
from hardpatch.methods.beit import BEiT
from hardpatch.methods.hpm import HPM
from hardpatch.methods.ibot import IBOT
from hardpatch.methods.mae import MAE
from hardpatch.methods.simmim import SimMIM
from hardpatch.models.decoder import Decoder

WIDTH, DEPTH, PATCH = 192, 6, 8
SHAPE: dict[str, Any] = {"image_size": (64, 64), "patch_size": PATCH, "width": WIDTH, "depth": DEPTH, "heads": 3}
PIXELS = 3 * PATCH**2
CUT = 0.02 * math.sqrt(1 - 2 * math.exp(-0.5) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(0.5)))
"""Standard deviation of a normal distribution of 0.02 without its values beyond 0.02."""


def host_of(name: str) -> Host:
    """Build a host of six blocks of 192 with 64 patches, whose smallest matrix has 36,864 entries."""
    torch.manual_seed(0)
    match name:
        case "mae":
            return MAE(**SHAPE, decoder_width=64, decoder_depth=2, decoder_heads=4)
        case "beit":
            return BEiT(**SHAPE, vocabulary=512, decoder_width=64, positions="relative", layer_scale=0.1)
        case "simmim":
            return SimMIM(**SHAPE, decoder_width=64, positions="relative", layer_scale=0.1)
        case _:
            return IBOT(**SHAPE, outputs=512, head_hidden=256, decoder_width=64, positions="learned")


def weights_of(name: str) -> dict[str, Tensor]:
    """Weights of a host by name."""
    return {key: value.detach() for key, value in host_of(name).named_parameters()}


def check_std(weights: Mapping[str, Tensor], expected: Mapping[str, float]) -> None:
    """Compare standard deviations with the expected ones, within five standard errors of a normal distribution's."""
    for key, std in expected.items():
        values = weights[key]
        error = 5 / math.sqrt(2 * values.numel())
        assert values.square().mean().sqrt().item() == pytest.approx(std, rel=error), key
        assert abs(values.mean().item()) < 5 * std / math.sqrt(values.numel()), key


def check_zero(weights: Mapping[str, Tensor], *keys: str) -> None:
    assert [key for key in keys if weights[key].count_nonzero()] == []


def check_norms_and_biases(weights: Mapping[str, Tensor], prefix: str = "encoder.") -> None:
    """Norms are one and zero, and all biases behind the patch embedding are zero."""
    for key, value in weights.items():
        if key.startswith(prefix) and "norm" in key and key.endswith("weight"):
            assert torch.equal(value, torch.ones_like(value)), key
        elif key.startswith(prefix) and key.endswith("bias") and "patch_embed" not in key:
            assert not value.count_nonzero(), key


def test_the_true_deviation_of_the_cut() -> None:
    assert pytest.approx(0.010792, abs=1e-6) == CUT


@pytest.mark.parametrize("name", ["beit", "simmim"])
def test_beit_and_simmim(name: str) -> None:
    weights = weights_of(name)
    blocks = {
        f"encoder.blocks.{block}.{layer}.weight": CUT
        for block in range(DEPTH)
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    scaled = {
        key: std / math.sqrt(2 * (int(key.split(".")[2]) + 1)) if "proj" in key or "fc2" in key else std
        for key, std in blocks.items()
    }
    check_std(weights, scaled)
    check_std(weights, dict.fromkeys(("encoder.patch_embed.proj.weight", "encoder.cls_token"), CUT))
    check_std(weights, {"encoder.mask_token": CUT})
    for key, std in {**scaled, "encoder.cls_token": CUT, "encoder.mask_token": CUT}.items():
        bound = 0.02 * std / CUT
        assert 0.95 * bound < weights[key].abs().max().item() <= bound * (1 + 1e-6), key
    check_norms_and_biases(weights)
    check_zero(weights, "encoder.patch_embed.proj.bias", "encoder.relative_bias.table")
    assert all((weights[f"encoder.blocks.{block}.ls1.gamma"] == 0.1).all() for block in range(DEPTH))


def test_the_heads_of_beit_and_simmim() -> None:
    beit, simmim = weights_of("beit"), weights_of("simmim")
    check_std(beit, {"head.weight": CUT})
    assert beit["head.weight"].abs().max() <= 0.02
    check_zero(beit, "head.bias")
    # SimMIM's is a 1x1 convolution with torch's start: uniform up to 1 over the root of its inputs
    bound = 1 / math.sqrt(WIDTH)
    check_std(simmim, {"head.weight": bound / math.sqrt(3)})
    assert 0.99 * bound < simmim["head.weight"].abs().max() <= bound
    assert 0.9 * bound < simmim["head.bias"].abs().max() <= bound


def test_ibot() -> None:
    weights = weights_of("ibot")
    matrices = {key: 0.02 for key in weights if "blocks" in key and key.endswith("weight") and "norm" not in key}
    assert len(matrices) == 4 * DEPTH
    check_std(weights, matrices)
    assert all(weights[key].abs().max() > 0.06 for key in matrices)  # not cut
    learned = ("encoder.cls_token", "encoder.positions", "encoder.class_position")
    assert weights["encoder.positions"].shape == (64, WIDTH)
    check_std(weights, dict.fromkeys(learned, 0.02))
    check_zero(weights, "encoder.mask_token")
    check_norms_and_biases(weights)
    bound = 1 / math.sqrt(PIXELS)  # torch's own start of a convolution
    check_std(weights, {"encoder.patch_embed.proj.weight": bound / math.sqrt(3)})
    assert 0.9 * bound < weights["encoder.patch_embed.proj.bias"].abs().max() <= bound


def test_the_head_of_ibot() -> None:
    host = host_of("ibot")
    weights = {key: value.detach() for key, value in host.named_parameters()}
    check_std(weights, {f"head.mlp.{layer}.weight": 0.02 for layer in (0, 2, 4)})
    check_zero(weights, *(f"head.mlp.{layer}.bias" for layer in (0, 2, 4)))
    bound = 1 / math.sqrt(256)
    assert 0.99 * bound < weights["head.last.weight"].abs().max() <= bound
    # the gain of every prototype is 1 and no parameter: a logit is the cosine with its row, however long that is
    assert not [key for key in weights if key.endswith(("weight_g", "original0"))]
    tokens = torch.randn(3, WIDTH)
    before = host.get_submodule("head")(tokens)
    with torch.no_grad():
        host.get_parameter("head.last.weight").mul_(7.0)
    torch.testing.assert_close(host.get_submodule("head")(tokens), before)
    assert before.abs().max() <= 1


def test_mae_is_xavier() -> None:
    weights = weights_of("mae")

    def xavier(inputs: int, outputs: int) -> float:
        return math.sqrt(2 / (inputs + outputs))

    expected = {"encoder.patch_embed.proj.weight": xavier(PIXELS, WIDTH), "encoder.cls_token": 0.02}
    for block in range(DEPTH):
        expected |= {
            f"encoder.blocks.{block}.attn.qkv.weight": xavier(WIDTH, 3 * WIDTH),
            f"encoder.blocks.{block}.attn.proj.weight": xavier(WIDTH, WIDTH),
            f"encoder.blocks.{block}.mlp.fc1.weight": xavier(WIDTH, 4 * WIDTH),
            f"encoder.blocks.{block}.mlp.fc2.weight": xavier(WIDTH, 4 * WIDTH),
        }
    check_std(weights, expected)
    check_std(weights, {"decoder_embed.mask_token": 0.02})
    check_norms_and_biases(weights, "")
    check_zero(weights, "encoder.patch_embed.proj.bias")


@pytest.mark.parametrize("name", ["mae", "beit", "simmim", "ibot"])
def test_the_loss_predictor_starts_as_maes_decoder_in_every_host(name: str) -> None:
    model = HPM(host_of(name), Decoder(width=64, depth=2, heads=4, outputs=PIXELS))
    weights = {key: value.detach() for key, value in model.named_parameters()}
    expected = {"host.decoder_embed.proj.weight": math.sqrt(2 / (WIDTH + 64))}
    expected |= {f"predictor.blocks.{block}.attn.proj.weight": math.sqrt(2 / 128) for block in (0, 1)}
    check_std(weights, expected | {"predictor.head.weight": math.sqrt(2 / (64 + PIXELS))})
    check_zero(weights, "host.decoder_embed.proj.bias", "predictor.head.bias")
