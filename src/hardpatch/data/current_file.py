"""Files that loader processes read at the moment, so that the main process can name that of a process which died."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

LENGTH = 1024
"""Bytes of a name that are kept, the last ones."""

_slot: npt.NDArray[np.uint8] | None = None
"""Memory for the name in a loader process, which the main process shares; None in other processes."""


def shared_names(workers: int) -> "Tensor":
    """Return memory for a name of each of ``workers`` processes: uint8 ``[workers, LENGTH]``."""
    import torch

    return torch.zeros(workers, LENGTH, dtype=torch.uint8).share_memory_()


def write_names_to(names: "Tensor", worker: int) -> None:
    """In loader process number ``worker``, write from now on the file that is being read to :func:`shared_names`."""
    global _slot
    _slot = names[worker].numpy()


def in_loader() -> bool:
    """Return True in a loader process, where :func:`reading_file` notes the file."""
    return _slot is not None


def reading_file(name: str) -> None:
    """Note that this process begins to read the file ``name``."""
    if _slot is not None:
        text = name.encode("utf-8", "surrogateescape")[-LENGTH:]
        _slot[: len(text)] = np.frombuffer(text, dtype=np.uint8)
        _slot[len(text) :] = 0


def names_of(names: "Tensor", workers: Sequence[int]) -> list[str]:
    """Return the files that some processes read last, each once."""
    texts = (bytes(names[worker].numpy()).rstrip(b"\0").decode("utf-8", "backslashreplace") for worker in workers)
    return list(dict.fromkeys(text for text in texts if text))
