"""Steps that are NaN or infinite: skipped, dumped, and what follows if there are too many."""

import json
import math
import os
import re
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hardpatch.cli import main
from hardpatch.pretrain.step import Learner
from hardpatch.train import checkpoint
from hardpatch.train.launch import launch
from hardpatch.train.metrics import read_metrics
from hardpatch.train.progress import Silent
from tests.distributed_runs import pretrain_poisoned
from tests.end_to_end.conftest import SMALL
from tests.end_to_end.test_distributed import COMMON

STEPS = 8

Poison = Callable[..., None]
"""Makes the pixels of some steps NaN, counted from 1: ``poison(3, 5)``"""


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save time: the pictures of a finished run are not looked at."""
    monkeypatch.setattr("hardpatch.pretrain.run.write_pictures", lambda job: ())


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Poison:
    original = Learner.inputs

    def poisoned(*steps: int) -> None:
        def inputs(self: Learner, batch: Any) -> Any:
            result = original(self, batch)
            if self.step + 1 in steps:
                result.images[0] = math.nan
            return result

        monkeypatch.setattr(Learner, "inputs", inputs)

    return poisoned


def command(images: Path, out: Path, *more: str) -> list[str]:
    each = ["--train.log_every", "1", "--train.checkpoint_steps", "1", "--train.keep_checkpoints", "20"]
    options = [*SMALL, *each, "--verdict.checks", "0", "--data", str(images), "--steps", str(STEPS)]
    return ["pretrain", *options, "--out", str(out), *more]


def tensors(run: Path, step: int) -> dict[str, Tensor]:
    """Return weights and optimizer state of a checkpoint."""
    folder = run / "checkpoints" / f"step_{step:08d}"
    return load_file(folder / checkpoint.WEIGHTS) | load_file(folder / checkpoint.TRAINING)


def losses(run: Path) -> dict[int, float | None]:
    return {row["step"]: row.get("loss") for row in read_metrics(run / "metrics.jsonl")}


HOSTS = {
    "hpm": (),
    "fast": ("--fast.remember", "true"),
    "ibot": (
        *("--method.host", "ibot", "--method.mask_ratio", "0.3", "--ibot.outputs", "16", "--ibot.head_hidden", "8"),
        *("--ibot.local_crops", "2", "--ibot.local_size", "8"),
    ),
}


@pytest.mark.parametrize("host", HOSTS)
def test_a_bad_step_changes_no_weight_and_the_next_one_goes_on(
    host: str, images: Path, tmp_path: Path, poison: Poison, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(4, STEPS)
    run = tmp_path / "run"
    assert main(command(images, run, *HOSTS[host])) == 0
    assert "step 4: its loss or gradient is NaN or infinite, and no weight was changed" in capsys.readouterr().err
    assert not (run / "checkpoints" / "step_00000004").exists()  # there is nothing new to save
    last, before = tensors(run, STEPS), tensors(run, STEPS - 1)
    unchanged = [name for name in before if not name.startswith(("teacher.", "memory/"))]
    unchanged += [name for name in before if "_cent" in name]  # iBOT's
    assert {name: bool(torch.equal(last[name], before[name])) for name in unchanged} == dict.fromkeys(unchanged, True)
    assert all(value.isfinite().all() for name, value in last.items() if not name.startswith("memory/"))
    remembered = [value for name, value in last.items() if name.startswith("memory/")]
    assert not any(value.isinf().any() for value in remembered)
    assert all(value.isfinite().any() for value in remembered)
    found = losses(run)
    assert [step for step, loss in found.items() if loss is None] == [4, STEPS]
    assert read_metrics(run / "metrics.jsonl")[-1]["skipped_steps"] == 2
    if host != "hpm":
        return
    healthy = tmp_path / "healthy"
    poison()
    assert main(command(images, healthy, *HOSTS[host])) == 0
    expected = losses(healthy)
    assert [found[step] for step in (1, 2, 3)] == [expected[step] for step in (1, 2, 3)]
    assert found[5] != expected[5]  # which had one more update


def test_a_run_that_is_killed_after_a_bad_step_resumes_to_the_same_bits(
    images: Path, tmp_path: Path, poison: Poison
) -> None:
    poison(3, 6)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    more = ("--optim.accumulation_steps", "2", "--bad_steps", "2")
    assert main(command(images, whole, *more)) == 0
    original = Learner.train_step

    def train_step(self: Learner, *arguments: Any, **options: Any) -> Any:
        if self.step == 5 and not killed_before:
            killed_before.append(True)
            os.kill(os.getpid(), signal.SIGTERM)  # in the step that is bad: its checkpoint does not wait
        return original(self, *arguments, **options)

    killed_before: list[bool] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "train_step", train_step)
        assert main(command(images, killed, *more)) == 128 + signal.SIGTERM
    saved = checkpoint.newest(killed)
    assert saved is not None
    state = (checkpoint.read_metadata(saved / checkpoint.WEIGHTS) or {})["bad_steps"]
    assert state == {"skipped": 2, "window": [3, 6], "rollbacks": 0, "rolled_back_to": None}
    assert main(["pretrain", "--resume", "--out", str(killed)]) == 0
    for file in (checkpoint.WEIGHTS, checkpoint.TRAINING):
        name = f"checkpoints/step_{STEPS:08d}/{file}"
        assert (whole / name).read_bytes() == (killed / name).read_bytes()
    assert losses(whole) == losses(killed)


def test_a_divergence_stops_with_a_command_that_works(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "a run"
    wild = ("--optim.lr", "1e12", "--bad_steps", "2", "--rollback_lr", "1e-15", "--keep_checkpoints", "1")
    assert main(command(images, run, *wild)) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    bad = next(step for step, loss in losses(run).items() if loss is None)
    assert f"in 3 of the last 100 steps, up to step {bad + 2}, the limit is 2" in line
    saved = checkpoint.newest(run)
    assert saved is not None
    assert saved.name == f"step_{bad - 1:08d}"
    assert f"To go on from {saved.name} with 1e-15 times the learning rate: " in line
    replayed = re.search(r"; (hardpatch replay .*) names the module", line)
    assert replayed is not None
    assert main(shlex.split(replayed[1])[1:]) == 0
    assert "first module: " in capsys.readouterr().out
    advised = re.search(r"learning rate: (hardpatch pretrain .*);", line)
    assert advised is not None
    code = main(shlex.split(advised[1])[1:])
    assert (code, "step_00000008" in str(checkpoint.newest(run))) in ((0, True), (1, False))
    # the weights were blown up before the checkpoint; going back further is what `rollback` does
    assert "--on_divergence rollback does so by itself" in line


def test_a_divergence_goes_back_with_a_lower_rate(
    images: Path, tmp_path: Path, poison: Poison, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    calls: list[int] = []
    original = Learner.inputs

    def inputs(self: Learner, batch: Any) -> Any:
        result = original(self, batch)
        if self.step + 1 in (5, 6) and len(calls) < 4:  # twice: before and after the first rollback
            calls.append(self.step)
            result.images[0] = math.nan
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "inputs", inputs)
        assert main(command(images, run, "--on_divergence", "rollback", "--bad_steps", "1")) == 0
    log = capsys.readouterr().err
    assert "Back to step_00000004 with 0.5 times the learning rate (rollback 1 of 3)" in log
    assert "led to a divergence twice; it is now diverged_step_00000004" in log
    assert "Back to step_00000003 with 0.25 times the learning rate (rollback 2 of 3)" in log
    plain = tmp_path / "plain"
    assert main(command(images, plain)) == 0
    rows, expected = (read_metrics(folder / "metrics.jsonl") for folder in (run, plain))
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    factors = [row["lr"] / other["lr"] if other["lr"] else 1.0 for row, other in zip(rows, expected, strict=True)]
    assert factors == pytest.approx([1.0, 1.0, 1.0, *[0.25] * 5])
    saved = checkpoint.newest(run)
    assert saved is not None
    state = (checkpoint.read_metadata(saved / checkpoint.WEIGHTS) or {})["bad_steps"]
    assert state == {"skipped": 4, "window": [], "rollbacks": 2, "rolled_back_to": 3}
    at_three = [tensors(folder, 3) for folder in (run, plain)]
    assert all(torch.equal(at_three[0][name], value) for name, value in at_three[1].items())


def test_rollbacks_have_a_limit_and_need_a_checkpoint(
    images: Path, tmp_path: Path, poison: Poison, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(*range(3, STEPS + 1))
    back = ("--on_divergence", "rollback", "--bad_steps", "0")
    assert main(command(images, tmp_path / "run", *back, "--max_rollbacks", "1")) == 1
    lines = capsys.readouterr().err.splitlines()
    assert sum("(rollback 1 of 1)" in line for line in lines) == 1
    assert "To go on from step_00000002 with 0.5 times the learning rate: " in lines[-1]
    poison(1)
    assert main(command(images, tmp_path / "first", *back)) == 1
    assert "there is no checkpoint to go back to. To start again with 0.5 times" in capsys.readouterr().err
    poison()
    assert main(["pretrain", "--resume", "--out", str(tmp_path / "first"), "--lr_factor", "0.5"]) == 0


def test_dumps_are_few_and_hold_the_batch(images: Path, tmp_path: Path, poison: Poison) -> None:
    poison(2, 3, 5, 7)
    assert main(command(images, tmp_path / "run", "--dumps", "2")) == 0
    dumps = sorted((tmp_path / "run" / "dumps").iterdir())
    assert [path.name for path in dumps] == ["step_00000002", "step_00000005"]  # those of step 3 would be the same
    facts = json.loads((dumps[1] / "dump.json").read_text())
    assert (facts["step"], facts["updates_since"], facts["processes"], facts["ranks"]) == (5, 0, 1, [0])
    assert facts["metadata"]["config"]["batch_size"] == 16
    assert "host.encoder.norm.weight" in facts["gradients_not_finite"]
    batch, weights = (load_file(dumps[1] / name) for name in ("batch_0.safetensors", "weights.safetensors"))
    assert batch["images"].shape == (16, 3, 32, 32)
    before = tensors(tmp_path / "run", 4)
    student = [name for name in weights if name.startswith("student.")]
    assert all(torch.equal(weights[name], before[name]) for name in student)
    assert math.hypot(
        *(weights[f"student.host.encoder.norm.{name}"].norm().item() for name in ("weight", "bias"))
    ) == pytest.approx(facts["weight_norms"]["student.host.encoder.norm"], rel=1e-6)


def test_processes_skip_the_same_steps(images: Path, tmp_path: Path) -> None:
    settings = [*COMMON, f"--data.path={images}", "--steps=7", "--train.checkpoint_steps=3"]
    bad = (2, 4)
    pretrain_poisoned(settings, tmp_path / "one", bad, 0, progress=Silent())
    launch(pretrain_poisoned, settings, tmp_path / "two", bad, 1, progress=Silent(), devices=2)
    expected = losses(tmp_path / "one" / "ddp")
    assert [step for step, loss in expected.items() if loss is None] == [2, 4]
    for strategy in ("ddp", "fsdp2"):
        run = tmp_path / "two" / strategy
        found = losses(run)
        assert [step for step, loss in found.items() if loss is None] == [2, 4]
        good = {step: loss for step, loss in expected.items() if loss is not None}
        assert {step: found[step] for step in good} == pytest.approx(good, rel=1e-5)
        assert sorted(path.name for path in (run / "dumps" / "step_00000002").iterdir()) == [
            *("batch_1.safetensors", "dump.json", "weights.safetensors")  # the other process had no NaN of its own
        ]
        one, two = (tensors(folder, 7) for folder in (tmp_path / "one" / "ddp", run))
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-3, atol=2e-4)
