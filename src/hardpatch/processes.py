"""The processes of a distributed training, and what they exchange.

Everything here also works in a single process, where it costs nothing: a sum over one process is the number itself.
Tensors of a step travel through the default group of processes (NCCL between GPUs, Gloo between CPUs). Plain values
travel through a group of their own on the CPU, so that they never wait for a device.
"""

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from hardpatch.errors import TrainingError, UserError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class ProcessRank(NamedTuple):
    """Position of this process among all processes of a run."""

    rank: int
    world_size: int


def process_rank() -> ProcessRank:
    """Return rank and number of processes; (0, 1) outside of a process group."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return ProcessRank(dist.get_rank(), dist.get_world_size())
    return ProcessRank(0, 1)


class Launched(NamedTuple):
    """Position of this process as its launcher says it, also before the processes have met."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    """processes on this machine"""
    by_slurm: bool = False


def launched() -> Launched:
    """Return what ``torchrun``, ``srun`` or :mod:`hardpatch.train.launch` says of this process, in its environment.

    Under Slurm a batch script itself is not one of several processes, only what ``srun`` starts is.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:  # one process on each machine unless it is said
        defaults = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        numbers = (int(os.environ.get(name, default)) for name, default in defaults.items())
        rank, world_size, local_rank, local_world_size = numbers
        return Launched(rank, world_size, local_rank, local_world_size)
    world_size = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if world_size > 1:
        nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
        rank, local_rank = (int(os.environ[name]) for name in ("SLURM_PROCID", "SLURM_LOCALID"))
        return Launched(rank, world_size, local_rank, world_size // nodes, by_slurm=True)
    return Launched()


def is_first() -> bool:
    """Return whether this process writes the files of a run; True for a process alone."""
    return launched().rank == 0


def global_mean(total: "Tensor", count: "Tensor") -> "Tensor":
    """Divide a sum over this process's part of a batch so that the mean over the processes is the mean of the batch.

    The mean of quotients is not the quotient of means where processes count differently, as for pairs without a tie.
    Gradients are averaged over the processes, so the denominator is the mean count of a process.

    Args:
        total: scalar; the gradient flows through it alone.
        count: scalar, without a gradient.
    """
    world_size = process_rank().world_size
    if world_size == 1:
        return total / count.clamp(min=1)
    from torch.distributed import _functional_collectives as collectives

    everywhere = collectives.all_reduce(count.detach().float(), "sum", _default_group())
    return total / (everywhere.clamp(min=1) / world_size)


def average(values: "Tensor") -> "Tensor":
    """Return the mean of a tensor over all processes, without a gradient."""
    world_size = process_rank().world_size
    if world_size == 1:
        return values
    import torch.distributed as dist

    values = values.detach().clone()
    dist.all_reduce(values)
    return values / world_size


def share_from_first(values: Iterable[Any]) -> None:
    """Copy tensors of the first process into those of all others, in place."""
    if process_rank().world_size == 1:
        return
    import torch.distributed as dist

    for value in values:
        dist.broadcast(value, src=0)


def gather_rows(rows: "Tensor") -> "Tensor":
    """Concatenate the rows ``[B, ...]`` of all processes, which have equally many: ``[processes * B, ...]``."""
    world_size = process_rank().world_size
    if world_size == 1:
        return rows
    import torch.distributed as dist

    gathered = rows.new_empty(world_size * len(rows), *rows.shape[1:])
    dist.all_gather_into_tensor(gathered, rows.contiguous())
    return gathered


def gather_values(value: T) -> list[T]:
    """Return the plain values of all processes, in the order of their ranks."""
    world_size = process_rank().world_size
    if world_size == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * world_size
    dist.all_gather_object(values, value, group=control_group())
    return cast(list[T], values)


def on_first(function: Callable[[], T]) -> T:
    """Call a function in the first process only, while the others wait, and return its plain result in all of them.

    Raises:
        UserError, TrainingError: as the function does, in all processes.
    """
    rank, world_size = process_rank()
    if world_size == 1:
        return function()
    import torch.distributed as dist

    answer: list[Any] = [None, None]
    failure: UserError | TrainingError | None = None
    if rank == 0:
        try:
            answer[0] = function()
        except (UserError, TrainingError) as error:
            failure, answer[1] = error, (type(error) is UserError, str(error))
    dist.broadcast_object_list(answer, src=0, group=control_group())
    if failure is not None:
        raise failure
    if answer[1] is not None:
        of_user, message = answer[1]
        raise UserError(message) if of_user else TrainingError(message)
    return cast(T, answer[0])


class Agreement:
    """Exchange of requests between processes while they compute.

    An answer comes one exchange late, so that no process waits for a slower one. In a single process it comes at once.
    """

    def __init__(self) -> None:
        self._pending: tuple[Any, Tensor] | None = None
        self._repeated = False
        """the pending exchange began before the last answer came: it asks for the same once more"""

    def exchange(self, *numbers: int) -> tuple[int, ...]:
        """Return the largest value of each of the ``numbers`` in any process; zeros at the first call."""
        if process_rank().world_size == 1:
            return numbers
        import torch
        import torch.distributed as dist

        values = torch.tensor(numbers)
        work = dist.all_reduce(values, dist.ReduceOp.MAX, group=control_group(), async_op=True)
        previous, self._pending = self._pending, (work, values)
        if previous is None:
            return (0,) * len(numbers)
        previous[0].wait()
        answer = (0,) * len(numbers) if self._repeated else tuple(previous[1].tolist())
        self._repeated = any(answer)
        return answer

    def finish(self) -> None:
        """Wait for the last exchange, whose answer is not needed anymore."""
        if self._pending is not None:
            self._pending[0].wait()
            self._pending = None


_control: Any = None
_saving: Any = None


def control_group() -> Any:
    """Return the group for plain values, which :func:`open_groups` made; None is the default group."""
    return _control


def saving_group() -> Any:
    """Return the group of the threads that write a checkpoint, likewise."""
    return _saving


def open_groups(seconds: float) -> None:
    """Make the groups for plain values and for checkpoints, once the processes have met.

    Args:
        seconds: time after which a process gives up waiting for another one.
    """
    from datetime import timedelta

    import torch.distributed as dist

    global _control, _saving
    _control, _saving = (dist.new_group(backend="gloo", timeout=timedelta(seconds=seconds)) for _ in range(2))


def close_groups() -> None:
    """Leave all groups; does nothing in a single process."""
    import torch.distributed as dist

    global _control, _saving
    _control = _saving = None
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _default_group() -> Any:
    import torch.distributed as dist

    return dist.group.WORLD
