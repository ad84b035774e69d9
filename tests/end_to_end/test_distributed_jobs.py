"""Fine-tuning, linear probe, segmentation, detection and tokenizer: several processes train what one process trains."""

from pathlib import Path

import pytest

from hardpatch.cli import main
from hardpatch.train.launch import launch
from hardpatch.train.metrics import read_metrics
from hardpatch.train.progress import Silent
from tests.distributed_runs import run_all
from tests.end_to_end import test_detect, test_segment
from tests.end_to_end.conftest import SMALL

LABELED = ["--batch_size", "8", "--steps", "6", "--log_every", "1", "--workers", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def commands(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    root = tmp_path_factory.mktemp("jobs")
    encoder = root / "encoder"
    four = [*SMALL, "--model.depth", "4", "--model.width", "32", "--verdict.checks", "0"]
    assert main(["pretrain", *four, "--data", str(images), "--steps", "2", "--out", str(encoder)]) == 0
    labeled = [str(encoder), "--train", str(images), "--val", str(images), *LABELED]
    augmented = ["--preset", "tiny", "--warmup_epochs", "0.5", "--drop_path", "0.2", "--mixup", "0.3", "--clip", "1"]
    pixels = test_segment.command(encoder, test_segment.write_data(root / "pixels"), root / "none", "--batch_size", "4")
    boxes = test_detect.command(encoder, test_detect.write_data(root), root / "none", "--batch_size", "4")
    tokens = ["--image_size", "16", "--patch_size", "4", "--vocabulary", "16", "--width", "8"]
    return {
        "finetune": ["finetune", *labeled, *augmented],
        "from_probe": ["finetune", *labeled],
        "ema": ["finetune", *labeled, *augmented, "--ema", "0.9", "--accumulation_steps", "2", "--drop_path", "0"],
        "linear": ["linear", *labeled, "--protocol", "paper", "--warmup_epochs", "0.5"],
        "segment": [*without_out(pixels), "--drop_path", "0.2", "--dropout", "0.3"],
        # with other seeds a rounding of 1e-7 puts another box on the edge of a sample, and a loss moves by 0.5 %
        "detect": [*without_out(boxes), "--steps", "4", "--log_every", "1", "--drop_path", "0.2", "--seed", "1"],
        "tokenizer": ["tokenizer", "--data", str(images), *LABELED, *tokens],
    }


def without_out(command: list[str]) -> list[str]:
    place = command.index("--out")
    return command[:place] + command[place + 2 :]


@pytest.fixture(scope="module")
def alone(commands: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    run_all(commands, folder, progress=Silent())
    return folder


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_losses_are_those_of_one_process(
    strategy: str, commands: dict[str, list[str]], alone: Path, tmp_path: Path
) -> None:
    if strategy == "fsdp2":
        commands = {name: command for name, command in commands.items() if name != "ema"}
    launch(run_all, commands, tmp_path, "--strategy", strategy, progress=Silent(), devices=2)
    for name in commands:
        expected, rows = (read_metrics(folder / name / "metrics.jsonl") for folder in (alone, tmp_path))
        assert len(rows) == len(expected) >= 4
        for one, other in zip(expected, rows, strict=True):
            losses = {key: value for key, value in one.items() if "loss" in key or key == "uneven_use"}
            assert {key: other[key] for key in losses} == pytest.approx(losses, rel=1e-5, abs=1e-7), (name, one["step"])
        assert (tmp_path / name / "result.json").is_file()
