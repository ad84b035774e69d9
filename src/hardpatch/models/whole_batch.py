"""A mean over the whole batch, of which each process has a part, through which the gradient flows."""

from typing import Any

import torch
from torch import Tensor

from hardpatch.processes import average, process_rank


class _MeanOverProcesses(torch.autograd.Function):
    """Mean over the processes of the numbers, and of the gradients of the losses of all of them."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        """Return the mean, which every process uses in its own loss."""
        return average(values)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        """Return the mean gradient: each process's numbers are in the losses of all processes."""
        return average(gradient)


def mean_over_processes(values: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes.

    As gradients are averaged over the processes afterwards, they are those of one loss of the whole batch.
    """
    if process_rank().world_size == 1:
        return values
    mean: Tensor = _MeanOverProcesses.apply(values)
    return mean
