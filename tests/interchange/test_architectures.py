"""Features of every architecture that is read, against timm's and transformers' own, of random weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import hardpatch
from hardpatch.errors import UserError
from hardpatch.interchange.backbone import load_backbone
from hardpatch.models.encoder_settings import build_encoder, encoder_settings

SIZES: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32}
SIZES |= {"patch_size": 8}
MLP: dict[str, Any] = {"intermediate_size": 96}
BEIT: dict[str, Any] = {**SIZES, **MLP, "layer_norm_eps": 1e-6}
HUGGING_FACE: dict[str, Callable[[], Any]] = {
    "ViT": lambda: transformers.ViTModel(transformers.ViTConfig(**SIZES, **MLP), add_pooling_layer=False),
    "ViT, classifier": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES, **MLP)),
    "DINOv2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SIZES)),
    "DINOv2, registers": lambda: transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**SIZES)),
    "DINOv2, SwiGLU": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SIZES, use_swiglu_ffn=True)),
    "DINOv3": lambda: transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**SIZES, **MLP, num_register_tokens=4)),
    "DINOv3, SwiGLU": lambda: transformers.DINOv3ViTModel(
        transformers.DINOv3ViTConfig(**SIZES, **MLP, use_gated_mlp=True, hidden_act="silu", num_register_tokens=2)
    ),
    "BEiT": lambda: transformers.BeitModel(
        transformers.BeitConfig(**BEIT, use_relative_position_bias=True, use_mean_pooling=False)
    ),
    "BEiT, pooled": lambda: transformers.BeitModel(transformers.BeitConfig(**BEIT, use_relative_position_bias=True)),
    "BEiT, shared bias": lambda: transformers.BeitModel(
        transformers.BeitConfig(**BEIT, use_shared_relative_position_bias=True)
    ),
    "CLIP": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SIZES, **MLP)),
    "CLIP, GELU": lambda: transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(**SIZES, **MLP, hidden_act="gelu")
    ),
    "CLIP, with its text tower": lambda: transformers.CLIPModel(
        transformers.CLIPConfig(
            vision_config={**SIZES, **MLP},
            text_config={"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
        )
    ),
}
VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}
ROTARY: dict[str, Any] = {"use_rot_pos_emb": True, "use_abs_pos_emb": False, "rope_type": "dinov3"}
ROTARY |= {"rope_temperature": 100, "rope_rotate_half": True, "qkv_bias": False, "init_values": 1e-5}
ROTARY |= {"num_reg_tokens": 4, "use_fc_norm": False, "norm_layer": nn.LayerNorm}
TIMM: dict[str, Callable[[], Any]] = {
    "plain": lambda: VisionTransformer(**VIT),
    "registers, layer scale": lambda: VisionTransformer(**VIT, reg_tokens=4, no_embed_class=True, init_values=1.0),
    "norms of queries and keys": lambda: VisionTransformer(**VIT, qk_norm=True),
    "SwiGLU, packed": lambda: VisionTransformer(
        **VIT,
        mlp_layer=timm.layers.SwiGLUPacked,  # type: ignore[arg-type]
        act_layer=nn.SiLU,
    ),
    "SwiGLU": lambda: VisionTransformer(**VIT, mlp_layer=timm.layers.SwiGLU, act_layer=nn.SiLU),
    "without biases of queries, keys and values": lambda: VisionTransformer(**VIT, qkv_bias=False),
    "a norm after pooling": lambda: VisionTransformer(**VIT, global_pool="avg"),
    "a norm before the blocks": lambda: VisionTransformer(
        **VIT, pre_norm=True, norm_layer=nn.LayerNorm, act_layer="quick_gelu"
    ),
    "BEiT": lambda: Beit(**VIT, init_values=0.1, use_abs_pos_emb=False, use_rel_pos_bias=True),
    "BEiT, shared bias": lambda: Beit(
        **VIT, init_values=0.1, use_abs_pos_emb=False, use_rel_pos_bias=False, use_shared_rel_pos_bias=True
    ),
    "DINOv3": lambda: Eva(**VIT, **ROTARY),
    "DINOv3, SwiGLU": lambda: Eva(**VIT, **ROTARY, swiglu_mlp=True),
    "a distillation token": lambda: VisionTransformerDistilled(**VIT),
    "not square": lambda: VisionTransformer(**{**VIT, "img_size": (24, 40)}),
}


def randomized(network: Any) -> Any:
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.eval()


def images(size: tuple[int, int] = (32, 32)) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def without_registers(tokens: Tensor, patches: int) -> Tensor:
    return torch.cat([tokens[:, :1], tokens[:, -patches:]], dim=1)


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_hugging_face(name: str, tmp_path: Path) -> None:
    network = randomized(HUGGING_FACE[name]())
    network.save_pretrained(tmp_path)
    vision: Any = next((getattr(network, part) for part in ("vit", "vision_model") if hasattr(network, part)), network)
    expected = vision(images()).last_hidden_state
    if "CLIP" in name:  # which normalizes the class token only
        expected = vision.post_layernorm(expected)
    expected = without_registers(expected, 16)
    model = hardpatch.load(tmp_path)
    assert difference(model.encode(images()), expected) <= 1e-5
    assert difference(hardpatch.load(tmp_path / "model.safetensors").encode(images()), expected) <= 1e-5
    encoder = load_backbone(tmp_path).encoder.eval()
    assert torch.equal(encoder(images()), model.encode(images()))
    rebuilt = build_encoder(json.loads(json.dumps(encoder_settings(encoder)))).eval()
    rebuilt.load_state_dict(encoder.state_dict())
    assert torch.equal(rebuilt(images()), model.encode(images()))
    # in memory, names are other ones than in files
    torch.save(network.state_dict(), tmp_path / "memory.pth")
    assert difference(hardpatch.load(tmp_path / "memory.pth").encode(images()), expected) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", TIMM)
@pytest.mark.parametrize("prefix", ["", "module.backbone."])
def test_timm_and_what_has_its_names(name: str, prefix: str, tmp_path: Path) -> None:
    network: Any = randomized(TIMM[name]())
    size = (24, 40) if name == "not square" else (32, 32)
    heads = {"module.dino_head.mlp.0.weight": torch.zeros(2, 2), "module.ibot_head.last": torch.zeros(2)}
    state = {prefix + key: value for key, value in network.state_dict().items()} | (heads if prefix else {})
    torch.save({"teacher": state} if prefix else state, tmp_path / "vit.pth")
    rows = size[0] // 8 * (size[1] // 8)
    expected = without_registers(network.forward_features(images(size)), rows)
    model = hardpatch.load(tmp_path / "vit.pth", heads=3, image_size=size)
    assert difference(model.encode(images(size)), expected) <= 1e-5
    half = {key: value.half() for key, value in state.items()}
    save_file(half, tmp_path / "half.safetensors")
    half_model = hardpatch.load(tmp_path / "half.safetensors", heads=3, image_size=size)
    weight = half_model.host.encoder.patch_embed.proj.weight
    assert torch.equal(weight, half[f"{prefix}patch_embed.proj.weight"].float())


@torch.no_grad()
def test_rotary_positions_and_registers_with_masked_patches() -> None:
    settings: dict[str, Any] = {
        "image_size": [32, 32],
        "patch_size": 8,
        "channels": 3,
        "width": 48,
        "depth": 2,
        "heads": 3,
    }
    settings |= {"mlp_ratio": 2.0, "positions": None, "layer_scale": 1.0, "drop_path": 0.0}
    encoder = randomized(build_encoder(settings | {"variant": {"registers": 4, "rope_theta": 100.0}}))
    nothing = torch.zeros(2, 16, dtype=torch.bool)
    assert torch.allclose(encoder(images(), nothing), encoder(images()), atol=1e-6)
    mask = nothing.clone()
    mask[:, 3:7] = True
    changed = images()
    changed[:, :, :8, 24:] = 0  # patch 3, which is masked
    assert torch.equal(encoder(images(), mask), encoder(changed, mask))
    assert encoder(images(), mask).shape == (2, 13, 48)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: Beit(**VIT, use_abs_pos_emb=False), "has no positions, and is not DINOv3's"),
        (lambda: VisionTransformer(**VIT, pre_norm=True, global_pool="map"), "rotary positions of another kind"),
        (lambda: Beit(**VIT, use_rel_pos_bias=True, use_abs_pos_emb=True), r"unknown \['positions'\]"),
    ],
)
def test_positions_that_are_not_known_are_refused(network: Callable[[], Any], message: str, tmp_path: Path) -> None:
    save_file(network().state_dict(), tmp_path / "vit.safetensors")
    with pytest.raises(UserError, match=message):
        hardpatch.load(tmp_path / "vit.safetensors")


def test_chunks_of_blocks(tmp_path: Path) -> None:
    network: Any = randomized(TIMM["registers, layer scale"]())
    state = {key.replace("blocks.", "blocks.0."): value for key, value in network.state_dict().items()}
    state["register_tokens"] = state.pop("reg_token")
    torch.save(state, tmp_path / "dinov2.pth")
    assert len(hardpatch.load(tmp_path / "dinov2.pth", heads=3).host.encoder.blocks) == 2


@torch.no_grad()
@pytest.mark.parametrize("trained", [False, True])
def test_an_autoencoder_of_hugging_face(trained: bool, tmp_path: Path) -> None:
    decoder: dict[str, Any] = {
        "decoder_hidden_size": 32,
        "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 4,
    }
    settings = transformers.ViTMAEConfig(
        **SIZES, **MLP, **decoder, decoder_intermediate_size=128, norm_pix_loss=True, mask_ratio=0.75
    )
    network: Any = transformers.ViTMAEForPreTraining(settings).eval()
    if trained:  # positions as well
        network = randomized(network)
    network.save_pretrained(tmp_path / "mae")
    (tmp_path / "mae" / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.4, 0.3], "image_std": [1, 1, 1]}'
    )
    model = hardpatch.load(tmp_path / "mae")
    assert torch.allclose(model.mean, torch.tensor([0.5, 0.4, 0.3]))
    noise = torch.arange(16.0).expand(2, -1)
    expected = network(images(), noise=noise)
    mask = expected.mask.bool()
    latent = model.encode(images(), mask)
    assert difference(model.reconstruct(latent, mask), expected.logits[mask].reshape(2, 12, -1)) <= 1e-5
    assert float(model(images(), mask).loss) == pytest.approx(float(expected.loss), rel=1e-5)
    # the same tensors without their decoder
    encoder = {key: value for key, value in network.state_dict().items() if key.startswith("vit.")}
    save_file(encoder, tmp_path / "encoder.safetensors")
    (tmp_path / "config.json").write_bytes((tmp_path / "mae" / "config.json").read_bytes())
    assert difference(hardpatch.load(tmp_path / "encoder.safetensors").encode(images()), model.encode(images())) <= 1e-6
    with pytest.raises(UserError, match="these have an encoder only"):
        hardpatch.load(tmp_path / "encoder.safetensors")(images(), mask)


def test_a_file_in_parts(tmp_path: Path) -> None:
    network = randomized(HUGGING_FACE["ViT"]())
    network.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    with torch.no_grad():
        expected = network(images()).last_hidden_state
        assert difference(hardpatch.load(tmp_path).encode(images()), expected) <= 1e-5
    next(tmp_path.glob("model-*.safetensors")).unlink()
    with pytest.raises(UserError, match=r"model-.*safetensors is missing, which model\.safetensors\.index\.json names"):
        hardpatch.load(tmp_path)


def test_files_that_are_no_weights_say_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1\n")
    with pytest.raises(UserError, match="is a pointer of Git LFS"):
        hardpatch.load(path)
    save_file(TIMM["plain"]().state_dict(), path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"a\.safetensors is not a safetensors file"):
        hardpatch.load(path)
    torch.save({"a": torch.zeros(2)}, tmp_path / "b.pth")
    with pytest.raises(UserError, match=r"no embedding of patches by a name that is known .* found: a"):
        hardpatch.load(tmp_path / "b.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"config\.json: expected metadata as JSON"),
        ('{"num_attention_heads": "3"}', "num_attention_heads cannot be 3"),
        ('{"num_attention_heads": 0}', "num_attention_heads cannot be 0"),
        ('{"image_size": [32]}', r"image_size cannot be \[32\]"),
        ('{"image_size": "32"}', "image_size cannot be 32"),
        ('{"layer_norm_eps": -1.0}', r"layer_norm_eps cannot be -1\.0"),
        ('{"pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.5], "std": [0.5]}}', "its mean is said for 1"),
        ('{"pretrained_cfg": {"mean": "x", "std": [0.5, 0.5, 0.5]}}', "mean: expected numbers"),
    ],
)
def test_what_lies_beside_a_file_is_not_trusted(content: str, message: str, tmp_path: Path) -> None:
    save_file(TIMM["plain"]().state_dict(), tmp_path / "vit.safetensors")
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message) as error:
        hardpatch.load(tmp_path / "vit.safetensors")
    assert "\n" not in str(error.value)


def test_a_teacher_that_is_not_there_is_not_replaced_by_the_student(tmp_path: Path) -> None:
    torch.save({"state_dict": TIMM["plain"]().state_dict()}, tmp_path / "vit.pth")
    with pytest.raises(UserError, match="has no `ema_state_dict` of tensors; found: state_dict"):
        hardpatch.load(tmp_path / "vit.pth", "teacher")


def test_guesses_are_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_file(TIMM["plain"]().state_dict(), tmp_path / "vit.safetensors")
    for _ in range(2):
        hardpatch.load(tmp_path / "vit.safetensors")
    (line,) = [line for line in caplog.messages if "does not say" in line]
    assert "heads: 1, as usual for a width of 48; --heads N says otherwise" in line
    (tmp_path / "config.json").write_text('{"num_attention_heads": 3, "image_size": [32, 32]}')
    assert hardpatch.load(tmp_path / "vit.safetensors").host.encoder.blocks[0].attn.heads == 3  # type: ignore[union-attr]
    (tmp_path / "config.json").write_text('{"image_size": [32, 40]}')
    with pytest.raises(UserError, match="has 17 positions, and images of 32 x 40 px have 20 patches of 8 px"):
        hardpatch.load(tmp_path / "vit.safetensors")
