"""Checkpoints are written completely or not at all, if wanted in a thread of its own while the training goes on."""

import errno
import json
import logging
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hardpatch.files import atomic_path, reason_of, remove
from hardpatch.pickles import save_tensors
from hardpatch.processes import gather_values, is_first, on_first
from hardpatch.train.checkpoint import NONE_YET, checkpoints, step_of
from hardpatch.train.manifest import MEMORY, TRAINING, WEIGHTS, write_manifest
from hardpatch.train.parts import merge_parts, write_parts
from hardpatch.train.sharding import is_sharded

log = logging.getLogger("hardpatch")


class Content(NamedTuple):
    """Tensors and metadata of a file."""

    tensors: dict[str, Tensor]
    metadata: Mapping[str, Any]


class Snapshot(NamedTuple):
    """State of a training after a step, all that its checkpoint holds."""

    step: int
    weights: Content
    training: Content
    divided: bool
    """the tensors are divided among the processes"""


def take_snapshot(
    step: int,
    *,
    student: nn.Module,
    teacher: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    memory: nn.Module | None = None,
    metadata: Mapping[str, Any],
    scaler: Mapping[str, Any],
    copied: bool,
) -> Snapshot:
    """Collect what a checkpoint holds.

    Args:
        step: optimizer steps done.
        student: model whose weights are saved.
        teacher: moving average of the student; None if the run has none.
        optimizer: of the student.
        memory: module with the difficulty remembered from earlier epochs; None if the run has none.
        metadata: plain values for the weights file, stored as JSON.
        scaler: state of the float16 loss scaler, empty otherwise.
        copied: the tensors are copied to the host's memory, so that the training can go on. Waits for the device.
    """
    weights = weights_of(student, teacher)
    # by name, so that the state does not depend on the order of parameter groups
    state = {
        f"{name}/{key}": value
        for name, parameter in student.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }
    if memory is not None:
        state |= {f"{MEMORY}{name}": value for name, value in memory.state_dict().items()}
    stateless = [name for name, value in student.named_parameters() if not optimizer.state.get(value)]
    divided = is_sharded(student)
    if copied and (divided or is_first()):
        weights, state = _on_host(weights), _on_host(state)
    training = {"step": step, "scaler": dict(scaler), "stateless": stateless}
    return Snapshot(step, Content(weights, metadata), Content(state, training), divided)


def weights_of(student: nn.Module, teacher: nn.Module | None) -> dict[str, Tensor]:
    """Return the weights of student and teacher, by the names that they have in a checkpoint."""
    parts = {"student": student} if teacher is None else {"student": student, "teacher": teacher}
    return {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}


def _on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors to the host's memory; those of a GPU all at once."""
    copies = {}
    for name, value in tensors.items():
        if type(value) is Tensor and value.is_cuda:
            copies[name] = torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)
        else:
            copies[name] = value.detach().to("cpu", copy=True)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return copies


def write(folder: Path, snapshot: Snapshot, *, keep: int, keep_every: int | None = None) -> None:
    """Write ``folder/step_<step>`` and remove older checkpoints.

    Everything goes into a hidden folder that is renamed once it is on the disk. A visible checkpoint is therefore
    complete, even if the process is killed or the power fails. It is removed the other way around. All processes must
    call it: each writes its parts of divided tensors, and the first one all else.

    Args:
        folder: the run's ``checkpoints``.
        snapshot: of the training.
        keep: newest checkpoints to keep, at least 1.
        keep_every: also keep the checkpoints of steps that are multiples of this number; None for no others.

    Raises:
        OSError: if it cannot be written; the checkpoints before it are left as they were.
    """
    final = folder / f"step_{snapshot.step:08d}"
    parts = parts_folder(folder, snapshot.step)
    if snapshot.divided:
        write_parts(parts, snapshot.weights.tensors | snapshot.training.tensors)
    if not is_first():
        return
    with atomic_path(final, durable=True) as partial:
        partial.mkdir(parents=True)
        if snapshot.divided:
            merge_parts(parts, snapshot.weights.tensors, snapshot.training.tensors)
            remove(parts)
        for name, content in ((WEIGHTS, snapshot.weights), (TRAINING, snapshot.training)):
            # one metadata entry: safetensors writes several in an order that changes from run to run
            save_tensors(content.tensors, partial / name, {"hardpatch": json.dumps(content.metadata)})
        write_manifest(partial, snapshot.step)
        if final.exists():  # damaged, or saved before at the same step
            _discard(final)
    _tidy(folder, snapshot.step, keep, keep_every)


def parts_folder(folder: Path, step: int) -> Path:
    """Return the folder of the processes' parts, until they are merged."""
    return folder / f".step_{step:08d}.parts"


def _tidy(folder: Path, step: int, keep: int, keep_every: int | None) -> None:
    """Remove checkpoints before ``step`` that are not to be kept, and set aside those after it."""
    try:
        for leftover in (path for kind in ("removed", "partial", "parts") for path in folder.glob(f".step_*.{kind}")):
            remove(leftover)
        remove(folder / NONE_YET)
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


class CheckpointWriter:
    """Writes the checkpoints of a run one after the other: at once, or in a thread."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._pending: Future[tuple[int, str] | None] | None = None
        self.step = 0
        """of the last checkpoint"""

    @property
    def in_background(self) -> bool:
        """True while a thread writes and the training goes on; a snapshot has to be a copy then."""
        return self._thread is not None

    @contextmanager
    def background(self) -> Iterator[None]:
        """Write in a thread within this block, which ends when all is written."""
        with ThreadPoolExecutor(1, "checkpoint") as self._thread:
            try:
                yield
            finally:
                self._thread = None

    def start(self, folder: Path, snapshot: Snapshot, keep: int, keep_every: int | None) -> None:
        """Write a checkpoint with :func:`write`. All processes must call it; :meth:`failure` tells how it ended."""
        self.step = snapshot.step
        if snapshot.divided:  # what a killed run left
            on_first(lambda: remove(parts_folder(folder, snapshot.step)))
        if self._thread is not None:
            self._pending = self._thread.submit(_write, folder, snapshot, keep, keep_every)
        else:
            self._pending = Future()
            self._pending.set_result(_write(folder, snapshot, keep, keep_every))

    def wait(self) -> None:
        """Wait until the disk has what was started, in this process; a failure is not forgotten."""
        if self._pending is not None:
            self._pending.result()

    def failure(self) -> OSError | None:
        """Return why the last checkpoint could not be written, once; None if it was, or still is being written."""
        if self._pending is None or not self._pending.done():
            return None
        reason, self._pending = self._pending.result(), None
        return None if reason is None else OSError(*reason)

    def failure_anywhere(self) -> OSError | None:
        """Wait, and return why the last checkpoint could not be written, for all processes, which must ask."""
        self.wait()
        mine = self.failure()
        reasons = gather_values(None if mine is None else (mine.errno, mine.strerror))
        reason = next((reason for reason in reasons if reason is not None), None)
        return None if reason is None else OSError(*reason)


def _write(folder: Path, snapshot: Snapshot, keep: int, keep_every: int | None) -> tuple[int, str] | None:
    """Call :func:`write`. Returns number and text of the disk's error, if any."""
    try:
        write(folder, snapshot, keep=keep, keep_every=keep_every)
    except OSError as error:
        return error.errno or errno.EIO, reason_of(error)
    return None
