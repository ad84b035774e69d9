"""Architecture that files do not say: on the command line of every verb, and what ``info`` prints."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close

import hardpatch
from hardpatch.cli import main
from hardpatch.errors import UserError
from hardpatch.methods.simmim import SimMIM
from tests.end_to_end.conftest import write_images

WIDTH, HEADS = 64, 2  # one head is usual for that width


def timm_vit(**changes: Any) -> Any:
    torch.manual_seed(0)
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": WIDTH, "depth": 2, "num_heads": HEADS, "num_classes": 3}
    return timm.models.VisionTransformer(**settings | changes).eval()


def test_heads_on_the_command_line_of_the_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vit, file = timm_vit(), tmp_path / "vit.safetensors"
    save_file(vit.state_dict(), file)
    write_images(tmp_path / "train", each=6)
    train = str(tmp_path / "train")
    assert (
        main(["embed", str(file), train, "--heads", "2", "--pool", "class", "--out", str(tmp_path / "2.parquet")]) == 0
    )
    assert main(["embed", str(file), train, "--pool", "class", "--out", str(tmp_path / "1.parquet")]) == 0
    assert "heads: 1, as usual for a width of 64; --heads N says otherwise" in capsys.readouterr().err
    one, two = (torch.tensor(pq.read_table(tmp_path / f"{n}.parquet")["embedding"].to_pylist()) for n in (1, 2))
    assert not torch.allclose(one, two, atol=1e-3)
    outputs = []
    for verb in ("knn", "linear"):
        command = [verb, str(file), "--train", train, "--val", train, "--cache", str(tmp_path / "cache")]
        for heads in (["--heads", "2"], ["--heads", "1"], ["--heads", "2"]):
            assert main([*command, *heads, "--batch_size", "4"]) == 0
            outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[2]
    assert len(list((tmp_path / "cache").iterdir())) == 2  # of two numbers of heads
    assert main(["info", str(file), "--heads", "2"]) == 0
    assert "64 wide, 2 blocks of 2 heads" in capsys.readouterr().out
    assert main(["knn", str(file), "--train", train, "--val", train, "--heads", "5"]) == 2
    assert "heads: expected a divisor of the width 64, got 5" in capsys.readouterr().err


@torch.no_grad()
def test_the_size_that_a_file_was_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vit, file = timm_vit(img_size=(16, 48)), tmp_path / "vit.safetensors"  # 2 x 6 patches and a class token
    save_file(vit.state_dict(), file)
    pixels = torch.randn(2, 3, 16, 48)
    expected = vit.forward_features(pixels)
    assert_close(hardpatch.load(file, heads=2, image_size=(16, 48)).encode(pixels), expected, rtol=1e-5, atol=1e-5)
    assert main(["info", str(file)]) == 2
    assert "--trained_size H W says which" in capsys.readouterr().err
    assert main(["info", str(file), "--heads", "2", "--trained_size", "16", "48"]) == 0
    assert "16 x 48 px, 3 channels, 2 x 6 patches of 8 px" in capsys.readouterr().out
    assert main(["info", str(file), "--heads", "2", "--trained_size", "32", "48"]) == 2
    assert "correct --trained_size" in capsys.readouterr().err
    said = ["--heads", "2", "--trained_size", "16", "48"]
    assert main(["export", str(file), "--to", "timm", "--out", str(tmp_path / "out.safetensors"), *said]) == 0
    assert_close(hardpatch.load(tmp_path / "out.safetensors").encode(pixels), expected, rtol=1e-5, atol=1e-5)


def test_fine_tuning_records_what_was_said(tmp_path: Path) -> None:
    file = tmp_path / "vit.safetensors"
    save_file(timm_vit(img_size=(16, 48)).state_dict(), file)
    write_images(tmp_path / "train", each=6)
    command = ["finetune", str(file), "--train", str(tmp_path / "train"), "--val", str(tmp_path / "train")]
    said = ["--heads", "2", "--trained_size", "16", "48", "--steps", "1", "--batch_size", "4", "--workers", "0"]
    assert main([*command, *said, "--out", str(tmp_path / "run")]) == 0
    config = (tmp_path / "run/config.yaml").read_text()
    assert "heads: 2" in config
    assert "trained_size:" in config
    assert main([*command, "--heads", "2", "--trained_size", "16", "--steps", "1", "--out", str(tmp_path / "no")]) == 2
    assert not (tmp_path / "no").exists()


def test_info_lists_every_tensor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, state = tmp_path / "vit.safetensors", timm_vit().state_dict()
    save_file(state, file)
    assert main(["info", str(file), "--heads", "2"]) == 0
    out = capsys.readouterr().out
    matched, left_out = len([name for name in state if not name.startswith("head.")]), 2
    assert f"{matched} tensors matched (timm's names), every one of the encoder" in out
    assert "  blocks.0-1.attn.qkv.weight [192, 64]\n" in out
    assert "  pos_embed [1, 17, 64]\n" in out
    assert f"{left_out} tensors left out, which are no part of the model\n  head.bias [3]\n" in out
    save_file(state | {"blocks.0.gate": torch.ones(3)}, file)
    assert main(["info", str(file)]) == 2
    assert "blocks.0.gate" in capsys.readouterr().err


def test_a_tensor_that_some_blocks_have_is_listed_with_their_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = timm_vit(depth=4).state_dict()
    file = tmp_path / "vit.safetensors"
    save_file(state | {f"decoder.{block}.weight": torch.ones(1) for block in (0, 1, 3)}, file)
    assert main(["info", str(file), "--heads", "2"]) == 0
    out = capsys.readouterr().out
    assert "  blocks.0-3.attn.qkv.weight [192, 64]\n" in out
    assert "  decoder.0,1,3.weight [1]\n" in out


def state_of_simmim(host: SimMIM) -> dict[str, Tensor]:
    """Return a SimMIM host's weights in the names of SimMIM's code, whose queries and values alone have a bias."""
    state: dict[str, Tensor] = {}
    for name, value in host.state_dict().items():
        inner = name.removeprefix("encoder.")
        if not name.startswith("encoder."):
            continue
        inner = inner.replace("relative_bias.table", "rel_pos_bias.relative_position_bias_table")
        inner = inner.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2")
        if inner.endswith("attn.qkv.bias"):
            query, key, of_value = value.chunk(3)
            assert not key.any()
            prefix = inner.removesuffix("qkv.bias")
            state |= {f"encoder.{prefix}q_bias": query.clone(), f"encoder.{prefix}v_bias": of_value.clone()}
            continue
        state[f"encoder.{inner}"] = value
    head = host.state_dict()["head.weight"]
    return state | {"decoder.0.weight": head[:, :, None, None], "decoder.0.bias": torch.zeros(len(head))}


@torch.no_grad()
def test_a_checkpoint_of_simmim(tmp_path: Path) -> None:
    torch.manual_seed(0)
    host = SimMIM(
        image_size=(32, 32), patch_size=8, width=WIDTH, depth=2, heads=2, positions="relative", layer_scale=0.1
    )
    for name, parameter in host.named_parameters():
        if not name.endswith("qkv.bias"):
            parameter.add_(0.05 * torch.randn_like(parameter))
    torch.save({"model": state_of_simmim(host), "epoch": 7}, tmp_path / "simmim.pth")
    pixels = torch.randn(2, 3, 32, 32)
    assert_close(hardpatch.load(tmp_path / "simmim.pth").encode(pixels), host.encode(pixels), rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_a_checkpoint_of_ibot(tmp_path: Path) -> None:
    student, teacher = timm_vit(num_classes=0), timm_vit(num_classes=0)
    teacher.norm.bias.add_(1.0)
    head = {"head.mlp.0.weight": torch.zeros(4, WIDTH), "head.last_layer2.weight_g": torch.zeros(9, 1)}

    def wrapped(vit: Any, prefix: str) -> dict[str, Tensor]:
        state = vit.state_dict() | {"masked_embed": torch.zeros(1, WIDTH)}
        return {f"{prefix}backbone.{name}": value for name, value in state.items()} | {
            f"{prefix}{name}": value for name, value in head.items()
        }

    file = tmp_path / "checkpoint.pth"
    torch.save({"student": wrapped(student, "module."), "teacher": wrapped(teacher, ""), "epoch": 3}, file)
    pixels = torch.randn(2, 3, 32, 32)
    for weights, vit in (("auto", teacher), ("teacher", teacher), ("student", student)):
        features = hardpatch.load(file, weights, heads=2).encode(pixels)  # type: ignore[arg-type]
        assert_close(features, vit.forward_features(pixels), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_names_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vit = timm_vit()
    for name in ("owner--mine", "timm--vit_tiny_patch16_224.augreg_in21k"):
        cached = tmp_path / f"models--{name}"
        (cached / "refs").mkdir(parents=True)
        (cached / "refs/main").write_text("c0ffee")
        (cached / "snapshots/c0ffee").mkdir(parents=True)
        save_file(vit.state_dict(), cached / "snapshots/c0ffee/model.safetensors")
        (cached / "snapshots/c0ffee/config.json").write_text('{"num_attention_heads": 2}')
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))  # read when the library is imported
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    pixels = torch.randn(2, 3, 32, 32)
    for name in ("hf:owner/mine", "hf:owner/mine@main", "timm:vit_tiny_patch16_224.augreg_in21k"):
        assert_close(hardpatch.load(name).encode(pixels), vit.forward_features(pixels), rtol=1e-5, atol=1e-5)
    for name, message in (
        ("hf:owner/other", "cannot be fetched from the hub"),
        ("hf:other", "expected hf:OWNER/NAME"),
        ("timm:vit_tiny_patch16_224.augreg_in21", "did you mean"),
        ("timm:nothing", "timm has no network named nothing"),
    ):
        with pytest.raises(UserError, match=message) as error:
            hardpatch.load(name)
        assert "\n" not in str(error.value)
