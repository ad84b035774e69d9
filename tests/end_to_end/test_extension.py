"""Runs of pretrain that are made longer with --resume."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import hardpatch
from hardpatch.cli import main
from hardpatch.configuration import config
from hardpatch.data.order import TrainingOrder
from hardpatch.errors import UserError
from hardpatch.pretrain.folder import configure
from hardpatch.pretrain.run import train
from hardpatch.train.metrics import read_metrics
from tests.end_to_end.conftest import SMALL

OPTIONS = [*SMALL, "--checks", "0", "--train.log_every", "1", "--train.keep_checkpoints", "9"]
CONSTANT = ["--schedule", "constant", "--warmup", "0", "--alpha_end", "0.3", "--momentum_end", "0.95"]


def pretrain(folder: Path, images: Path, *more: str) -> Path:
    """Train as the command line does, without its pictures, which take longer than the steps."""
    settings = [f"--{name}={value}" for name, value in pairs([*OPTIONS[2:], *more])]
    run, _ = configure("demo", None, str(images), folder, settings)
    train(run, folder, pictures=False)
    return folder


def resume(folder: Path, *more: str) -> None:
    """Resume, likewise."""
    settings = [f"--{name}={value}" for name, value in pairs(more)]
    run, _ = configure(None, None, None, folder, settings, resume=True)
    train(run, folder, resume=True, pictures=False, arguments=["pretrain", *more], names=config.names_in(settings))


def pairs(options: Sequence[str]) -> Iterator[tuple[str, str]]:
    return zip((option.removeprefix("--") for option in options[::2]), options[1::2], strict=True)


def tensors(folder: Path, step: int) -> dict[str, torch.Tensor]:
    saved = folder / "checkpoints" / f"step_{step:08d}"
    return load_file(saved / "model.safetensors") | load_file(saved / "training.safetensors")


def same_tensors(one: Path, other: Path, step: int) -> bool:
    mine, others = tensors(one, step), tensors(other, step)
    return mine.keys() == others.keys() and all(torch.equal(mine[name], others[name]) for name in mine)


def metrics(folder: Path) -> list[dict[str, float]]:
    rows = read_metrics(folder / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


def rates(folder: Path) -> list[float]:
    return [row["lr"] for row in metrics(folder)]


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pre-train for ten steps of the usual cosine, with a checkpoint after five."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return pretrain(folder, images, "--steps", "10", "--train.checkpoint_steps", "5")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def test_ten_steps_extended_to_twenty_are_twenty_steps(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = pretrain(tmp_path / "whole", images, *CONSTANT, "--steps", "20")
    run = pretrain(tmp_path / "run", images, *CONSTANT, "--steps", "10")
    capsys.readouterr()
    assert main(["pretrain", "--resume", "--out", str(run), "--steps", "20"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "changed from step 10 on: steps 10 -> 20; extensions [] -> ['after 10 of 10 steps: 20 steps, same']" in said
    assert "extended after step 10 of 10 to 20 steps: exactly as a run of 20 steps from the start" in said
    assert same_tensors(run, whole, 20)
    assert metrics(run) == metrics(whole)
    # the images of a step do not depend on the length, nor on where the loader begins
    order = iter(TrainingOrder(30, 16, seed=0, start=0, rank=0, world_size=1))
    first = [next(order).tolist() for _ in range(20)]
    again = iter(TrainingOrder(30, 16, seed=0, start=10, rank=0, world_size=1))
    assert [next(again).tolist() for _ in range(10)] == first[10:]


def test_epochs_extend_a_run_and_its_result_is_kept(images: Path, tmp_path: Path) -> None:
    run = pretrain(tmp_path / "run", images, "--epochs", "2")
    assert main(["pretrain", "--resume", "--out", str(run), "--epochs", "4"]) == 0
    values = yaml.safe_load((run / "config.yaml").read_text())
    assert values["epochs"] == 4.0
    assert values["extensions"] == ["after 4 of 4 steps: 8 steps, rewarm"]
    assert json.loads((run / "result_step_00000004.json").read_text())["steps"] == 4
    assert json.loads((run / "result.json").read_text())["steps"] == 8
    (change,) = json.loads((run / "environment.json").read_text())["changes"]
    assert change["step"] == 4
    assert change["settings"]["epochs"] == [2.0, 4.0]
    assert change["command"] == f"hardpatch pretrain --resume --out {run} --epochs 4"


def test_a_finished_cosine_is_warmed_up_again(run: Path) -> None:
    before = rates(run)
    resume(run, "--steps", "20")
    assert rates(run)[:10] == before
    assert rates(run)[10:] == pytest.approx(before)  # another ten steps of the same curve
    alphas = [row["alpha"] for row in metrics(run)]
    assert alphas[:10] == sorted(alphas[:10])
    assert alphas[10:] == [0.5] * 10  # the curriculum stays at its end


def test_an_unfinished_cosine_is_held_and_cooled(run: Path) -> None:
    shutil.rmtree(run / "checkpoints" / "step_00000010")
    before = rates(run)
    resume(run, "--steps", "15")
    assert rates(run)[:5] == before[:5]
    assert rates(run)[5:14] == [before[5]] * 9
    assert rates(run)[14] < before[5]
    alphas = [row["alpha"] for row in metrics(run)]
    assert alphas == sorted(alphas)
    assert alphas[5] == pytest.approx(0.3 + 0.5 * 0.2)
    assert alphas[14] == pytest.approx(0.3 + (0.5 + 0.5 * 9 / 10) * 0.2)


def test_extended_twice_and_killed_in_between_it_ends_with_the_same_bits(run: Path, tmp_path: Path) -> None:
    resume(run, "--steps", "16", "--extend", "rewarm")
    resume(run, "--steps", "22")
    texts = yaml.safe_load((run / "config.yaml").read_text())["extensions"]
    assert texts == ["after 10 of 10 steps: 16 steps, rewarm", "after 16 of 16 steps: 22 steps, rewarm"]
    other = shutil.copytree(run, tmp_path / "other")
    for step in (20, 22):
        shutil.rmtree(other / "checkpoints" / f"step_{step:08d}")  # as if killed before the next checkpoint, at 15 + 5
    resume(other)
    assert same_tensors(run, other, 22)
    assert metrics(run) == metrics(other)
    assert yaml.safe_load((other / "config.yaml").read_text())["extensions"] == texts
    # the settings of the extended run are a recipe: a new run of them takes the same way
    again = tmp_path / "again"
    assert main(["pretrain", "--config", str(run / "config.yaml"), "--out", str(again)]) == 0
    assert same_tensors(run, again, 22)


def test_killed_before_the_first_step_of_an_extension_it_keeps_it(run: Path, tmp_path: Path) -> None:
    whole = shutil.copytree(run, tmp_path / "whole")
    resume(whole, "--steps", "14")
    for step in (14,):
        shutil.rmtree(whole / "checkpoints" / f"step_{step:08d}")
    resume(whole)
    resume(run, "--steps", "14")
    assert same_tensors(run, whole, 14)


def test_lengths_that_are_refused(run: Path, fails: Callable[..., str]) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    line = fails("pretrain", "--resume", "--out", run, "--steps", "8")
    assert line.endswith(
        "--resume: 10 steps are done, and with this length the run has 8; expected more than 10 steps, or leave "
        "--epochs and --steps out"
    )
    assert "steps was 10, now 20" in fails("pretrain", "--resume", "--out", run, "--steps", "20", "--extend", "no")
    line = fails("pretrain", "--resume", "--out", run, "--steps", "20", "--batch_size", "8")
    assert "batch_size was 16, now 8; take those, or another --out; with --resume may change: length" in line
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_fewer_steps_than_planned_but_more_than_done(run: Path) -> None:
    shutil.rmtree(run / "checkpoints" / "step_00000010")
    resume(run, "--steps", "7")
    assert metrics(run)[-1]["step"] == 7
    assert json.loads((run / "result.json").read_text())["steps"] == 7


def test_python_extends_a_run(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    resume(run, "--steps", "13", "--extend", "hold")
    settings: dict[str, Any] = {"steps": 13, "train.extend": "hold"}
    result = hardpatch.pretrain(out=other, resume=True, **settings)
    assert (result.step, result.total) == (13, 13)
    assert same_tensors(run, other, 13)
    with pytest.raises(UserError, match="13 steps are done"):
        hardpatch.pretrain(out=other, resume=True, steps=12)


def test_a_lower_peak_learning_rate(run: Path, capsys: pytest.CaptureFixture[str], fails: Callable[..., str]) -> None:
    shutil.rmtree(run / "checkpoints" / "step_00000010")
    before = rates(run)
    assert main(["pretrain", "--resume", "--out", str(run), "--optim.lr", "5e-4"]) == 0
    assert "changed from step 5 on: optim.lr 0.001 -> 0.0005" in capsys.readouterr().err
    assert rates(run) == pytest.approx([*before[:5], *(rate / 2 for rate in before[5:])])
    resume(run)
    assert rates(run)[5] == before[5] / 2
    assert "optim.min_lr was" in fails("pretrain", "--resume", "--out", run, "--optim.min_lr", "1e-5")


def test_another_precision_and_micro_batches_are_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run / "checkpoints" / "step_00000010")
    resume(run, "--train.precision", "bf16", "--optim.accumulation_steps", "2", "--data.workers", "1")
    (change,) = json.loads((run / "environment.json").read_text())["changes"]
    assert (change["step"], change["settings"]) == (
        5,
        {
            "data.workers": [0, 1],
            "optim.accumulation_steps": [1, 2],
            "train.precision": ["auto", "bf16"],
        },
    )
    assert metrics(run)[-1]["step"] == 10
