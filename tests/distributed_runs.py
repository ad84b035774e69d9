"""Trainings in several processes, for tests: what runs in each of them is here, so that it can be imported there."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hardpatch.cli import main
from hardpatch.configuration import config
from hardpatch.pretrain.run import _train
from hardpatch.pretrain.step import Learner
from hardpatch.processes import launched, process_rank
from hardpatch.train.parallel import meet
from hardpatch.train.parts import write_parts
from hardpatch.train.progress import Progress


def pretrain_all(runs: Mapping[str, Sequence[str]], folder: Path, strategy: str, *, progress: Progress) -> None:
    """Pre-train every run in ``folder/NAME``, one after the other, and record what each process has seen."""
    for name, settings in runs.items():
        out = folder / name
        with recorded() as steps:
            run = config.build({}, [*settings, f"--train.strategy={strategy}"])
            _train(run, None, out, False, (), False, False, (), progress=progress)
        rank = process_rank().rank
        np.savez(out / f"seen_{rank}.npz", indices=steps["indices"], masks=steps["masks"])


def pretrain_poisoned(
    settings: Sequence[str], folder: Path, steps: Sequence[int], rank: int, *, progress: Progress
) -> None:
    """Pre-train with both strategies, where the pixels of one process are NaN in some steps, counted from 1."""
    original = Learner.inputs

    def inputs(self: Learner, batch: Any) -> Any:
        result = original(self, batch)
        if self.step + 1 in steps and process_rank().rank == rank:
            return result._replace(images=result.images * math.nan)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "inputs", inputs)
        patch.setattr("hardpatch.train.launch.close_groups", lambda: None)  # the processes meet once
        for strategy in ("ddp", "fsdp2") if process_rank().world_size > 1 or launched().world_size > 1 else ("ddp",):
            run = config.build({}, [*settings, f"--train.strategy={strategy}"])
            _train(run, None, folder / strategy, False, (), False, False, (), progress=progress)


@contextmanager
def recorded() -> Iterator[dict[str, list[Any]]]:
    """Record the indices of the images and the masks of each step."""
    steps: dict[str, list[Any]] = {"indices": [], "masks": []}
    original = Learner.train_step

    def train_step(self: Learner, batch: Any, *arguments: Any, **more: Any) -> Any:
        step = original(self, batch, *arguments, **more)
        steps["indices"].append(batch.indices.numpy().copy())
        masked = step.mined.mask.masked
        mask = torch.zeros(len(masked), math.prod(self.model.grid), dtype=torch.bool).scatter(1, masked, True)
        steps["masks"].append(mask.numpy())
        return step

    Learner.train_step = train_step  # type: ignore[method-assign]
    try:
        yield steps
    finally:
        Learner.train_step = original  # type: ignore[method-assign]


def seen(run: Path) -> tuple[Any, Any]:
    """Return the image indices ``[steps, B]`` and masks, bool ``[steps, R, N]``, of a run, of all its processes."""
    files = [np.load(run / f"seen_{rank}.npz") for rank in range(len(list(run.glob("seen_*.npz"))))]
    return tuple(np.concatenate([file[name] for file in files], axis=1) for name in ("indices", "masks"))  # type: ignore[return-value]


def run_all(commands: Mapping[str, Sequence[str]], folder: Path, *more: str, progress: Progress) -> None:
    """Run the commands of several verbs in ``folder/NAME``, one after the other, in the same processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hardpatch.train.launch.close_groups", lambda: None)  # the processes meet once
        for name, command in commands.items():
            assert main([*command, "--out", str(folder / name), *more]) == 0, name


def write_divided(folder: Path, *, progress: Progress) -> None:
    """Write tensors into ``folder``: one that is divided by rows, not evenly, and one that all processes have."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    fabric = meet("cpu", None, "fsdp2", 1.0, "devices")
    mesh = init_device_mesh("cpu", (fabric.world_size,))
    divided = distribute_tensor(torch.arange(10.0).reshape(5, 2), mesh, [Shard(0)])
    write_parts(folder, {"divided": divided, "whole": torch.arange(3)})
