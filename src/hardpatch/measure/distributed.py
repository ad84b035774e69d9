"""Feature extraction in several processes: each takes every n-th image, then all are gathered.

torchrun --nproc_per_node 8 -m hardpatch knn RUN --train IMAGES --val IMAGES
"""

import torch
import torch.distributed as dist
from torch import Tensor

from hardpatch.measure.features import Features
from hardpatch.processes import gather_values, on_first, process_rank


def agree_on_cached(features: Features | None) -> Features | None:
    """Let rank 0 decide for all processes if features are cached, since all must take part in an extraction.

    Returns:
        None in every process if rank 0 has no features. Else the features on rank 0, which alone needs them, and empty
        features on the others.
    """
    rank, world_size = process_rank()
    if world_size == 1:
        return features
    if not on_first(lambda: features is not None):
        return None
    empty = torch.empty(0, dtype=torch.int64)
    return features if rank == 0 else Features(torch.empty(0, 0), empty, [], empty)


def gather_features(features: Features, device: torch.device) -> Features:
    """Gather the features of all processes, in the order of the images. Every process must call it."""
    rank, world_size = process_rank()
    if world_size == 1:
        return features
    indices = features.indices * world_size + rank  # this process had images rank, rank + world_size, ...
    gathered, labels, indices = (_all_gather(part, device) for part in (features.features, features.labels, indices))
    bad = [line for lines in gather_values(features.bad) for line in lines]
    order = indices.argsort()
    return Features(gathered[order], labels[order], bad, indices[order])


def _all_gather(rows: Tensor, device: torch.device) -> Tensor:
    """Concatenate the rows of all processes, whose numbers of rows may differ."""
    count = torch.tensor([len(rows)], device=device)
    counts = [torch.zeros_like(count) for _ in range(process_rank().world_size)]
    dist.all_gather(counts, count)
    padded = torch.zeros(max(map(int, counts)), *rows.shape[1:], dtype=rows.dtype, device=device)
    padded[: len(rows)] = rows.to(device)
    gathered = [torch.zeros_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    return torch.cat([part[: int(n)] for part, n in zip(gathered, counts, strict=True)]).cpu()
