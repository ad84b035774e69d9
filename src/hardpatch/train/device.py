"""Device and precision of a run."""

from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision

from hardpatch.data.workers import resolve_workers
from hardpatch.errors import UserError
from hardpatch.train.memory import keep_buffers


class InputsAsTheyAre(MixedPrecision):
    """Autocast gives each layer the precision that it wants; pixels are not rounded before, since the losses are of
    them.
    """

    def convert_input(self, data: Any) -> Any:
        return data


PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def start_fabric(device: str, precision: str, prefix: str, *, settle: bool = True) -> Fabric:
    """Device and precision of a run, as :class:`~hardpatch.pretrain.sections.TrainConfig` names them.

    On a CPU the process keeps its memory from then on (:mod:`hardpatch.train.memory`), unless ``settle`` is False.

    Raises:
        UserError: if they do not exist here; says ``prefix`` before the name of the setting.
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
        device = next((name for name, there in available.items() if there), "cpu")
    mixed = None if precision == "fp32" else InputsAsTheyAre(PRECISIONS[precision], device)
    fabric = Fabric(accelerator=device, devices=1, plugins=mixed)
    if settle and fabric.device.type == "cpu":
        keep_buffers()
    return fabric


def autocast_dtype(fabric: Fabric) -> torch.dtype | None:
    """Return the half precision that a fabric computes in, None for float32."""
    return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(str(fabric.strategy.precision.precision))


def use_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is the accelerator if there is one.

    Raises:
        UserError: if it does not exist here.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device: {name} cannot be used here: {str(error).splitlines()[0]}") from None
    return device


def loader_workers(workers: int | None) -> int:
    """Return the number of loader processes: as given, or one fewer than there are cores."""
    return resolve_workers("auto" if workers is None else workers)
