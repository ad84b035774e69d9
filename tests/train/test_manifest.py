"""Damaged checkpoints are told from whole ones, with and without a manifest."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hardpatch.errors import UserError
from hardpatch.train import checkpoint
from hardpatch.train.checkpoint import TRAINING, WEIGHTS
from hardpatch.train.manifest import MANIFEST, damage, write_manifest
from tests.train.test_checkpoint import Run


def change(file: Path, change_tensors: Callable[[dict[str, Tensor]], object]) -> None:
    """Write a file again with other tensors and the same metadata."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    change_tensors(tensors)
    save_file(tensors, file, metadata)


def truncate(folder: Path) -> None:
    content = (folder / TRAINING).read_bytes()
    (folder / TRAINING).write_bytes(content[: len(content) // 2])


def rot(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-5] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def swap(folder: Path) -> None:
    shutil.copy(folder.parent / "step_00000002" / TRAINING, folder / TRAINING)


def nan(folder: Path) -> None:
    change(folder / WEIGHTS, lambda tensors: tensors["student.host.encoder.norm.weight"].fill_(torch.nan))


def forget(folder: Path) -> None:
    change(folder / TRAINING, lambda tensors: tensors.pop("host.encoder.norm.weight/exp_avg"))


def halve(folder: Path) -> None:
    name = "student.host.encoder.norm.weight"
    change(folder / WEIGHTS, lambda tensors: tensors.update({name: tensors[name].half()}))


def reshape(folder: Path) -> None:
    name = "host.encoder.norm.weight/exp_avg"
    change(folder / TRAINING, lambda tensors: tensors.update({name: tensors[name][1:].clone()}))


DAMAGES: dict[Callable[[Path], object], tuple[str, str]] = {
    truncate: ("bytes, .* were written", "it cannot be read: "),
    rot: (f"{WEIGHTS} is not as it was written", ""),
    swap: (f"{TRAINING} is not as it was written|bytes, .* were written", f"{TRAINING} is that of step 2"),
    nan: (f"{WEIGHTS} is not as it was written", f"norm.weight in {WEIGHTS} is NaN or infinite"),
    forget: ("were written", f"{TRAINING} lacks state of host.encoder.norm.weight"),
    halve: ("were written", f"norm.weight/exp_avg in {TRAINING} does not fit the weights"),
    reshape: ("were written", f"norm.weight/exp_avg in {TRAINING} does not fit the weights"),
    lambda folder: (folder / WEIGHTS).unlink(): (f"{WEIGHTS} is missing", f"{WEIGHTS} is missing"),
    lambda folder: (folder / TRAINING).unlink(): (f"{TRAINING} is missing", f"{TRAINING} is missing"),
    lambda folder: (folder / WEIGHTS).write_bytes(b""): ("has 0 bytes", "it cannot be read: "),
}
"""What may happen to a checkpoint, and why it is passed over: with a manifest, and without one"""


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Checkpoints of steps 2 and 4; returns the newer one."""
    run = Run(steps=2)
    run.save(tmp_path / "checkpoints", 2)
    run.train()
    return run.save(tmp_path / "checkpoints", 4)


@pytest.mark.parametrize("with_manifest", [True, False])
@pytest.mark.parametrize("harm", DAMAGES)
def test_the_checkpoint_before_a_damaged_one_is_used(
    harm: Callable[[Path], object], with_manifest: bool, saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reason = DAMAGES[harm][not with_manifest]
    if not with_manifest:  # as earlier versions wrote it
        for folder in saved.parent.iterdir():
            (folder / MANIFEST).unlink()
    assert damage(saved) is None
    assert checkpoint.newest_whole(saved.parents[1]) == saved
    harm(saved)
    if not reason:  # one bit of one weight: only a manifest tells
        assert damage(saved) is None
        return
    assert checkpoint.newest_whole(saved.parents[1]) == saved.parent / "step_00000002"
    (line,) = caplog.messages
    assert line.startswith(f"{saved} is damaged (")
    assert line.endswith("; step_00000002, the one before it, is used")
    assert re.search(reason, line)


def test_all_damaged(saved: Path) -> None:
    for folder in saved.parent.iterdir():
        truncate(folder)
    with pytest.raises(
        UserError, match=r"step_00000004 is damaged .*step_00000002 is damaged .*restore one from a copy"
    ):
        checkpoint.newest_whole(saved.parents[1])


def test_damage_of_the_optimizer_alone_does_not_keep_others_from_reading_the_weights(saved: Path) -> None:
    truncate(saved)
    assert checkpoint.newest_whole(saved.parents[1], (WEIGHTS,)) == saved


def test_a_broken_or_foreign_manifest(saved: Path) -> None:
    good = (saved / MANIFEST).read_text()
    for text in ("", "[]", "{}", good[:40], good.replace("sha256", "md5")):
        (saved / MANIFEST).write_text(text)
        assert damage(saved) == f"{MANIFEST} is broken"
    (saved / MANIFEST).write_text(good.replace('"step": 4', '"step": 3'))
    assert damage(saved) == f"{MANIFEST} is that of step 3"
    shutil.rmtree(saved)
    shutil.copytree(saved.parent / "step_00000002", saved)
    assert damage(saved) == f"{MANIFEST} is that of step 2"


def test_other_folders_are_no_checkpoints(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("step_garbage", "step_", "step_99x"):
        (saved.parent / name).mkdir()
        (saved.parent / name / WEIGHTS).write_bytes(b"garbage")
    assert checkpoint.newest_whole(saved.parents[1]) == saved
    assert checkpoint.newest(saved.parents[1]) == saved
    assert len([line for line in caplog.messages if "is not a checkpoint" in line]) == 3


def test_steps_are_compared_as_numbers(tmp_path: Path) -> None:
    run = Run(steps=1)
    for step in (99_999_999, 100_000_000):
        run.save(tmp_path / "checkpoints", step)
    assert checkpoint.newest_whole(tmp_path) == tmp_path / "checkpoints" / "step_100000000"


def test_the_manifest_names_each_file_and_the_same_files_give_the_same_manifest(saved: Path, tmp_path: Path) -> None:
    manifest = json.loads((saved / MANIFEST).read_text())
    assert manifest["step"] == 4
    assert manifest["files"].keys() == {WEIGHTS, TRAINING}
    assert manifest["files"][WEIGHTS]["bytes"] == (saved / WEIGHTS).stat().st_size
    before = (saved / MANIFEST).read_text()
    (saved / MANIFEST).unlink()
    write_manifest(saved, 4)
    assert (saved / MANIFEST).read_text() == before
