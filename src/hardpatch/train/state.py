"""State of a training: everything that a checkpoint holds and a resumed run needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from hardpatch import __version__
from hardpatch.processes import gather_values
from hardpatch.train import checkpoint
from hardpatch.train.sharding import own_parts


class NotFiniteError(RuntimeError):
    """Error for a weight that is NaN or infinite."""


@dataclass
class TrainingState:
    """Model, moving average, optimizer and loss scaler of a run.

    Args:
        fabric: device and precision; holds the loss scaler.
        model: network that is trained.
        optimizer: of the model.
        average: moving average of the model, or None.
        memory: module whose buffers change during training without a gradient, or None.
    """

    fabric: Fabric
    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: nn.Module | None = None
    memory: nn.Module | None = None

    def save(self, folder: Path, step: int, metadata: Mapping[str, Any], keep: int = 1) -> None:
        """Write a checkpoint of a run after checking that all weights are finite.

        Args:
            folder: of the run.
            step: optimizer steps done.
            metadata: plain values for the weights file: all that is needed to rebuild the model.
            keep: number of checkpoints to keep, the newest ones.

        Raises:
            NotFiniteError: if a weight is NaN or infinite; nothing is written then.
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
        """Load the exact state of a checkpoint of this run. Returns its step."""
        step, scaler = checkpoint.restore(
            saved, student=self.model, teacher=self.average, optimizer=self.optimizer, memory=self.memory
        )
        if scaler:
            self.fabric.strategy.precision.load_state_dict(scaler)
        return step

    def check_finite(self) -> None:
        """Check weights and running statistics for NaN and infinity, in all processes. Waits for the device.

        Raises:
            NotFiniteError: if a value is NaN or infinite.
        """
        parts = [self.model] if self.average is None else [self.model, self.average]
        tensors = [value for part in parts for value in part.state_dict().values() if value.is_floating_point()]
        tensors = [value for value in own_parts(tensors) if value.numel()]
        finite = bool(torch.stack(torch._foreach_norm(tensors, float("inf"))).isfinite().all())
        if not all(gather_values(finite)):
            raise NotFiniteError
