"""Several processes that train one network: how they meet, share a batch, and exchange gradients."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from inspect import signature
from typing import Any

from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from hardpatch.choices import StrategyName
from hardpatch.errors import UserError
from hardpatch.processes import ProcessRank, launched, open_groups, process_rank
from hardpatch.randomness import set_part
from hardpatch.train.sharding import shard


def meet(
    device: str, precision: MixedPrecision | None, strategy: StrategyName, answer_minutes: float, setting: str
) -> Fabric:
    """Set up one of several processes (:func:`~hardpatch.processes.launched`), and meet the others.

    Args:
        device: ``cpu``, ``cuda`` or ``mps``.
        precision: of mixed precision; None is float32.
        strategy: whole weights in each process (DDP), or divided among them (FSDP2).
        answer_minutes: time after which a process gives up waiting for another one.
        setting: name in error messages.

    Raises:
        UserError: if this machine does not have as many devices as processes.
    """
    own = launched()
    timeout = timedelta(minutes=answer_minutes)
    backend = "gloo" if device == "cpu" else None
    environment = SLURMEnvironment(auto_requeue=False) if own.by_slurm else LightningEnvironment()
    choices: dict[StrategyName, Any] = {
        "ddp": lambda: DDPStrategy(
            process_group_backend=backend, timeout=timeout, **_unsynchronized_buffers(), gradient_as_bucket_view=True
        ),
        "fsdp2": lambda: ModelParallelStrategy(
            shard, own.world_size, 1, process_group_backend=backend, timeout=timeout
        ),
    }
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    # Losses are views of one another; nothing changes them in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    try:
        fabric = Fabric(
            accelerator=device,
            devices=own.local_world_size,
            num_nodes=own.world_size // own.local_world_size,
            strategy=choices[strategy](),
            plugins=[part for part in (precision, environment) if part is not None],
        )
        fabric.launch()
    except (MisconfigurationException, ValueError) as error:
        raise UserError(f"{setting}: {' '.join(str(error).split())}") from None
    open_groups(60.0 * answer_minutes)
    return fabric


def _unsynchronized_buffers() -> dict[str, Any]:
    """Return the option of DDP not to send buffers in each step, under its name in this version of torch."""
    names = signature(DistributedDataParallel).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False}


def take_part(
    batch_size: int, accumulation_steps: int, *, crops: int = 1, even: bool = False, prefix: str = "--"
) -> ProcessRank:
    """Take the part of each batch that this process has, for the random numbers of a step as well.

    Args:
        batch_size: crops of a batch, of all processes.
        accumulation_steps: micro-batches of each process.
        crops: of each image in a batch.
        even: several processes need an even number of images each, as they mix them in pairs.
        prefix: of the setting in error messages.

    Returns:
        Rank and number of processes.

    Raises:
        UserError: if processes, micro-batches and crops cannot share a batch evenly.
    """
    rank, world_size = process_rank()
    pairs = 2 if even and world_size > 1 else 1
    if batch_size % (world_size * accumulation_steps * crops) or batch_size % (world_size * pairs):
        parts = {"processes": world_size, "micro-batches": accumulation_steps, "crops": crops}
        named = " times ".join(f"{count} {name}" for name, count in parts.items() if count > 1)
        raise UserError(
            f"{prefix}batch_size: expected a multiple of {named}{', with an even part of each' if even else ''}, got "
            f"{batch_size}"
        )
    set_part(rank, world_size, batch_size // (world_size * accumulation_steps * crops))
    return ProcessRank(rank, world_size)


@contextmanager
def without_exchange(fabric: Fabric, module: Any, enabled: bool) -> Iterator[None]:
    """Keep the gradients of a backward pass in this process, if enabled: a later pass exchanges the sum."""
    if not enabled or process_rank().world_size == 1:
        yield
        return
    if isinstance(module, DistributedDataParallel):  # not set up by Fabric
        with module.no_sync():
            yield
    elif isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(False)
        yield
        module.set_requires_gradient_sync(True)
    else:
        with fabric.no_backward_sync(module):
            yield
