"""Weights, gradients and optimizer state that are divided among the processes (FSDP2)."""

import copy
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from torch import Tensor, nn

from hardpatch.processes import is_first, share_from_first

Network = TypeVar("Network", bound=nn.Module)


def shard(module: nn.Module, mesh: Any) -> nn.Module:
    """Divide the weights of a network in place, as one group that is gathered for each forward and backward pass.

    One group, because methods other than ``forward`` of the blocks are called too, which would not gather a block's.

    Args:
        module: the network.
        mesh: device mesh with the dimension ``data_parallel``.
    """
    from torch.distributed.fsdp import fully_shard

    fully_shard(module, mesh=mesh["data_parallel"])
    return module


def shard_copy(fabric: Fabric, copy: nn.Module, method: str) -> None:
    """Divide a copy of a network as the network itself is; does nothing if that is whole.

    Args:
        fabric: set the network up.
        copy: for example its moving average.
        method: of the copy, for which its weights are gathered.
    """
    if isinstance(fabric.strategy, ModelParallelStrategy):
        from torch.distributed.fsdp import register_fsdp_forward_method

        shard(copy, fabric.strategy.device_mesh)
        register_fsdp_forward_method(copy, method)


def reshard(module: nn.Module) -> None:
    """Drop the gathered weights of a divided network, so that each process sees its part; else do nothing."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(module, FSDPModule):
        module.reshard()


def is_sharded(module: nn.Module) -> bool:
    """Return whether the weights of a network are divided."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def whole(value: Tensor) -> Tensor:
    """Return the whole of a divided tensor, for which all processes must ask; any other tensor as it is."""
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value


def collected(value: Tensor) -> Tensor:
    """Return a tensor for a file, which the first process writes: the whole of a divided one there, else nothing.

    All processes must ask. The whole goes to the host's memory, as many of them would not fit on a device.
    """
    from torch.distributed.tensor import DTensor

    if not isinstance(value, DTensor):
        return value
    full = value.full_tensor()
    return full.cpu() if is_first() else full.new_empty(0)


def own_parts(values: Iterable[Tensor]) -> list[Tensor]:
    """Return the part of each tensor that this process has: all of it if it is not divided."""
    from torch.distributed.tensor import DTensor

    return [value.to_local() if isinstance(value, DTensor) else value for value in values]


def divided_as(value: Tensor, like: Tensor) -> Tensor:
    """Divide a whole tensor as ``like`` is, on its device; scalars, such as step counters, stay whole."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    value = value.to(like.device)
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value, like.device_mesh, like.placements)


def load_whole(module: nn.Module, values: dict[str, Tensor]) -> None:
    """Load whole tensors, by name, into a network that may be divided.

    Raises:
        RuntimeError: if a name or a shape does not fit, as ``load_state_dict`` does.
    """
    if is_sharded(module):
        own = module.state_dict()
        values = {name: divided_as(value, own[name]) if name in own else value for name, value in values.items()}
    module.load_state_dict(values)


class WholeCopy(Generic[Network]):
    """The whole of a network whose weights may be divided, for measurements.

    A divided network has a copy in the host's memory, which is on the device only between :meth:`gather` and
    :meth:`release`.

    Args:
        fabric: will set the network up.
        network: not divided yet.
    """

    def __init__(self, fabric: Fabric, network: Network) -> None:
        self.network, self.device = network, fabric.device
        divided = isinstance(fabric.strategy, ModelParallelStrategy)
        self.copy = copy.deepcopy(network).cpu() if divided else None

    @property
    def current(self) -> Network:
        """The network, or the copy as it was gathered last."""
        return self.network if self.copy is None else self.copy

    def gather(self) -> Network:
        """Bring the copy up to date, and return :attr:`current`. All processes must take part."""
        if self.copy is not None:
            self.copy.to(self.device)
            copy_whole(self.network, self.copy)
        return self.current

    def release(self) -> None:
        """Free the device's memory of the copy."""
        if self.copy is not None:
            self.copy.cpu()

    def put_back(self) -> None:
        """Load a copy that was changed, in the first process, into the network of all processes."""
        share_from_first(self.current.state_dict().values())
        if self.copy is not None:
            load_whole(self.network, self.copy.state_dict())
            self.release()


def copy_whole(source: nn.Module, target: nn.Module) -> None:
    """Copy the weights of a divided network into a whole one of the same kind. All processes must take part."""
    with torch.no_grad():
        target.load_state_dict({name: whole(value) for name, value in source.state_dict().items()})
