"""Parts of the loops that train a network on labels: rates, losses, checkpoints."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hardpatch.errors import TrainingError
from hardpatch.train import checkpoint


def set_rates(optimizer: Optimizer, lr: float) -> None:
    """Give each group ``lr`` times its ``lr_scale``, see :func:`~hardpatch.train.optimizer.layer_decay_groups`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def seed_step(seed: int, step: int) -> None:
    """Seed what is drawn within a step (drop path, dropout, boxes), so that it is the same after a resume."""
    torch.manual_seed((seed * 1_000_003 + step) % 2**63)


def read_means(sums: Tensor, first: int, last: int, advice: str) -> list[float]:
    """Means of the losses of the steps ``first`` to ``last``; sets their ``sums [K]`` to 0. Waits for the device.

    Raises:
        TrainingError: if one is not finite.
    """
    means: list[float] = (sums / (last - first + 1)).tolist()
    sums.zero_()
    if not all(map(math.isfinite, means)):
        raise diverged(first, last, advice)
    return means


def diverged(first: int, last: int, advice: str) -> TrainingError:
    """What to say where training between two steps left the finite numbers; ``advice`` goes on after "Try"."""
    return TrainingError(
        f"the loss became NaN or infinite between steps {first} and {last}; nothing of that was saved. Try {advice}"
    )


def save(folder: Path, step: int, model: nn.Module, optimizer: Optimizer, metadata: Mapping[str, Any]) -> None:
    """Write a checkpoint of a step into the folder of the run; older ones go."""
    checkpoint.save(
        folder / "checkpoints",
        step,
        student=model,
        teacher=None,
        optimizer=optimizer,
        metadata=dict(metadata),
        scaler={},
        keep=1,
    )


def restore(folder: Path, model: nn.Module, optimizer: Optimizer) -> int:
    """Go back to the newest checkpoint in the folder of the run, to the bit; its step, 0 if there is none."""
    found = checkpoint.newest(folder)
    return 0 if found is None else checkpoint.restore(found, student=model, teacher=None, optimizer=optimizer)[0]
