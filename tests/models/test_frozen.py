import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.testing import assert_close

from hardpatch.errors import UserError
from hardpatch.models.frozen import NETWORKS, FrozenTeacher, frozen_teacher

SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 3}
SHAPES = [
    pytest.param("vit_tiny_patch16_224", 1, 16, 48, id="dino"),
    pytest.param("vit_base_patch16_clip_quickgelu_224.openai", 1, 16, 512, id="clip"),
    pytest.param("vit_small_patch14_reg4_dinov2.lvd142m", 5, 14, 48, id="dinov2 with registers"),
    pytest.param("vit_small_patch16_dinov3.lvd1689m", 5, 16, 48, id="dinov3"),
    pytest.param("deit_tiny_distilled_patch16_224", 2, 16, 48, id="distilled"),
    pytest.param("eva02_base_patch16_clip_224.merged2b", 1, 16, 512, id="clip with rotary positions"),
]
GRID = (3, 5)


def small(name: str, **kwargs: Any) -> Any:
    """Make a small network of a family with all weights random: timm starts layer scales and class tokens near zero."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = timm.create_model(name, **{**SMALL, **kwargs})
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return network


def photographs(batch: int = 2, patch: int = 16, grid: tuple[int, int] = GRID, channels: int = 3) -> Tensor:
    size = (batch, channels, grid[0] * patch, grid[1] * patch)
    return torch.randint(256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def normalized(pixels: Tensor, network: Any) -> Tensor:
    """Normalize one channel at a time."""
    config = network.pretrained_cfg
    channels = [(pixels[:, i] / 255 - config["mean"][i]) / config["std"][i] for i in range(3)]
    return torch.stack(channels, dim=1)


def images_for(teacher: FrozenTeacher, pixels: Tensor) -> Tensor:
    """Return the images that the network gets."""
    images: list[Tensor] = []
    hook = teacher.network.patch_embed.register_forward_pre_hook(lambda _, inputs: images.append(inputs[0]))
    teacher(pixels)
    hook.remove()
    return images[0]


@pytest.mark.parametrize("grid", [GRID, (14, 14)], ids=str)
@pytest.mark.parametrize(("name", "prefix", "patch", "width"), SHAPES)
def test_features_are_the_patch_tokens_of_timm(
    name: str, prefix: int, patch: int, width: int, grid: tuple[int, int]
) -> None:
    theirs = small(name, dynamic_img_size=True).eval()  # interpolates its positions in each call
    teacher = FrozenTeacher(small(name, dynamic_img_size=False), grid)
    pixels = photographs(patch=patch, grid=grid)
    with torch.no_grad():
        images = normalized(pixels, theirs)
        [tokens] = theirs.forward_intermediates(images, indices=1, norm=True, output_fmt="NLC", intermediates_only=True)
        assert_close(tokens, theirs.forward_features(images)[:, prefix:])
        if width != tokens.shape[-1]:
            tokens = tokens @ theirs.head.weight.T
    features = teacher(pixels)
    assert features.shape == (2, grid[0] * grid[1], width)
    assert teacher.width == width
    assert_close(features, tokens, atol=2e-4, rtol=2e-4)
    assert features.std() > 0.1


def test_clip_features_are_normalized_and_projected() -> None:
    network = small("vit_base_patch16_clip_quickgelu_224.openai")
    norm, weight = network.norm, network.head.weight.detach().clone()
    before: list[Tensor] = []
    network.blocks[-1].register_forward_hook(lambda *call: before.append(call[-1]))
    features = FrozenTeacher(network, GRID)(photographs())
    tokens = before[-1][:, 1:]
    centered = tokens - tokens.mean(dim=-1, keepdim=True)
    normed = centered / (centered.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias
    assert_close(features, torch.einsum("bnd,td->bnt", normed, weight), atol=1e-4, rtol=1e-4)


def test_clip_network_that_was_fine_tuned_to_classify_is_not_projected() -> None:
    teacher = FrozenTeacher(small("vit_base_patch16_clip_224.openai_ft_in1k"), GRID)
    assert teacher.width == 48
    assert not [name for name, _ in teacher.named_parameters() if "head" in name or "projection" in name]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", NETWORKS["clip"], "vit_small_patch16_dinov3.lvd1689m"])
def test_images_are_normalized_by_the_networks_own_statistics(name: str) -> None:
    network = small(name)
    pixels = photographs()
    assert_close(images_for(FrozenTeacher(network, GRID), pixels), normalized(pixels, network), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("patch", [8, 20])
def test_images_are_resized_to_the_patch_size_of_the_network(patch: int) -> None:
    network = small("vit_small_patch14_reg4_dinov2")
    teacher = FrozenTeacher(network, GRID)
    pixels = photographs(patch=patch)
    channels = [Image.fromarray(channel) for channel in pixels.float().flatten(0, 1).numpy()]
    resized = np.stack([np.asarray(channel.resize((70, 42), Image.Resampling.BICUBIC)) for channel in channels])
    expected = normalized(torch.from_numpy(resized).clamp(0, 255).reshape(2, 3, 42, 70), network)
    assert_close(images_for(teacher, pixels), expected, atol=1e-4, rtol=1e-5)
    assert teacher(pixels).shape == (2, 15, 48)


def test_gray_images_become_gray_rgb() -> None:
    gray = photographs(channels=1)
    teacher = FrozenTeacher(small("vit_tiny_patch16_224"), GRID, channels=1)
    color = FrozenTeacher(small("vit_tiny_patch16_224"), GRID)
    assert_close(teacher(gray), color(gray.repeat(1, 3, 1, 1)))


def test_has_no_gradient_and_stays_in_eval_mode() -> None:
    teacher = FrozenTeacher(small("vit_tiny_patch16_224", drop_rate=0.5, proj_drop_rate=0.5), GRID)
    pixels = photographs()
    features = teacher(pixels)
    parent = nn.ModuleList([teacher]).train()
    assert not any(module.training for module in teacher.modules())
    assert_close(teacher(pixels), features, atol=0.0, rtol=0.0)
    assert not features.requires_grad
    assert not any(parameter.requires_grad for parameter in parent.parameters())
    assert not set(parent.state_dict()) & {"0.mean", "0.std"}


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", NETWORKS["clip"], "vit_small_patch16_dinov3"])
def test_runs_under_autocast(name: str) -> None:
    teacher = FrozenTeacher(small(name, dynamic_img_size=False), GRID)
    pixels = photographs()
    with torch.autocast("cpu", torch.bfloat16):
        features = teacher(pixels)
    similarity = F.cosine_similarity(features.float(), teacher(pixels), dim=-1)
    assert similarity.min() > 0.99


@pytest.mark.parametrize(
    "pixels",
    [photographs().float(), photographs(channels=1), photographs(grid=(5, 3)), photographs(grid=(3, 6))],
    ids=["float", "gray", "transposed", "wide"],
)
def test_pixels_that_do_not_fit_are_refused(pixels: Tensor) -> None:
    with pytest.raises(ValueError, match=r"pixels: expected uint8 \[B, 3, H, W\] of 3x5 square patches"):
        FrozenTeacher(small("vit_tiny_patch16_224"), GRID)(pixels)


@pytest.mark.parametrize(
    ("short", "mean", "std", "classes", "width"),
    [
        ("dino", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0, 768),
        ("clip", (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), 512, 512),
    ],
)
def test_short_names_are_the_networks_of_the_paper(
    short: str, mean: tuple[float, ...], std: tuple[float, ...], classes: int, width: int
) -> None:
    teacher = frozen_teacher(short, grid=(2, 3), pretrained=False)
    config = teacher.network.pretrained_cfg
    assert f"{config['architecture']}.{config['tag']}" == NETWORKS[short] in timm.list_models(pretrained=True)
    assert (config["mean"], config["std"]) == (mean, std)
    assert config["num_classes"] == classes
    assert teacher.size == (32, 48)
    assert teacher.width == width
    assert len(teacher.network.blocks) == 12
    if short == "clip":  # the weights of that repository, with the activation they were trained with
        assert config["hf_hub_id"] == "timm/vit_base_patch16_clip_224.openai"
        x = torch.linspace(-3, 3, 7)
        assert_close(teacher.network.blocks[0].mlp.act(x), x * torch.sigmoid(1.702 * x))


def test_random_state_is_unchanged() -> None:
    state = torch.get_rng_state()
    frozen_teacher("test_vit", grid=GRID, pretrained=False)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("classes", [1000, 0, 7])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin"])
def test_weights_are_loaded_from_a_local_file(suffix: str, classes: int, tmp_path: Path) -> None:
    network = timm.create_model("test_vit", num_classes=classes)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(network.state_dict(), path)
    else:
        torch.save({"state_dict": network.state_dict()} if suffix == ".pth" else network.state_dict(), path)
    teacher = frozen_teacher("test_vit", weights=path, grid=GRID)
    assert_close(teacher(photographs()), FrozenTeacher(network, GRID)(photographs()), atol=0.0, rtol=0.0)


def test_clip_needs_its_projection(tmp_path: Path) -> None:
    name = "vit_xsmall_patch16_clip_224.tinyclip_yfcc15m"
    network = timm.create_model(name)
    state = network.state_dict()
    save_file(state, tmp_path / "whole.safetensors")
    teacher = frozen_teacher(name, weights=tmp_path / "whole.safetensors", grid=GRID)
    assert_close(teacher(photographs()), FrozenTeacher(network, GRID)(photographs()), atol=0.0, rtol=0.0)
    save_file({k: v for k, v in state.items() if not k.startswith("head.")}, tmp_path / "trunk.safetensors")
    with pytest.raises(UserError, match=r"1 missing \(head\.weight\)"):
        frozen_teacher(name, weights=tmp_path / "trunk.safetensors", grid=GRID)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this must never run",)


def refused(capsys: pytest.CaptureFixture[str], name: str = "test_vit", **kwargs: Any) -> str:
    """Return the error message after checking that it is one line."""
    with pytest.raises(UserError) as caught:
        frozen_teacher(name, **{"grid": GRID, **kwargs})
    assert "never run" not in capsys.readouterr().out
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_wrong_files_are_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = timm.create_model("test_vit").state_dict()
    save_file({k: v for k, v in state.items() if k != "cls_token"}, tmp_path / "part.safetensors")
    save_file({**state, "blocks.9.norm1.bias": torch.zeros(1)}, tmp_path / "deeper.safetensors")
    save_file({**state, "norm.bias": torch.zeros(3)}, tmp_path / "shape.safetensors")
    torch.save({"model": Harmful()}, tmp_path / "harmful.pth")
    (tmp_path / "harmful.bin").write_bytes(pickle.dumps(Harmful()))
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("text.pth", "text.safetensors"):
        (tmp_path / name).write_text("no weights at all")
    for name, expected in {
        "part.safetensors": "1 missing (cls_token)",
        "deeper.safetensors": "1 unknown (blocks.9.norm1.bias)",
        "shape.safetensors": "1 of another shape (norm.bias)",
        "harmful.pth": "could run code and is not opened",
        "harmful.bin": "could run code and is not opened",
        "list.pth": "expected a state_dict of tensors",
        "text.pth": "text.pth",
        "text.safetensors": "cannot be read",
        "absent.pth": "no such file",
    }.items():
        message = refused(capsys, weights=tmp_path / name)
        assert message.startswith("--method.frozen_weights: ")
        assert expected in message, message


@pytest.mark.parametrize(
    ("name", "kwargs", "expected"),
    [
        ("vit_base_patch16_224.dinoo", {}, "did you mean 'vit_base_patch16_224.dino'?"),
        ("Dino", {}, "did you mean 'dino'?"),
        ("hub/owner/model", {}, "timm.list_models() lists them"),
        ("test_vit", {"channels": 13}, "trained on images of 3 channels, got 13"),
        ("test_resnet", {}, "it does not cut images into patches"),
        ("swin_tiny_patch4_window7_224", {}, "expected a ViT that returns one token for each patch of a 3x5 grid"),
        ("cait_xxs24_224", {}, "doesn't match model (224)"),  # accepts one size only
        ("xcit_nano_12_p16_224", {"grid": (0, 5)}, "0x5 grid"),
    ],
)
def test_networks_that_cannot_be_used_are_refused(
    name: str, kwargs: dict[str, Any], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, name, pretrained=False, **kwargs)
    assert message.startswith("--method.frozen: ")
    assert expected in message


def test_error_of_weights_that_cannot_be_loaded_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "give a file with --method.frozen_weights" in refused(capsys, "mixer_s16_224")  # timm has none
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert "give a file with --method.frozen_weights" in refused(capsys, "test_vit")
