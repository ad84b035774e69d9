"""Checkpoints as safetensors files: exact to the bit, and written completely or not at all.

``checkpoints/step_00000100/model.safetensors`` holds the weights of student and teacher, and its metadata all that is
needed to rebuild them. ``training.safetensors`` beside it holds the state of the optimizer, ``manifest.json`` the size
and digest of both. Nothing is ever unpickled; that is why `torch.distributed.checkpoint`, whose index is a pickle, is
not used.
"""

import errno
import json
import logging
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from hardpatch.errors import UserError
from hardpatch.files import atomic_path, reason_of, remove
from hardpatch.pickles import save_tensors
from hardpatch.processes import is_first, on_first
from hardpatch.train.manifest import MEMORY, TRAINING, WEIGHTS, damage, write_manifest
from hardpatch.train.sharding import collected, divided_as, load_whole
from hardpatch.weights import parse_metadata

__all__ = ["MEMORY", "TRAINING", "WEIGHTS"]

log = logging.getLogger("hardpatch")
_reported: set[str] = set()
"""Lines about damaged checkpoints that were logged, each once"""


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
    keep_every: int | None = None,
) -> Path:
    """Write ``folder/step_<step>`` and remove older checkpoints.

    All processes must call it; the first one writes.

    Everything goes into a hidden folder that is renamed once it is on the disk. A visible checkpoint is therefore
    complete, even if the process is killed or the power fails. It is removed the other way around.

    Args:
        folder: the run's ``checkpoints``.
        step: optimizer steps done.
        student: model whose weights are saved.
        teacher: moving average of the student; None if the run has none.
        optimizer: of the student.
        memory: module with the difficulty remembered from earlier epochs; None if the run has none.
        metadata: plain values for the weights file, stored as JSON.
        scaler: state of the float16 loss scaler, empty otherwise.
        keep: newest checkpoints to keep, at least 1.
        keep_every: also keep the checkpoints of steps that are multiples of this number; None for no others.

    Returns:
        The new folder.

    Raises:
        OSError: if it cannot be written; the checkpoints before it are left as they were.
    """
    weights = weights_of(student, teacher)
    state = _optimizer_tensors(student, optimizer)
    if memory is not None:
        state |= {f"{MEMORY}{name}": value for name, value in memory.state_dict().items()}
    final = folder / f"step_{step:08d}"
    stateless = [name for name, value in student.named_parameters() if not optimizer.state.get(value)]
    training = {"step": step, "scaler": dict(scaler), "stateless": stateless}
    failure = on_first(lambda: _write_all(final, step, (weights, metadata), (state, training)))
    if failure is not None:
        raise OSError(*failure)
    if is_first():
        _tidy(folder, step, keep, keep_every)
    return final


def weights_of(student: nn.Module, teacher: nn.Module | None) -> dict[str, Tensor]:
    """Return the weights of student and teacher by name; whole in the first process. All processes must call it."""
    weights = {f"student.{name}": collected(value) for name, value in student.state_dict().items()}
    if teacher is not None:
        weights |= {f"teacher.{name}": collected(value) for name, value in teacher.state_dict().items()}
    return weights


Content = tuple[Mapping[str, Tensor], Mapping[str, Any]]
"""Tensors and metadata of a file"""


def _write_all(final: Path, step: int, weights: Content, training: Content) -> tuple[int, str] | None:
    """Write the files of a checkpoint. Returns number and text of the disk's error, which all processes raise."""
    try:
        with atomic_path(final, durable=True) as partial:
            partial.mkdir(parents=True)
            _write(partial / WEIGHTS, *weights)
            _write(partial / TRAINING, *training)
            write_manifest(partial, step)
            if final.exists():  # damaged, or saved before at the same step
                _discard(final)
    except OSError as error:
        return error.errno or errno.EIO, reason_of(error)
    return None


def _tidy(folder: Path, step: int, keep: int, keep_every: int | None) -> None:
    """Remove checkpoints before ``step`` that are not to be kept, and set aside those after it."""
    try:
        for leftover in (*folder.glob(".step_*.removed"), *folder.glob(".step_*.partial")):
            remove(leftover)
        older = []
        for path in checkpoints(folder):
            if step_of(path) > step:  # the run resumed from a checkpoint before this one, which is damaged
                aside = path.with_name(f"damaged_{path.name}")
                remove(aside)
                path.rename(aside)
                log.warning("%s was damaged and not used; it is now %s", path, aside.name)
            else:
                older.append(path)
        for path in older[:-keep]:
            if keep_every is None or step_of(path) % keep_every:
                _discard(path)
    except OSError as error:
        log.warning("%s: old checkpoints cannot be removed: %s", folder, reason_of(error))


def _discard(path: Path) -> None:
    """Remove a checkpoint: at once from view, then from the disk."""
    hidden = path.with_name(f".{path.name}.removed")
    remove(hidden)
    os.replace(path, hidden)
    remove(hidden)


def checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints in ``folder`` by step, damaged ones included. Only names of a number of steps are theirs."""
    found = [path for path in folder.glob("step_*") if re.fullmatch(r"step_[0-9]+", path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """Return the step of a checkpoint, from its name."""
    return int(path.name.removeprefix("step_"))


def newest(run: Path) -> Path | None:
    """Return the newest checkpoint of a run folder that has weights, None if there is none; its files are not read."""
    return next((path for path in reversed(checkpoints(run / "checkpoints")) if (path / WEIGHTS).is_file()), None)


def newest_whole(run: Path, names: Collection[str] = (WEIGHTS, TRAINING)) -> Path | None:
    """Return the newest checkpoint of a run folder that is not damaged, None if there is no checkpoint at all.

    A line names each that is passed over, and why. A running training may remove checkpoints meanwhile.

    Args:
        run: the folder.
        names: files that have to be whole.

    Raises:
        UserError: if all checkpoints are damaged.
    """
    folder = run / "checkpoints"
    while True:
        damaged: list[str] = []
        listed = checkpoints(folder)
        for path in reversed(listed):
            reason = damage(path, names)
            if reason is None:
                _report(folder, damaged, path)
                return path
            damaged.append(f"{path} is damaged ({reason})")
        if not listed:
            _report_others(folder)
            return None
        if all(path.exists() for path in listed):
            raise UserError(
                f"{run}: {'; '.join(damaged)}; no other checkpoint is left: restore one from a copy, or start a new "
                "run with another --out"
            )


def _report(folder: Path, damaged: list[str], used: Path) -> None:
    """Say once which checkpoints are passed over and which one is used."""
    for line in damaged:
        _warn(f"{line}; {used.name}, the one before it, is used")
    _report_others(folder)


def _report_others(folder: Path) -> None:
    for path in sorted(folder.glob("step_*")):
        if not (re.fullmatch(r"step_[0-9]+", path.name) and path.is_dir()):
            _warn(f"{path} is not a checkpoint, which is a folder named step_ and a number; it is not used")


def _warn(line: str) -> None:
    if line not in _reported:
        _reported.add(line)
        log.warning("%s", line)


def restore(
    checkpoint: Path,
    *,
    student: nn.Module,
    teacher: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    memory: nn.Module | None = None,
) -> tuple[int, dict[str, Any]]:
    """Load a checkpoint of :func:`save` in place. Returns its step and the state of the loss scaler."""
    weights, training = load_file(checkpoint / WEIGHTS), load_file(checkpoint / TRAINING)
    with safe_open(checkpoint / TRAINING, "pt") as file:
        state = json.loads(file.metadata()["hardpatch"])
    parts = [(student, "student.", weights), (teacher, "teacher.", weights), (memory, MEMORY, training)]
    try:
        for module, prefix, tensors in parts:
            if module is not None:
                _load_module(module, with_prefix(tensors, prefix))
        optimizer_state = {name: value for name, value in training.items() if not name.startswith(MEMORY)}
        _load_optimizer(student, optimizer, optimizer_state)
    except (RuntimeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"--resume: {checkpoint} does not fit the run: {reason}; it was made with other settings or by another "
            f"version: restore those, or delete {checkpoint} to resume from the one before it"
        ) from None
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = [
        name
        for name, value in student.named_parameters()
        if id(value) in trained and not optimizer.state.get(value) and name not in state.get("stateless", ())
    ]
    if missing:  # an earlier version did not note which parameters have no state yet
        log.warning("%s has no optimizer state of %s; it begins anew", checkpoint, ", ".join(missing[:3]))
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


def _load_module(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load tensors that have to be those of the module, in name, shape and type."""
    own = module.state_dict()
    other = next((name for name, value in tensors.items() if name in own and own[name].dtype != value.dtype), None)
    if other is not None:
        raise ValueError(f"{other} is {tensors[other].dtype}, expected {own[other].dtype}")
    load_whole(module, dict(tensors))


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State as ``<parameter>/<key>``: by name, so that it does not depend on the order of parameter groups."""
    return {
        f"{name}/{key}": collected(value)
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def _load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    optimizer.state.clear()  # a training that goes back may have state of parameters that had none yet
    for name, value in tensors.items():
        parameter, _, key = name.rpartition("/")
        if parameter not in parameters:
            raise ValueError(f"{name}: the model has no such parameter")
        expected = parameters[parameter]
        if value.ndim and value.shape != expected.shape:
            raise ValueError(f"{name} has the shape {list(value.shape)}, expected {list(expected.shape)}")
        optimizer.state[expected][key] = divided_as(value, expected)


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    # One metadata entry: safetensors writes several in an order that changes from run to run.
    save_tensors(tensors, path, {"hardpatch": json.dumps(metadata)})
