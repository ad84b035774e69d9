"""Every architecture that is read, exported again: the same tensors to the bit, the same features."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import hardpatch
from hardpatch.errors import UserError
from hardpatch.export.run import export_hugging_face, export_reference, export_timm, export_torchvision
from tests.interchange.test_architectures import HUGGING_FACE, TIMM, VIT, images, randomized

HEADS = ("head.", "classifier.", "pooler.", "fc_norm.", "visual_projection.", "text_")
ABSORBED = {"a distillation token"}
"""Networks whose second token takes up its position, so that the features are the same and two tensors are not"""


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Return the names of tensors that both have, all of them equal to the bit."""
    both = sorted(one.keys() & other.keys())
    assert [name for name in both if not torch.equal(one[name], other[name])] == []
    return both


def packed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put gate and value of SwiGLU together, which some of timm's models have in one layer and some in two."""
    result = {key: value for key, value in state.items() if "fc1_x" not in key}
    gates = [key for key in result if "fc1_g" in key]
    joined = {key.replace("fc1_g", "fc1"): torch.cat([state[key], state[key.replace("_g", "_x")]]) for key in gates}
    return {key: value for key, value in result.items() if key not in gates} | joined


def beside(path: Path, **values: Any) -> Path:
    path.with_name("config.json").write_text(json.dumps({"num_attention_heads": 3, **values}))
    return path


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in TIMM if name not in ABSORBED])
def test_timm_to_ours_to_timm(name: str, tmp_path: Path) -> None:
    network: Any = randomized(TIMM[name]())
    size = (24, 40) if name == "not square" else (32, 32)
    facts: dict[str, Any] = {"image_size": list(size)}
    if "norm before" in name:
        facts |= {"hidden_act": "quick_gelu"}
    save_file(network.state_dict(), tmp_path / "vit.safetensors")
    run = beside(tmp_path / "vit.safetensors", **facts)
    result = export_timm(run, tmp_path / "timm")
    assert result.difference is not None
    assert result.difference.random <= 1e-5 * result.difference.largest
    exported: Any = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    state = {key: value for key, value in network.state_dict().items() if not key.startswith(HEADS)}
    state = packed(state)
    assert same(state, packed(exported.state_dict())) == sorted(state)
    expected = network.forward_features(images(size))
    assert torch.equal(exported.forward_features(images(size)), expected) or "SwiGLU" in name or "DINOv3" in name
    assert torch.allclose(exported.forward_features(images(size)), expected, rtol=0, atol=1e-5 * expected.abs().max())
    again = hardpatch.load(tmp_path / "timm")
    assert torch.equal(again.encode(images(size)), hardpatch.load(run).encode(images(size)))


@torch.no_grad()
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_hugging_face_to_ours_to_hugging_face(name: str, tmp_path: Path) -> None:
    network = randomized(HUGGING_FACE[name]())
    network.save_pretrained(tmp_path / "one")
    result = export_hugging_face(tmp_path / "one", tmp_path / "two")
    assert result.difference is not None
    assert result.difference.random <= 1e-5 * result.difference.largest
    one, other = (load_file(tmp_path / folder / "model.safetensors") for folder in ("one", "two"))
    own = {key.removeprefix("vit.").removeprefix("vision_model."): value for key, value in one.items()}
    own = {key: value for key, value in own.items() if not key.startswith(HEADS) and not key.endswith("mask_token")}
    own = {key: value for key, value in own.items() if key not in ("logit_scale",)}
    assert same(own, other) == sorted(own)
    written = json.loads((tmp_path / "two" / "config.json").read_text())
    assert "auto_map" not in written
    base = network.base_model if "ViT, classifier" in name else network
    if "text tower" not in name:
        assert type(base).__name__ == written["architectures"][0]
    again = hardpatch.load(tmp_path / "two")
    assert torch.equal(again.encode(images()), hardpatch.load(tmp_path / "one").encode(images()))


@pytest.mark.parametrize(
    ("network", "to", "message"),
    [
        (TIMM["norms of queries and keys"], "hf", "ViTModel of transformers cannot hold norms of queries and keys"),
        (TIMM["registers, layer scale"], "torchvision", "cannot hold register tokens, as this network has; expected"),
        (TIMM["DINOv3"], "reference", "cannot hold registers, rope_theta"),
        (HUGGING_FACE["ViT"], "timm", "cannot hold norms that add 1e-12 to the variance"),
        (TIMM["BEiT"], "torchvision", "a relative position bias"),
    ],
)
def test_what_a_format_cannot_hold(network: Callable[[], Any], to: Any, message: str, tmp_path: Path) -> None:
    built = network()
    if hasattr(built, "save_pretrained"):
        built.save_pretrained(tmp_path / "run")
        run = tmp_path / "run"
    else:
        save_file(built.state_dict(), tmp_path / "vit.safetensors")
        run = beside(tmp_path / "vit.safetensors")
    out = tmp_path / ("out.pth" if to == "reference" else "out")
    with pytest.raises(UserError, match=message) as error:
        hardpatch.export(run, to, out)
    assert "\n" not in str(error.value)
    assert "expected --to" in str(error.value)
    assert not out.exists()


@torch.no_grad()
def test_timm_to_torchvision(tmp_path: Path) -> None:
    import torchvision  # type: ignore[import-untyped]

    network = randomized(VisionTransformer(**VIT))
    save_file(network.state_dict(), tmp_path / "vit.safetensors")
    result = export_torchvision(beside(tmp_path / "vit.safetensors"), tmp_path / "out")
    assert result.files is not None
    assert max(result.files.png, result.files.jpeg) < 1e-5
    import functools

    names: dict[str, Any] = {"torchvision": torchvision, "functools": functools, "torch": torch}
    exec(result.code, names)
    expected = network.forward_features(images())[:, 0]
    assert torch.allclose(names["model"].eval()(images()), expected, rtol=0, atol=1e-5)
    card = (tmp_path / "out" / "README.md").read_text()
    assert result.code.replace(str(tmp_path / "out"), "out") in card
    assert str(tmp_path) not in card
    assert card.count("FILL IN") == 4
    assert "Not by hardpatch: read from vit.safetensors" in card


@torch.no_grad()
def test_an_autoencoder_of_hugging_face_goes_there_and_back(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32}
    sizes |= {"patch_size": 8, "intermediate_size": 96, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 2}
    config = transformers.ViTMAEConfig(
        **sizes, decoder_num_attention_heads=4, decoder_intermediate_size=128, layer_norm_eps=1e-6
    )
    randomized(transformers.ViTMAEForPreTraining(config)).save_pretrained(tmp_path / "one")
    export_hugging_face(tmp_path / "one", tmp_path / "two", form="vit_mae")
    one, other = (load_file(tmp_path / folder / "model.safetensors") for folder in ("one", "two"))
    one = {key.replace("decoder_encoder.layer", "decoder_layers"): value for key, value in one.items()}
    assert same(one, other) == sorted(one)
    # and by way of the reference's layout
    export_reference(tmp_path / "one", tmp_path / "mae.pth")
    beside(tmp_path / "mae.pth", decoder_num_attention_heads=4, image_size=[32, 32])
    export_hugging_face(tmp_path / "mae.pth", tmp_path / "three", form="vit_mae")
    assert same(one, load_file(tmp_path / "three" / "model.safetensors")) == sorted(one)
