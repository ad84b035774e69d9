"""Device and precision of a run."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from inspect import signature
from typing import Any

import torch
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
from hardpatch.data.workers import resolve_workers
from hardpatch.errors import UserError
from hardpatch.processes import launched, open_control_group, process_rank
from hardpatch.train.memory import keep_buffers
from hardpatch.train.settings import LoopSettings
from hardpatch.train.sharding import shard


class AutocastOnly(MixedPrecision):
    """Mixed precision that leaves the inputs of a module in float32.

    Autocast casts the inputs of each layer as needed. Pixels are not rounded before, because losses are computed from
    them.
    """

    def convert_input(self, data: Any) -> Any:
        """Return the inputs of a module unchanged."""
        return data


PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
"""Names of precisions in settings, and those of Fabric."""


def start_fabric(
    device: str,
    precision: str,
    prefix: str,
    *,
    settle: bool = True,
    strategy: StrategyName = "ddp",
    answer_minutes: float = 30.0,
) -> Fabric:
    """Set up device and precision of a run, and meet the other processes if there are some.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: ``auto`` or a name of :data:`PRECISIONS`.
        prefix: text before the names of the settings in error messages, such as ``--`` or ``train.``.
        settle: on a CPU, also tune the memory allocator of this process (:mod:`hardpatch.train.memory`).
        strategy: of several processes: whole weights in each (DDP), or divided among them (FSDP2).
        answer_minutes: time after which a process gives up waiting for another one.

    Raises:
        UserError: if device or precision is not available on this machine.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device, True):
        raise UserError(f"{prefix}device: {device} is not available on this machine; use auto or cpu")
    if precision == "auto":
        cuda = available["cuda"] and device in ("auto", "cuda")
        precision = "bf16" if cuda and torch.cuda.is_bf16_supported() else "fp32"
    if precision == "fp16" and not (available["cuda"] and device in ("auto", "cuda")):
        raise UserError(f"{prefix}precision: fp16 needs a CUDA device; use bf16 or fp32")
    if device == "auto":
        device = next((name for name, usable in available.items() if usable), "cpu")
    mixed = None if precision == "fp32" else AutocastOnly(PRECISIONS[precision], device)
    if launched().world_size > 1:
        fabric = _one_of_several(device, mixed, strategy, answer_minutes, prefix)
    else:
        fabric = Fabric(accelerator=device, devices=1, plugins=mixed)
    if settle and fabric.device.type == "cpu":
        keep_buffers()
    return fabric


def start_fabric_of(run: LoopSettings) -> Fabric:
    """Set up device and precision of a run of any verb but ``pretrain``; see :func:`start_fabric`."""
    return start_fabric(run.device, run.precision, "--", strategy=run.strategy, answer_minutes=run.answer_minutes)


def _one_of_several(
    device: str, mixed: MixedPrecision | None, strategy: StrategyName, answer_minutes: float, prefix: str
) -> Fabric:
    """Set up one of several processes, and meet the others."""
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
            plugins=[part for part in (mixed, environment) if part is not None],
        )
        fabric.launch()
    except (MisconfigurationException, ValueError) as error:
        raise UserError(f"{prefix}devices: {' '.join(str(error).split())}") from None
    open_control_group(60.0 * answer_minutes)
    return fabric


def _unsynchronized_buffers() -> dict[str, Any]:
    """Return the option of DDP not to send buffers in each step, under its name in this version of torch."""
    names = signature(DistributedDataParallel).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False}


def share_of_batch(run: LoopSettings, accumulation_steps: int = 1, *, even: bool = False) -> int:
    """Return the images of a batch, or of a micro-batch, that one process has.

    Args:
        run: the settings.
        accumulation_steps: micro-batches.
        even: the part of a process must be even.

    Raises:
        UserError: if processes and micro-batches cannot share the batch evenly.
    """
    world_size = process_rank().world_size
    if run.batch_size % (world_size * accumulation_steps) or (
        even and world_size > 1 and run.batch_size // world_size % 2
    ):
        pairs = ", each with an even number of images" if even else ""
        raise UserError(
            f"--batch_size: expected a multiple of {world_size} processes times {accumulation_steps} micro-batches"
            f"{pairs}, got {run.batch_size}"
        )
    return run.batch_size // world_size // accumulation_steps


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


def autocast_dtype(fabric: Fabric) -> torch.dtype | None:
    """Return the half precision that ``fabric`` computes in, None for float32."""
    return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(str(fabric.strategy.precision.precision))


def use_device(name: str) -> torch.device:
    """Return the device called ``name``; ``auto`` is the accelerator if there is one, else the CPU.

    Raises:
        UserError: if it is not available on this machine.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it has no values")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device: {name} cannot be used here: {str(error).splitlines()[0]}") from None
    return device


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def loader_workers(workers: int | None) -> int:
    """Return the number of loader processes: ``workers``, or one fewer than there are cores for None."""
    return resolve_workers("auto" if workers is None else workers)
