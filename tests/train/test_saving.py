"""Checkpoints are written while the training goes on, and put together from the parts of several processes."""

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hardpatch.pickles import save_tensors
from hardpatch.train import saving
from hardpatch.train.bad_steps import BadSteps
from hardpatch.train.checkpoint import TRAINING, WEIGHTS, checkpoints, newest_whole
from hardpatch.train.device import start_fabric
from hardpatch.train.launch import launch
from hardpatch.train.parts import merge_parts
from hardpatch.train.progress import Silent
from hardpatch.train.settings import LoopSettings
from hardpatch.train.state import TrainingState
from tests.distributed_runs import write_divided


@pytest.fixture
def state() -> TrainingState:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    fabric = start_fabric("cpu", "fp32", "--")
    bad_steps = BadSteps(fabric, fabric.setup_optimizers(optimizer), LoopSettings(steps=1), [])
    state = TrainingState(fabric, model, optimizer, bad_steps)
    step(state)
    return state


def step(state: TrainingState) -> None:
    state.model(torch.ones(1, 3)).sum().backward()
    state.optimizer.step()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Files are written only once this is set."""
    gate = threading.Event()

    def wait_and_write(*arguments: Any) -> None:
        assert gate.wait(20)
        save_tensors(*arguments)

    monkeypatch.setattr(saving, "save_tensors", wait_and_write)
    yield gate
    gate.set()


def test_a_checkpoint_holds_the_step_after_which_it_was_begun(
    state: TrainingState, gate: threading.Event, tmp_path: Path
) -> None:
    weights = {f"student.{name}": value.clone() for name, value in state.model.state_dict().items()}
    moments = {
        name: value["exp_avg"].clone() for name, value in zip(weights, state.optimizer.state.values(), strict=True)
    }
    with state.writer.background():
        state.save(tmp_path, 1, {})
        step(state)  # while nothing is written yet
        assert state.writer.failure() is None
        assert checkpoints(tmp_path / "checkpoints") == []
        gate.set()
    (saved,) = checkpoints(tmp_path / "checkpoints")
    assert newest_whole(tmp_path) == saved
    loaded, training = load_file(saved / WEIGHTS), load_file(saved / TRAINING)
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())
    assert not any(torch.equal(loaded[f"student.{name}"], value) for name, value in state.model.state_dict().items())
    for name, value in moments.items():
        assert torch.equal(training[f"{name.removeprefix('student.')}/exp_avg"], value)


def test_a_second_checkpoint_waits_for_the_first(state: TrainingState, gate: threading.Event, tmp_path: Path) -> None:
    with state.writer.background():
        state.save(tmp_path, 1, {})
        threading.Timer(0.2, gate.set).start()
        before = time.monotonic()
        state.save(tmp_path, 2, {})
        assert time.monotonic() - before > 0.15
        assert checkpoints(tmp_path / "checkpoints")[0].name == "step_00000001"
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["step_00000001", "step_00000002"]


def test_the_files_are_those_written_at_once(state: TrainingState, tmp_path: Path) -> None:
    state.save(tmp_path / "at_once", 1, {})
    with state.writer.background():
        state.save(tmp_path / "background", 1, {})
    one, other = (sorted((tmp_path / name).rglob("*.*")) for name in ("at_once", "background"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]
    assert len(one) == 3


@pytest.mark.parametrize("background", [False, True])
def test_a_failure_is_told_once(
    background: bool, state: TrainingState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def save(failing: bool) -> OSError | None:
        with monkeypatch.context() as patch:
            if failing:
                patch.setattr(saving, "save_tensors", full)
            state.save(tmp_path, 1 + failing, {})
            return state.writer.failure_anywhere()

    def twice() -> None:
        error = save(failing=True)
        assert error is not None
        assert error.strerror == "No space left on device"
        assert state.writer.failure() is None
        assert save(failing=False) is None

    if background:
        with state.writer.background():
            twice()
    else:
        twice()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]


def test_parts_of_two_processes_are_merged(tmp_path: Path) -> None:
    launch(write_divided, tmp_path / "parts", progress=Silent(), devices=2)
    files = sorted((tmp_path / "parts").iterdir())
    assert [sorted(load_file(path)) for path in files] == [["divided"], ["divided", "whole"]]
    assert [load_file(path)["divided"].tolist()[0] for path in files] == [[0, 1], [6, 7]]

    def content() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        return {"divided": torch.zeros(5, 2)}, {"whole": torch.zeros(3, dtype=torch.int64)}

    weights, training = content()
    merge_parts(tmp_path / "parts", weights, training)
    assert torch.equal(weights["divided"], torch.arange(10.0).reshape(5, 2))
    assert torch.equal(training["whole"], torch.arange(3))
    files[0].unlink()  # on the disk of another machine
    with pytest.raises(OSError, match=r"4 of 10 values of divided were found in .*a disk that all machines share"):
        merge_parts(tmp_path / "parts", *content())
