"""Feature extraction over several processes (``torchrun``): each takes every n-th image, then all know all.

torchrun --nproc_per_node 8 -m hardpatch knn RUN --train IMAGES --val IMAGES
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from hardpatch.measure.features import Features


def ranks() -> tuple[int, int]:
    """(rank, number of processes); (0, 1) where there is one."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Meet the other processes of a ``torchrun``, where there are any; gives this process's device."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def of_first_rank(features: Features | None) -> Features | None:
    """What the first process found on the disk goes for all, so that none waits for one that has nothing to compute.
    Only the first has the features then, and only it needs them."""
    rank, world = ranks()
    if world == 1:
        return features
    found = [features is not None]
    dist.broadcast_object_list(found, src=0)
    if not found[0]:
        return None
    nothing = torch.empty(0, dtype=torch.int64)
    return features if rank == 0 else Features(torch.empty(0, 0), nothing, [], nothing)


def gathered(features: Features, device: torch.device) -> Features:
    """The features of all processes, in the order of the images; every process must call it."""
    rank, world = ranks()
    if world == 1:
        return features
    indices = features.indices * world + rank  # this process had images rank, rank + world, ...
    parts = [_all(tensor, device) for tensor in (features.features, features.labels, indices)]
    lines: list[list[str]] = [[] for _ in range(world)]
    dist.all_gather_object(lines, features.bad)
    order = parts[2].argsort()
    return Features(parts[0][order], parts[1][order], [line for bad in lines for line in bad], parts[2][order])


def _all(tensor: Tensor, device: torch.device) -> Tensor:
    """Rows of all processes, one after the other; they need not have as many each."""
    _, world = ranks()
    count = torch.tensor([len(tensor)], device=device)
    counts = [torch.zeros_like(count) for _ in range(world)]
    dist.all_gather(counts, count)
    most = max(int(n) for n in counts)
    mine = torch.zeros(most, *tensor.shape[1:], dtype=tensor.dtype, device=device)
    mine[: len(tensor)] = tensor.to(device)
    others = [torch.zeros_like(mine) for _ in range(world)]
    dist.all_gather(others, mine)
    return torch.cat([other[: int(n)] for other, n in zip(others, counts, strict=True)]).cpu()
