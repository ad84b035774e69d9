"""State of a training: everything that a checkpoint holds and a resumed run needs."""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from hardpatch import __version__
from hardpatch.errors import TrainingError, UserError
from hardpatch.processes import gather_values
from hardpatch.train import checkpoint
from hardpatch.train.bad_steps import BadSteps
from hardpatch.train.resume import explained
from hardpatch.train.saving import CheckpointWriter, take_snapshot
from hardpatch.train.settings import FREE_TO_CHANGE
from hardpatch.train.sharding import own_parts

log = logging.getLogger("hardpatch")


class NotFiniteError(RuntimeError):
    """Error for a weight that is NaN or infinite."""


class UnsavedError(TrainingError):
    """Error of a training whose last checkpoint could not be written."""


@dataclass
class TrainingState:
    """Model, moving average, optimizer and loss scaler of a run.

    Args:
        fabric: device and precision; holds the loss scaler.
        model: network that is trained.
        optimizer: of the model.
        bad_steps: skips and counts steps that are NaN or infinite.
        average: moving average of the model, or None.
        memory: module whose buffers change during training without a gradient, or None.
        background: the ``writer`` writes checkpoints in a thread during the training.
    """

    fabric: Fabric
    model: nn.Module
    optimizer: torch.optim.Optimizer
    bad_steps: BadSteps
    average: nn.Module | None = None
    memory: nn.Module | None = None
    background: bool = True

    def __post_init__(self) -> None:
        """Make the ``writer`` of its checkpoints."""
        self.writer = CheckpointWriter()

    def save(
        self, folder: Path, step: int, metadata: Mapping[str, Any], *, keep: int = 2, keep_every: int | None = None
    ) -> None:
        """Write a checkpoint of a run after checking that all weights are finite.

        Waits for the checkpoint before it, and, while the ``writer`` is in the background, only for a copy of this one.
        The ``writer`` tells whether it could be written; the checkpoints before it stay as they were if not.

        Args:
            folder: of the run.
            step: optimizer steps done.
            metadata: plain values for the weights file: all that is needed to rebuild the model.
            keep: number of checkpoints to keep, the newest ones.
            keep_every: also keep those of steps that are multiples of this number; None for no others.

        Raises:
            NotFiniteError: if a weight is NaN or infinite; nothing is written then.
        """
        self.check_finite()
        self.writer.wait()
        snapshot = take_snapshot(
            step,
            student=self.model,
            teacher=self.average,
            optimizer=self.optimizer,
            memory=self.memory,
            metadata={"hardpatch": __version__, **metadata, "step": step, "bad_steps": self.bad_steps.state()},
            scaler=self.fabric.strategy.precision.state_dict(),
            copied=self.writer.in_background,
        )
        self.writer.start(folder / "checkpoints", snapshot, keep, keep_every)

    def check_space(self, folder: Path, keep: int) -> None:
        """Warn if the disk has no room for the checkpoints of a new run: those to keep, and the next one."""
        parts = [self.model] if self.average is None else [self.model, self.average]
        values = [value for part in (*parts, self.memory) if part is not None for value in part.state_dict().values()]
        trained = [value for group in self.optimizer.param_groups for value in group["params"]]
        moments = 2 if isinstance(self.optimizer, torch.optim.AdamW) else 1
        size = sum(value.nbytes for value in values) + moments * sum(value.nbytes for value in trained)
        free = shutil.disk_usage(folder).free
        if free < (keep + 1) * size:
            log.warning(
                "the disk of %s has %s free, and %d checkpoints and the next one take %s each",
                *(folder, f"{free / 2**20:,.1f} MiB", keep, f"{size / 2**20:,.1f} MiB"),
            )

    def restore(self, saved: Path, settings: Mapping[str, Any] | None = None, kind: str = "") -> int:
        """Load the exact state of a checkpoint of this run. Returns its step.

        Args:
            saved: folder of the checkpoint.
            settings: of the run, to compare with those in the checkpoint; None compares nothing.
            kind: entry of the metadata that holds the settings.

        Raises:
            UserError: if a setting that affects what is learned differs, or the tensors do not fit.
        """
        metadata = checkpoint.read_metadata(saved / checkpoint.WEIGHTS) or {}
        was, now = metadata.get(kind) or {}, settings or {}
        free = {*FREE_TO_CHANGE, *explained(was, now, checkpoint.step_of(saved))} if was else ()
        changes = [
            f"{name} was {was[name]!r}, now {now[name]!r}"
            for name in now
            if name in was and was[name] != now[name] and name not in free
        ]
        if changes:
            raise UserError(
                f"--resume: config.yaml and {saved} have other settings: {'; '.join(changes)}; "
                "restore config.yaml, or take another --out"
            )
        step, scaler = checkpoint.restore(
            saved, student=self.model, teacher=self.average, optimizer=self.optimizer, memory=self.memory
        )
        if scaler:
            self.fabric.strategy.precision.load_state_dict(scaler)
        self.bad_steps.load_state(metadata.get("bad_steps") or {})
        return step

    def check_finite(self) -> None:
        """Check weights, running statistics and optimizer state for NaN and infinity, in all processes.

        Waits for the device.

        Raises:
            NotFiniteError: if a value is NaN or infinite.
        """
        parts = [self.model] if self.average is None else [self.model, self.average]
        values = [value for part in parts for value in part.state_dict().values()]
        values += [value for state in self.optimizer.state.values() for value in state.values() if value.ndim]
        tensors = [
            value for value in own_parts(value for value in values if value.is_floating_point()) if value.numel()
        ]
        finite = bool(torch.stack(torch._foreach_norm(tensors, float("inf"))).isfinite().all())
        if not all(gather_values(finite)):
            raise NotFiniteError
