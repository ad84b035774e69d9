"""Checkpoints as safetensors files: exact to the bit, and written completely or not at all.

``checkpoints/step_00000100/model.safetensors`` holds the weights of student and teacher, and its metadata all that is
needed to rebuild them. ``training.safetensors`` beside it holds the state of the optimizer. Nothing is ever unpickled;
that is why `torch.distributed.checkpoint`, whose index is a pickle, is not used.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from hardpatch.errors import UserError
from hardpatch.files import atomic_path
from hardpatch.pickles import save_tensors
from hardpatch.processes import on_first
from hardpatch.train.sharding import divided_as, load_whole, whole
from hardpatch.weights import parse_metadata

WEIGHTS, TRAINING = "model.safetensors", "training.safetensors"
MEMORY = "memory/"


def save(
    folder: Path,
    step: int,
    *,
    student: nn.Module,
    teacher: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    memory: nn.Module | None = None,
    metadata: Mapping[str, Any],
    scaler: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write ``folder/step_<step>`` and remove all but the ``keep`` newest checkpoints.

    All processes must call it; the first one writes.

    Everything goes into a hidden folder that is renamed once it is on the disk. A visible checkpoint is therefore
    complete, even if the process is killed or the power fails.

    Args:
        folder: the run's ``checkpoints``.
        step: optimizer steps done.
        student: model whose weights are saved.
        teacher: moving average of the student; None if the run has none.
        optimizer: of the student.
        memory: module with the difficulty remembered from earlier epochs; None if the run has none.
        metadata: plain values for the weights file, stored as JSON.
        scaler: state of the float16 loss scaler, empty otherwise.
        keep: checkpoints to keep, at least 1.

    Returns:
        The new folder.
    """
    weights = {f"student.{name}": whole(value) for name, value in student.state_dict().items()}
    if teacher is not None:
        weights |= {f"teacher.{name}": whole(value) for name, value in teacher.state_dict().items()}
    state = _optimizer_tensors(student, optimizer)
    if memory is not None:
        state |= {f"{MEMORY}{name}": value for name, value in memory.state_dict().items()}
    final = folder / f"step_{step:08d}"
    on_first(lambda: _write_all(final, step, weights, state, metadata, scaler, keep))
    return final


def _write_all(
    final: Path,
    step: int,
    weights: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    scaler: Mapping[str, Any],
    keep: int,
) -> None:
    with atomic_path(final, durable=True) as partial:
        partial.mkdir(parents=True)
        _write(partial / WEIGHTS, weights, metadata)
        _write(partial / TRAINING, state, {"step": step, "scaler": dict(scaler)})
        shutil.rmtree(final, ignore_errors=True)  # saved before at the same step: the training loop never does that
    for old in checkpoints(final.parent)[:-keep]:
        shutil.rmtree(old)


def checkpoints(folder: Path) -> list[Path]:
    """List the complete checkpoints in ``folder``, oldest first."""
    return sorted(path for path in folder.glob("step_*") if (path / WEIGHTS).is_file())


def newest(run: Path) -> Path | None:
    """Return the newest complete checkpoint of a run folder, None if there is none."""
    return max(checkpoints(run / "checkpoints"), default=None)


def restore(
    checkpoint: Path,
    *,
    student: nn.Module,
    teacher: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    memory: nn.Module | None = None,
) -> tuple[int, dict[str, Any]]:
    """Load a checkpoint of :func:`save` in place. Returns its step and the state of the loss scaler."""
    weights = load_file(checkpoint / WEIGHTS)
    load_whole(student, with_prefix(weights, "student."))
    if teacher is not None:
        load_whole(teacher, with_prefix(weights, "teacher."))
    training = load_file(checkpoint / TRAINING)
    if memory is not None:
        memory.load_state_dict(with_prefix(training, MEMORY))
    _load_optimizer(
        student, optimizer, {name: value for name, value in training.items() if not name.startswith(MEMORY)}
    )
    with safe_open(checkpoint / TRAINING, "pt") as file:
        state = json.loads(file.metadata()["hardpatch"])
    return state["step"], state["scaler"]


def read_metadata(path: Path) -> dict[str, Any] | None:
    """Read the metadata of :func:`save`; None for a safetensors file that it did not write.

    Raises:
        UserError: if ``path`` is not a safetensors file.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"RUN: {path} is not a safetensors file: {error}") from None
    return parse_metadata(metadata["hardpatch"], path) if "hardpatch" in metadata else None


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose name starts with ``prefix``, under the rest of the name."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State as ``<parameter>/<key>``: by name, so that it does not depend on the order of parameter groups."""
    return {
        f"{name}/{key}": whole(value)
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def _load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for name, value in tensors.items():
        parameter, key = name.rsplit("/", 1)
        optimizer.state[parameters[parameter]][key] = divided_as(value, parameters[parameter])


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    # One metadata entry: safetensors writes several in an order that changes from run to run.
    save_tensors(tensors, path, {"hardpatch": json.dumps(metadata)})
