import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hardpatch.errors import UserError
from hardpatch.methods.teacher import Teacher
from hardpatch.train import checkpoint
from hardpatch.train.optimizer import parameter_groups
from hardpatch.train.saving import take_snapshot, write
from tests.small import small_hpm

IMAGES = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
MASK = torch.arange(24).lt(18).expand(2, 24)


class Run:
    """Student, teacher and optimizer after some steps."""

    def __init__(self, steps: int = 0, seed: int = 0) -> None:
        self.student = small_hpm(seed=seed)
        self.teacher = Teacher(self.student)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.student, 0.05), lr=1e-3, fused=True)
        for _ in range(steps):
            self.train()

    def train(self) -> None:
        self.optimizer.zero_grad()
        self.student(IMAGES, MASK).loss.backward()
        self.optimizer.step()
        self.teacher.update(self.student, 0.9)

    def save(self, folder: Path, step: int, keep: int = 2) -> Path:
        snapshot = take_snapshot(
            step,
            student=self.student,
            teacher=self.teacher.network,
            optimizer=self.optimizer,
            metadata={"step": step},
            scaler={"scale": 2.0},
            copied=False,
        )
        write(folder, snapshot, keep=keep)
        return folder / f"step_{step:08d}"

    def weights(self) -> list[torch.Tensor]:
        return [*self.student.state_dict().values(), *self.teacher.network.state_dict().values()]


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    one = Run(steps=3)
    path = one.save(tmp_path, 3)
    other = Run(steps=1, seed=5)
    step, scaler = checkpoint.restore(
        path, student=other.student, teacher=other.teacher.network, optimizer=other.optimizer
    )
    assert (step, scaler) == (3, {"scale": 2.0})
    for _ in range(2):
        one.train()
        other.train()
    assert all(map(torch.equal, one.weights(), other.weights()))


def test_the_same_state_gives_the_same_file(tmp_path: Path) -> None:
    one, other = (Run(steps=2).save(tmp_path / name, 2) for name in "ab")
    for name in (checkpoint.WEIGHTS, checkpoint.TRAINING):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_the_newest_are_kept_and_incomplete_ones_ignored(tmp_path: Path) -> None:
    run = Run()
    folder = tmp_path / "checkpoints"
    for step in (9, 10, 100):
        run.save(folder, step, keep=2)
    (folder / ".step_00000200.partial").mkdir()
    (folder / ".step_00000200.partial" / checkpoint.WEIGHTS).write_bytes(b"half")
    assert [path.name for path in checkpoint.checkpoints(folder)] == ["step_00000010", "step_00000100"]
    assert checkpoint.newest(tmp_path) == folder / "step_00000100"
    assert checkpoint.newest(tmp_path / "nowhere") is None
    run.save(folder, 200, keep=1)
    assert [path.name for path in sorted(folder.iterdir())] == ["step_00000200"]


def test_metadata(tmp_path: Path) -> None:
    path = Run().save(tmp_path, 4)
    assert checkpoint.read_metadata(path / checkpoint.WEIGHTS) == {"step": 4}
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert checkpoint.read_metadata(tmp_path / "other.safetensors") is None
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(UserError, match=r"broken.safetensors is not a safetensors file"):
        checkpoint.read_metadata(tmp_path / "broken.safetensors")


def test_files_have_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    path = Run(steps=1).save(tmp_path / "checkpoints", 1)
    for file in path.iterdir():
        assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_checkpoint_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    path = Run(steps=1).save(tmp_path, 1)
    for file, name, wrong in (
        (checkpoint.WEIGHTS, "student.host.encoder.norm.weight", torch.zeros(3)),
        (checkpoint.WEIGHTS, "student.host.encoder.norm.weight", torch.zeros(32, dtype=torch.float16)),
        (checkpoint.TRAINING, "host.encoder.norm.weight/exp_avg", torch.zeros(3)),
        (checkpoint.TRAINING, "other.weight/exp_avg", torch.zeros(3)),
    ):
        run = Run(steps=1)
        path = run.save(tmp_path, 1)
        metadata = checkpoint.read_metadata(path / file)
        save_file(load_file(path / file) | {name: wrong}, path / file, {"hardpatch": json.dumps(metadata)})
        part = name.removeprefix("student.").partition("/")[0]
        with pytest.raises(UserError, match=rf"^--resume: .*step_00000001 does not fit the run: .*{part}.*delete"):
            checkpoint.restore(path, student=run.student, teacher=run.teacher.network, optimizer=run.optimizer)


def test_a_checkpoint_after_the_step_of_the_run_is_set_aside(tmp_path: Path) -> None:
    run = Run(steps=1)
    for step in (2, 4, 8):
        run.save(tmp_path, step, keep=9)
    run.save(tmp_path, 5, keep=2)  # resumed from step 4, since 8 is damaged
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        *("damaged_step_00000008", "step_00000004", "step_00000005")
    ]


@pytest.mark.parametrize("killed", ["os.replace", "shutil.rmtree"])
def test_a_kill_while_an_old_checkpoint_is_removed(
    killed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(steps=1)
    run.save(tmp_path, 1, keep=1)
    original = os.replace if killed == "os.replace" else shutil.rmtree

    def stop(path: Path, *arguments: Any, **options: Any) -> None:
        if "step_00000001" in Path(path).name and ".partial" not in Path(path).name:
            raise KeyboardInterrupt
        original(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(killed, stop)
        with pytest.raises(KeyboardInterrupt):
            run.save(tmp_path, 2, keep=1)
    assert all(path.name in ("step_00000001", "step_00000002") for path in checkpoint.checkpoints(tmp_path))
    run.save(tmp_path, 3, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000003"]
