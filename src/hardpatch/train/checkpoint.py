"""Checkpoints of a run: which there are, which is the newest whole one, and their exact state.

``checkpoints/step_00000100/model.safetensors`` holds the weights of student and teacher, and its metadata all that is
needed to rebuild them. ``training.safetensors`` beside it holds the state of the optimizer, ``manifest.json`` the size
and digest of both. Nothing is ever unpickled. :mod:`hardpatch.train.saving` writes them.
"""

import json
import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from hardpatch.errors import UserError
from hardpatch.train.manifest import MEMORY, TRAINING, WEIGHTS, damage
from hardpatch.train.sharding import divided_as, load_whole
from hardpatch.weights import parse_metadata

__all__ = ["MEMORY", "TRAINING", "WEIGHTS"]

NONE_YET = ".none_yet"
"""File in the folder of the checkpoints of a new run, until the first one is written"""

log = logging.getLogger("hardpatch")
_reported: set[str] = set()
"""Lines about damaged checkpoints that were logged, each once"""


def checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints in ``folder`` by step, damaged ones included. Only names of a number of steps are theirs."""
    found = [path for path in folder.glob("step_*") if re.fullmatch(r"step_[0-9]+", path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """Return the number of steps in the name of a checkpoint."""
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
    """Load a checkpoint in place. Returns its step and the state of the loss scaler."""
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
    """Read the metadata of a weights file of this project; None for any other safetensors file.

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
