"""``hardpatch pretrain --init``: trainings that start from existing weights, through the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file, save_file

import hardpatch
from hardpatch.cli import main
from hardpatch.interchange.backbone import load_backbone
from hardpatch.train import checkpoint
from tests.end_to_end.conftest import write_images

QUICK = [
    *(
        "--recipe",
        "demo",
        "--batch_size",
        "8",
        "--train.log_every",
        "1",
        "--data.workers",
        "0",
        "--train.device",
        "cpu",
    ),
    *("--optim.lr", "1e-3", "--method.alpha_start", "0.3", "--model.decoder_width", "16", "--model.decoder_heads", "2"),
    *("--data.image_size", "16", "--verdict.images", "8"),
]


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = timm.models.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, num_classes=0
    )
    file = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(network.state_dict(), file)
    return file


def weights_at(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / f"checkpoints/step_{step:08d}/model.safetensors")


def begin(vit: Path, images: Path, out: Path, *more: str) -> list[str]:
    data = ["--data", str(images), "--init", str(vit), "--init.heads", "2"]
    return ["pretrain", *QUICK, *data, "--out", str(out), *more]


def test_new_parts_learn_first_and_then_the_encoder(vit: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = [
        "--steps",
        "10",
        "--init.frozen",
        "0.5",
        "--train.checkpoint_steps",
        "1",
        "--train.keep_checkpoints",
        "20",
    ]
    assert main(begin(vit, images, out, *options)) == 0
    log = (out / "log.txt").read_text()
    assert f"--init: the encoder starts from {vit}" in log
    assert "--init: reconstructor: new, with random weights" in log
    assert "for the first 50% of the training the encoder is frozen" in log
    first, before, after = weights_at(out, 1), weights_at(out, 5), weights_at(out, 10)
    encoder = [name for name in first if name.startswith("student.host.encoder.")]
    decoder = "student.host.reconstructor.head.weight"
    start = load_backbone(vit, heads=2).encoder.state_dict()
    for name in encoder:
        assert torch.equal(before[name], start[name.removeprefix("student.host.encoder.")]), name
    assert not torch.equal(before[decoder], first[decoder])
    assert all(not torch.equal(after[name], before[name]) for name in encoder)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["encoder_factor"] for row in rows if "encoder_factor" in row][:5] == [0.0] * 5
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["model"]["width"] == config["init"]["encoder"]["width"] == 32
    metadata = checkpoint.read_metadata(out / "checkpoints/step_00000010/model.safetensors")
    assert metadata is not None
    assert metadata["encoder"]["positions"] == "learned"


def test_a_killed_run_does_not_need_the_weights_again(vit: Path, images: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(vit.read_bytes())
    options = ["--init.frozen", "0.4", "--init.frozen_blocks", "1", "--train.checkpoint_steps", "3"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(begin(moved, images, whole, *options, "--steps", "8", "--train.keep_checkpoints", "9")) == 0
    assert main(begin(moved, images, parts, *options, "--steps", "8", "--train.keep_checkpoints", "9")) == 0
    for step in (6, 8):  # as if it had been killed while the encoder was frozen
        folder = parts / f"checkpoints/step_{step:08d}"
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    rows = (parts / "metrics.jsonl").read_text().splitlines()
    (parts / "metrics.jsonl").write_text("\n".join(row for row in rows if json.loads(row)["step"] <= 3) + "\n")
    command = begin(moved, images, parts, *options, "--steps", "8", "--train.keep_checkpoints", "9")
    moved.unlink()
    assert main([*command, "--resume"]) == 0
    one, other = weights_at(whole, 8), weights_at(parts, 8)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    start = load_backbone(vit, heads=2).encoder.state_dict()
    for name in ("blocks.0.mlp.fc1.weight", "patch_embed.proj.weight", "cls_token", "positions"):
        assert torch.equal(one[f"student.host.encoder.{name}"], start[name])
        assert torch.equal(one[f"teacher.host.encoder.{name}"], start[name])
    assert not torch.equal(one["student.host.encoder.blocks.1.mlp.fc1.weight"], start["blocks.1.mlp.fc1.weight"])


def test_the_verdict_compares_with_the_start(run: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "more"
    command = ["pretrain", "--config", str(run / "config.yaml"), "--init", str(run), "--steps", "6", "--out", str(out)]
    assert main([*command, "--verdict.images", "12"]) == 0
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["init"]["frozen"] == 0.0  # all parts were there
    verdict = json.loads((out / "result.json").read_text())["verdict"]
    told = "\n".join(verdict["reasons"])
    assert "at the start" in told
    assert "untrained" not in told
    assert "were the best" in told or "are the best" in told
    kept = out / "best/model.safetensors"
    assert kept.is_file() == ("that it started from were the best" not in told)
    assert hardpatch.load(out).encode(torch.zeros(1, 3, 32, 32)).shape == (1, 65, 32)


def test_a_disaster_is_told_without_labels(run: Path, tmp_path: Path) -> None:
    unlabeled = tmp_path / "unlabeled"
    unlabeled.mkdir()
    for folder in sorted(write_images(tmp_path / "labeled", each=20).iterdir()):
        for file in folder.iterdir():
            file.rename(unlabeled / f"{folder.name}_{file.name}")
    out = tmp_path / "disaster"
    command = ["pretrain", "--config", str(run / "config.yaml"), "--init", str(run), "--data", str(unlabeled)]
    assert main([*command, "--steps", "64", "--verdict.images", "8", "--optim.lr", "1.0", "--out", str(out)]) == 0
    warned = [line for line in (out / "log.txt").read_text().splitlines() if "a lower rate" in line]
    assert any("directions (RankMe)" in line or "is being lost" in line or "the loss rises" in line for line in warned)
    verdict = json.loads((out / "result.json").read_text())["verdict"]
    assert verdict["learned"] == "no"


def test_a_plan_keeps_the_shape_of_the_weights(run: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["plan", str(images), "--hours", "0.004", "--init", str(run), "--batch_size", "4"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert "of --init: model.width 32, model.depth 2, model.heads 2" in lines["model"]
    assert "yours" not in lines["model"]
    assert lines["batch"].endswith("yours: batch_size 4")


def test_mistakes(vit: Path, images: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    out = tmp_path / "out"
    quick = ["pretrain", *QUICK, "--data", str(images), "--out", str(out)]
    assert "does not exist" in fails(*quick, "--init", tmp_path / "nothing.pth")
    assert "init.heads: expected with --init WEIGHTS" in fails(*quick, "--init.heads", "2")
    assert "model.depth: the weights of --init decide it, 2" in fails(
        *quick, "--init", vit, "--init.heads", "2", "--model.depth", "4"
    )
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><html></html>")
    assert "--init: " in (line := fails(*quick, "--init", tmp_path / "page.pth"))
    assert "HTML page" in line
    assert not out.exists()
