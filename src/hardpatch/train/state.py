"""All that a training changes, in one place: what a checkpoint holds and a resumed run gets back."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from hardpatch import __version__
from hardpatch.train import checkpoint


class NotFiniteError(RuntimeError):
    """A weight is NaN or infinite."""


@dataclass
class TrainingState:
    """Model, moving average, optimizer and loss scaler of a run.

    Args:
        fabric: device and precision; holds the loss scaler.
        model: what is trained.
        optimizer: of the model.
        average: a moving average of the model, or None.
        memory: buffers that are learned without a gradient, or None.
    """

    fabric: Fabric
    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: nn.Module | None = None
    memory: nn.Module | None = None

    def save(self, folder: Path, step: int, metadata: Mapping[str, Any], keep: int = 1) -> None:
        """Write a checkpoint of a run, unless a weight is not finite.

        Args:
            folder: of the run.
            step: optimizer steps done.
            metadata: plain values for the weights file, all that is needed to rebuild the model.
            keep: newest checkpoints to keep.

        Raises:
            NotFiniteError: before anything is written.
        """
        self.check_finite()
        checkpoint.save(
            folder / "checkpoints",
            step,
            student=self.model,
            teacher=self.average,
            optimizer=self.optimizer,
            memory=self.memory,
            metadata={"hardpatch": __version__, **metadata, "step": step},
            scaler=self.fabric.strategy.precision.state_dict(),
            keep=keep,
        )

    def restore(self, saved: Path) -> int:
        """Load a checkpoint of this run, to the bit. Returns its step."""
        step, scaler = checkpoint.restore(
            saved, student=self.model, teacher=self.average, optimizer=self.optimizer, memory=self.memory
        )
        if scaler:
            self.fabric.strategy.precision.load_state_dict(scaler)
        return step

    def check_finite(self) -> None:
        """Refuse weights, or running statistics, that are NaN or infinite. Waits for the device.

        Raises:
            NotFiniteError: if there are any.
        """
        parts = [self.model] if self.average is None else [self.model, self.average]
        tensors = [value for part in parts for value in part.state_dict().values() if value.is_floating_point()]
        if not torch.stack(torch._foreach_norm(tensors, float("inf"))).isfinite().all():
            raise NotFiniteError
