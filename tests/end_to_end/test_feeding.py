"""Images held in memory: with host the training is the same to the bit, with device the crops differ."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hardpatch.cli import main
from hardpatch.train.metrics import read_metrics
from tests.end_to_end.conftest import SMALL

Fails = Callable[..., str]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (newest,) = sorted((folder / "checkpoints").iterdir())[-1:]
    return load_file(newest / "model.safetensors")


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]


def test_images_in_memory_give_the_same_training(run: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "host"
    pretrain = ["pretrain", *SMALL, "--data", str(images), "--steps", "12", "--out", str(out)]
    assert main([*pretrain, "--data.in_memory", "host"]) == 0
    assert losses(out) == losses(run)
    expected = weights(run)
    for name, tensor in weights(out).items():
        assert torch.equal(tensor, expected[name]), name


def test_images_on_the_device_resume_exactly(images: Path, tmp_path: Path) -> None:
    (images.parent / "with_broken").mkdir(exist_ok=True)
    (images.parent / "with_broken" / "broken.jpg").write_bytes(b"no picture")
    for k, path in enumerate(sorted(images.rglob("*.jpg"))):
        (images.parent / "with_broken" / f"{k}.jpg").write_bytes(path.read_bytes())
    pretrain = ["pretrain", *SMALL, "--data", str(images.parent / "with_broken"), "--data.in_memory", "device"]
    pretrain += ["--train.checkpoint_steps", "4", "--train.keep_checkpoints", "9", "--steps", "8"]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert main([*pretrain, "--out", str(whole)]) == 0
    assert main([*pretrain, "--out", str(halves)]) == 0
    for path in sorted((halves / "checkpoints").iterdir())[1:]:  # as if the run had been killed after four steps
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    assert main([*pretrain, "--out", str(halves), "--resume"]) == 0
    expected = weights(whole)
    for name, tensor in weights(halves).items():
        assert torch.equal(tensor, expected[name]), name


def test_several_crops_of_an_image(images: Path, tmp_path: Path) -> None:
    pretrain = ["pretrain", *SMALL, "--data", str(images), "--data.crops", "4"]
    assert main([*pretrain, "--epochs", "8", "--out", str(tmp_path / "run")]) == 0
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 15  # 8 epochs of 30 images in batches of 16 crops
    assert last["epoch"] == 8.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.in_memory", "device", "--data.color_jitter", "0.4"], "data.color_jitter: in_memory device only"),
        (["--data.in_memory", "device", "--method.host", "ibot"], "data.in_memory: device gives one crop"),
        (["--data.crops", "3"], "data.crops: expected a divisor of batch_size=16, got 3"),
        (["--data.crops", "2", "--method.host", "ibot"], "data.crops: host ibot has its own crops"),
        (["--data.in_memory", "disk"], "data.in_memory: .*'no', 'host', 'device'"),
        (["--data.device_side", "0"], "data.device_side: expected a whole number from 1, got 0"),
    ],
)
def test_options_that_cannot_be_combined(fails: Fails, tmp_path: Path, arguments: list[str], message: str) -> None:
    line = fails("pretrain", *SMALL, "--steps", 1, "--out", tmp_path / "run", *arguments)
    assert re.search(message, line), line
    assert not (tmp_path / "run").exists()
