import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

import hardpatch
from hardpatch.errors import UserError
from hardpatch.interchange.backbone import load_backbone
from hardpatch.models.encoder import Encoder
from hardpatch.models.encoder_settings import build_encoder, encoder_settings
from tests.export.runs import run_of


def timm_vit(**changes: Any) -> Any:
    """ViT of 2 blocks of width 64 with 16 patches of 4 px; positions, class token and norms are random."""
    torch.manual_seed(0)
    settings = {"img_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 1, "num_classes": 5}
    model = timm.models.vision_transformer.VisionTransformer(**settings | changes).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def images(size: int = 16, channels: int = 3) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, channels, size, size)


def test_a_run(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    backbone = load_backbone(run, drop_path=0.2)
    encoder = backbone.encoder
    assert encoder.training
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    assert [block.drop_path for block in encoder.blocks] == [0.0, 0.2]
    assert_close(backbone.mean, (0.4, 0.5, 0.6))
    assert_close(backbone.std, (0.2, 0.3, 0.4))
    with torch.no_grad():
        assert torch.equal(encoder.eval()(images()), hardpatch.load(run).encode(images()))
        teacher = load_backbone(run, "teacher").encoder.eval()(images())
        assert torch.equal(teacher, hardpatch.load(run, "teacher").encode(images()))
        random = [load_backbone(run, "random", seed=seed).encoder.eval()(images()) for seed in (0, 0, 1)]
        assert torch.equal(random[0], random[1])
        assert not torch.equal(random[0], random[2])
        assert not torch.equal(random[0], hardpatch.load(run).encode(images()))


@torch.no_grad()
@pytest.mark.parametrize("weights", ["student", "teacher"])
@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_ibot_with_both_kinds_of_positions(tmp_path: Path, positions: str, weights: Any) -> None:
    run = run_of(tmp_path, "ibot", model={"positions": positions})
    encoder = load_backbone(run, weights).encoder.eval()
    assert torch.equal(encoder(images()), hardpatch.load(run, weights).encode(images()))
    assert torch.equal(rebuilt(encoder)(images()), encoder(images()))
    assert encoder_settings(encoder)["positions"] == positions


@torch.no_grad()
def test_relative_positions_load_as_they_are(tmp_path: Path) -> None:
    run = run_of(tmp_path, "simmim", model={"positions": "relative", "layer_scale": 0.1})
    encoder = load_backbone(run).encoder
    assert encoder.mask_token is None
    assert torch.equal(encoder.eval()(images()), hardpatch.load(run).encode(images()))
    assert torch.equal(rebuilt(encoder)(images()), encoder(images()))


def rebuilt(encoder: Encoder) -> Encoder:
    """Build an encoder from saved settings and weights."""
    other = build_encoder(encoder_settings(encoder)).eval()
    other.load_state_dict({name: value.clone() for name, value in encoder.state_dict().items()})
    return other


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"init_values": 0.5},
        {"in_chans": 5, "mlp_ratio": 2.0, "depth": 3},
        {"no_embed_class": True, "global_pool": "token"},
        {"num_classes": 0},
        {"img_size": 28, "patch_size": 14},
    ],
)
def test_timm_weights_and_rebuilding_of_their_encoder(tmp_path: Path, changes: dict[str, Any]) -> None:
    vit = timm_vit(**changes)
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    size, channels = changes.get("img_size", 16), changes.get("in_chans", 3)
    said = (size, size) if "no_embed_class" in changes else None  # 16 positions could be 3 x 5 and a class token
    backbone = load_backbone(tmp_path / "vit.safetensors", image_size=said)
    pixels = images(size, channels)
    features = backbone.encoder.eval()(pixels)
    assert_close(features, vit.forward_features(pixels), rtol=1e-5, atol=1e-5)
    assert len(backbone.mean) == len(backbone.std) == channels
    assert encoder_settings(backbone.encoder)["positions"] == "learned"
    assert torch.equal(rebuilt(backbone.encoder)(pixels), features)


@torch.no_grad()
def test_other_image_sizes_resample_the_learned_positions(tmp_path: Path) -> None:
    vit = timm_vit(dynamic_img_size=True)
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    pixels = images(24)
    features = load_backbone(tmp_path / "vit.pth").encoder.eval()(pixels)
    assert_close(features, vit.forward_features(pixels), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_dino_full_checkpoints_and_backbones(tmp_path: Path) -> None:
    student, teacher = timm_vit(num_classes=0), timm_vit(num_classes=0)
    nn.init.ones_(teacher.norm.bias)
    heads = {"head.mlp.0.weight": torch.zeros(4, 64), "head.last_layer.weight_v": torch.zeros(9, 4)}
    whole = {
        "student": {f"module.backbone.{key}": value for key, value in student.state_dict().items()}
        | {f"module.{key}": value for key, value in heads.items()},
        "teacher": {f"backbone.{key}": value for key, value in teacher.state_dict().items()} | heads,
        "epoch": 100,
    }
    torch.save(whole, tmp_path / "checkpoint.pth")
    torch.save(teacher.state_dict(), tmp_path / "dino_pretrain.pth")
    expected = teacher.forward_features(images())
    for path, weights in (("checkpoint.pth", "teacher"), ("dino_pretrain.pth", "student")):
        features = load_backbone(tmp_path / path, weights).encoder.eval()(images())  # type: ignore[arg-type]
        assert_close(features, expected, rtol=1e-5, atol=1e-5)
    features = load_backbone(tmp_path / "checkpoint.pth").encoder.eval()(images())
    assert_close(features, expected, rtol=1e-5, atol=1e-5)
    features = load_backbone(tmp_path / "checkpoint.pth", "student").encoder.eval()(images())
    assert_close(features, student.forward_features(images()), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_mae_with_and_without_its_decoder(golden_folder: Path, tmp_path: Path) -> None:
    golden = load_file(golden_folder / "mae_tiny.safetensors")
    state = {key.removeprefix("model."): value for key, value in golden.items() if key.startswith("model.")}
    torch.save({"model": state}, tmp_path / "mae.pth")
    torch.save({"model": {k: v for k, v in state.items() if "decoder" not in k}}, tmp_path / "mae_encoder.pth")
    expected = hardpatch.load(golden_folder / "mae_tiny.safetensors", heads=3).encode(golden["images"])
    for name in ("mae.pth", "mae_encoder.pth"):
        encoder = load_backbone(tmp_path / name, heads=3).encoder
        assert encoder.training
        assert_close(encoder.eval()(golden["images"]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_token": False, "global_pool": "map"}, "has no cls_token"),
        ({"class_token": False, "global_pool": "avg", "fc_norm": False}, "has no cls_token"),
        (
            {"img_size": (16, 28)},
            "has 29 positions, which is no square grid of patches and a class token; --trained_size",
        ),
        ({"img_size": (28, 36)}, "has 64 positions, which is no square grid"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    save_file(timm_vit(**changes).state_dict(), tmp_path / "vit.safetensors")
    with pytest.raises(UserError, match=message) as error:
        load_backbone(tmp_path / "vit.safetensors")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["blocks.0.surprise", "surprise", "blocks.0.relative_bias.table"])
def test_other_keys_are_named(tmp_path: Path, key: str) -> None:
    torch.save(timm_vit().state_dict() | {key: torch.zeros(1, 1)}, tmp_path / "vit.pth")
    with pytest.raises(UserError, match=f"{key}|relative positions of a grid"):
        load_backbone(tmp_path / "vit.pth")


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("executed",))


def test_wrong_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "malicious.pth").write_bytes(pickle.dumps({"state_dict": Malicious()}))
    torch.save(timm_vit().state_dict() | {"extra": Malicious()}, tmp_path / "malicious2.pth")
    for name in ("malicious.pth", "malicious2.pth"):
        with pytest.raises(UserError, match=r"could run code|is not a checkpoint"):
            load_backbone(tmp_path / name)
    assert "executed" not in capsys.readouterr().out
    with pytest.raises(UserError, match="does not exist"):
        load_backbone(tmp_path / "missing.pth")
    (tmp_path / "text.safetensors").write_text("no tensors at all")
    with pytest.raises(UserError, match="is not a safetensors file"):
        load_backbone(tmp_path / "text.safetensors")
    torch.save(timm_vit().state_dict(), tmp_path / "vit.pth")
    with pytest.raises(UserError, match="heads: expected a divisor of the width 64, got 5"):
        load_backbone(tmp_path / "vit.pth", heads=5)
    with pytest.raises(UserError, match="--weights random: "):
        hardpatch.load(tmp_path / "vit.pth", "random")
