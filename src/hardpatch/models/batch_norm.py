"""Batch norm over the whole batch, also where several processes share it.

`torch.nn.SyncBatchNorm` does so on GPUs only.
"""

import torch
from torch import Tensor, nn

from hardpatch.models.whole_batch import mean_over_processes
from hardpatch.processes import process_rank


def normalize_whole(norm: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Normalize the part ``[B, C, ...]`` that this process has, and update the running statistics of ``norm``."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    axes = [axis for axis in range(x.ndim) if axis != 1]
    shape = [1, -1] + [1] * (x.ndim - 2)
    values = x.float()
    mean = mean_over_processes(values.mean(axes))
    centered = values - mean.view(shape)
    variance = mean_over_processes(centered.square().mean(axes))
    count = process_rank().world_size * x.numel() / x.shape[1]
    with torch.no_grad():
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)
    normalized = centered * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        normalized = normalized * norm.weight.view(shape) + norm.bias.view(shape)
    return normalized.to(x.dtype)


class BatchNorm1d(nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` of ``[B, C]``, over the batch of all processes."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize; in a single process and in eval mode as torch does."""
        return normalize_whole(self, x) if self.training and process_rank().world_size > 1 else super().forward(x)


class BatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` of ``[B, C, H, W]``, over the batch of all processes."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize; in a single process and in eval mode as torch does."""
        return normalize_whole(self, x) if self.training and process_rank().world_size > 1 else super().forward(x)
