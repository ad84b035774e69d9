"""Memory of this machine: the C library's allocator for training on a CPU, and what does not fit."""

import ctypes
import sys

import torch

from hardpatch.data.memory import available_memory
from hardpatch.errors import UserError

WEIGHT = 4
"""Bytes of a weight in float32."""
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def keep_buffers() -> bool:
    """Make glibc keep the memory that a step frees for the next step. Applies to the whole process.

    By default, every buffer above 32 MiB is mapped from the system when it is allocated and unmapped when it is freed,
    and the system clears its pages each time. With batches of 256 small images that can take a third of a step. With
    this setting the process holds its peak memory until it ends.

    Returns:
        True if it was set; False with other C libraries, which are left unchanged.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))


def check_memory(need: float, settings: str, what: str) -> None:
    """Refuse what cannot fit into the free memory of this machine, by a plain estimate that is too low if anything.

    Args:
        need: bytes that it takes at least.
        settings: names of the settings that it follows from.
        what: what takes the memory.

    Raises:
        UserError: says how much is needed and how much is free.
    """
    free = available_memory()
    if free is not None and need > free:
        raise UserError(
            f"{settings}: expected {what} that fits into the memory of this machine, got one of at least "
            f"{need / 1e9:,.1f} GB where {free / 1e9:,.1f} GB are free; take smaller numbers"
        )


def bytes_per_parameter(device: str) -> int:
    """Return the bytes of host memory that a trained parameter takes at least: weight, gradient and two moments.

    On an accelerator it is the weight alone, since the model is built in the host's memory.
    """
    return 4 * WEIGHT if device == "cpu" or (device == "auto" and not torch.accelerator.is_available()) else WEIGHT
