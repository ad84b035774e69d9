"""Device and precision of a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision

from hardpatch.choices import StrategyName
from hardpatch.data.workers import resolve_workers
from hardpatch.errors import UserError
from hardpatch.processes import close_groups, launched
from hardpatch.train.memory import keep_buffers
from hardpatch.train.parallel import meet
from hardpatch.train.settings import LoopSettings


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
        fabric = meet(device, mixed, strategy, answer_minutes, f"{prefix}devices")
    else:
        fabric = Fabric(accelerator=device, devices=1, plugins=mixed)
    if settle and fabric.device.type == "cpu":
        keep_buffers()
    return fabric


def start_fabric_of(run: LoopSettings) -> Fabric:
    """Set up device and precision of a run of any verb but ``pretrain``; see :func:`start_fabric`."""
    return start_fabric(run.device, run.precision, "--", strategy=run.strategy, answer_minutes=run.answer_minutes)


@contextmanager
def joined_device(name: str) -> Iterator[torch.device]:
    """Meet the other processes of a verb that does not train, if there are some, and leave them after the block.

    Yields:
        The device of this process.

    Raises:
        UserError: if ``name`` is not available on this machine.
    """
    if launched().world_size == 1:
        yield use_device(name)
        return
    try:
        yield start_fabric(name, "fp32", "--", settle=False).device
    finally:
        close_groups()


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
