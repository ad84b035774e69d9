"""Start of the processes of a distributed training on this machine.

``torchrun`` and ``srun`` start the processes themselves. Where neither did, :func:`launch` starts one for each device;
all of them then have the environment that ``torchrun`` would give them. Several machines without a launcher work, too:
each runs the same command with ``MASTER_ADDR``, ``MASTER_PORT`` and ``NODE_RANK`` in its environment.
"""

import logging
import multiprocessing
import multiprocessing.connection
import os
import re
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch

from hardpatch.errors import TrainingError, UserError
from hardpatch.processes import close_groups, launched
from hardpatch.train.progress import Progress, Silent
from hardpatch.train.settings import LoopSettings

log = logging.getLogger("hardpatch")

T = TypeVar("T")

NO_ANSWER = (
    "another process did not answer within the time of --answer_minutes: it hangs, or waits for a disk or a network; "
    "go on from the last checkpoint with --resume, with more minutes if it was only slow"
)
SECONDS_TO_END = 10.0
"""Time in which the other processes have to end after the first one has ended."""


def launch(
    train: Callable[..., T],
    *arguments: Any,
    progress: Progress,
    devices: int,
    nodes: int = 1,
) -> T:
    """Call a training in ``devices`` processes on this machine, and return the result of this process.

    Args:
        train: a function of a module, which takes ``arguments`` and ``progress``.
        arguments: plain values, which are copied into the other processes.
        progress: display in this process; the others show nothing.
        devices: processes on this machine, from :func:`count_devices`.
        nodes: machines.

    Raises:
        UserError: as ``train`` does; also if the environment says nothing of the other machines.
        TrainingError: as ``train`` does; also if another process ended before its time.
    """
    if launched().world_size > 1 or devices * nodes == 1:
        return _train_here(train, arguments, progress if launched().rank == 0 else Silent())
    node = _node_rank(nodes)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())} if nodes == 1 else {}
    environments = [
        address
        | {
            "RANK": str(node * devices + local),
            "WORLD_SIZE": str(nodes * devices),
            "LOCAL_RANK": str(local),
            "LOCAL_WORLD_SIZE": str(devices),
            "GROUP_RANK": str(node),
        }
        for local in range(devices)
    ]
    context = multiprocessing.get_context("spawn")
    others = [
        context.Process(target=_other_process, args=(environment, train, arguments), name=environment["RANK"])
        for environment in environments[1:]
    ]
    ended = threading.Event()
    with _changed_environment(environments[0]):
        for process in others:
            process.start()
            threading.Thread(target=_watch, args=(process, len(environments), ended), daemon=True).start()
        try:
            with _share_of_threads(devices):
                return train(*arguments, progress=progress if node == 0 else Silent())
        except (RuntimeError, OSError) as error:
            if isinstance(error, TrainingError):
                raise
            raise _explained(error, others) from error
        finally:
            ended.set()
            close_groups()
            _end(others)


def _train_here(train: Callable[..., T], arguments: Sequence[Any], progress: Progress) -> T:
    """Train in this process, which is alone or was started by ``torchrun`` or ``srun``."""
    try:
        return train(*arguments, progress=progress)
    except RuntimeError as error:
        if launched().world_size > 1 and _no_answer(error):
            raise TrainingError(NO_ANSWER) from error
        raise
    finally:
        close_groups()


def launch_of(run: LoopSettings, train: Callable[..., T], *arguments: Any, progress: Progress) -> T:
    """Call a training of any verb but ``pretrain`` in the processes that its settings ask for; see :func:`launch`."""
    count = count_devices(run.devices, run.device)
    return launch(train, *arguments, progress=progress, devices=count, nodes=run.nodes)


def count_devices(devices: int | str, device: str) -> int:
    """Return the processes to start on this machine: ``devices``, or for auto the number of GPUs, 1 without.

    Raises:
        UserError: if there are not so many GPUs.
    """
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    if devices == "auto":
        return max(1, gpus)
    count = int(devices)
    if gpus > count == 1 and launched().world_size == 1:
        log.info("1 of %d GPUs is used; --devices auto uses all", gpus)
    if gpus and count > gpus:
        raise UserError(f"devices: expected at most the {gpus} GPUs of this machine, got {count}")
    return count


def _node_rank(nodes: int) -> int:
    """Return the number of this machine among several.

    Raises:
        UserError: if the environment does not tell it.
    """
    if nodes == 1:
        return 0
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in os.environ]
    if missing:
        raise UserError(
            f"nodes: {nodes} machines need {', '.join(missing)} in the environment of each; use torchrun or srun, or "
            "set MASTER_ADDR and MASTER_PORT to a port of the first machine, and NODE_RANK to 0, 1, ..."
        )
    return int(os.environ["NODE_RANK"])


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


@contextmanager
def _changed_environment(values: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _share_of_threads(processes: int) -> Iterator[None]:
    """Give each process on this machine its share of the CPU cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // processes))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _other_process(environment: Mapping[str, str], train: Callable[..., Any], arguments: Sequence[Any]) -> None:
    """Train in a process that is not the first. What the first says in an error, too, is not said twice."""
    os.environ.update(environment)
    logger = logging.getLogger("hardpatch")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        with _share_of_threads(int(environment["LOCAL_WORLD_SIZE"])):
            train(*arguments, progress=Silent())
    except (UserError, TrainingError):
        pass
    except Exception:
        # A connection breaks in all processes when one of them ends: the first one says why.
        if parent is None or not parent.is_alive():
            os._exit(1)
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # without waiting for the others
    finally:
        close_groups()


def _end_with(parent: Any) -> None:
    """End this process when the first one has: where it was killed before the two met, this one would wait for it."""
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _watch(process: BaseProcess, count: int, ended: threading.Event) -> None:
    """End this process if another one ended and this one waits for it, as it may before the two have met."""
    multiprocessing.connection.wait([process.sentinel])
    if not ended.wait(SECONDS_TO_END):
        print(f"hardpatch: process {process.name} of {count} ended early; the run is over", file=sys.stderr, flush=True)
        os._exit(1)


def _explained(error: Exception, others: Sequence[BaseProcess]) -> Exception:
    """Return the error of a process that ended early, if one did; otherwise the error as it is."""
    for process in others:
        process.join(1.0)
    for process in others:
        if process.exitcode:
            how = f"was killed by signal {-process.exitcode}" if process.exitcode < 0 else "failed"
            memory = ", perhaps because the memory was full" if process.exitcode == -9 else ""
            return TrainingError(
                f"process {process.name} of {len(others) + 1} {how}{memory}; go on from the last checkpoint with "
                "--resume"
            )
    return TrainingError(NO_ANSWER) if _no_answer(error) else error


def _no_answer(error: Exception) -> bool:
    """Return whether an error is that of a group of processes in which one does not answer in time."""
    return not isinstance(error, TrainingError) and re.search("timed? ?out", str(error), re.IGNORECASE) is not None


def _end(others: Sequence[BaseProcess]) -> None:
    """Wait for the other processes, and end those that do not."""
    for process in others:
        process.join(SECONDS_TO_END)
        if process.is_alive():
            process.kill()
            process.join()
