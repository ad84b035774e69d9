"""Loaders: an endless stream of training batches that resumes exactly, and one ordered pass for evaluation.

The same seed gives the same training batches with any number of workers, after a resume, and joined over any number of
ranks: a sample depends only on (seed, epoch, index).
"""

import atexit
import math
import multiprocessing
import os
import signal
import threading
import time
import weakref
from collections.abc import Generator, Iterator
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from hardpatch.data.augment import EvalTransform, MultiCropTransform, TrainTransform
from hardpatch.data.bad_files import nothing_decodable
from hardpatch.data.batch import Batch
from hardpatch.data.current_file import names_of, shared_names, write_names_to
from hardpatch.data.datasets import CropDataset, EvaluationDataset, MultiCropDataset
from hardpatch.data.limits import check_channels
from hardpatch.data.order import EvaluationOrder, TrainingOrder, images_per_batch
from hardpatch.data.row_groups import RowGroups
from hardpatch.data.sources import Source
from hardpatch.errors import TrainingError, UserError
from hardpatch.printable import printable

PREFETCH_BYTES = 2 << 30
"""Memory for the batches that all workers prepare ahead."""
MAX_PREFETCH = 4
"""Batches that a worker prepares ahead at most: enough to even out slow files."""

T = TypeVar("T")


class WorkerDiedError(TrainingError):
    """Error for a loader process that was killed or crashed; the message names the file that it was reading."""


def train_batches(
    source: Source,
    transform: TrainTransform | MultiCropTransform,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
    crops: int = 1,
    groups: RowGroups | None = None,
    weights: npt.NDArray[np.float64] | None = None,
) -> Generator[Batch, None, None]:
    """Load endless training batches; this rank gets `batch_size / world_size` images of each.

    An image that cannot be decoded is replaced by the next one in the source that can be; `indices` still name the
    original one. Close the generator to stop the workers early.

    Args:
        source: the images.
        transform: makes a crop, or the views of multi-crop.
        batch_size: crops in a batch of all ranks; with multi-crop, images.
        seed: of order and crops.
        start: number of the first batch.
        workers: processes that decode; 0 decodes in this one.
        rank: number of this process.
        world_size: number of processes.
        pin_memory: load into pinned memory, for copies to a GPU.
        crops: crops of each image in a batch, which then has `batch_size / crops` images. They come crop by crop: the
            first of all images, then the second of all, and so on. The first ones are the same as without more crops.
        groups: row groups by which the images are shuffled, of :func:`~hardpatch.data.row_groups.choose_order`.
        weights: float64 [images], how often each image is drawn; None draws each once in an epoch.

    Raises:
        UserError: if ranks and crops cannot share the batch evenly, and from the generator if no image can be decoded.
    """
    images = images_per_batch(batch_size, crops, world_size)
    if seed < 0:
        raise UserError(f"seed: expected 0 or more, got {seed}")
    check_channels(transform.reading.channels)
    dataset: Dataset[Batch]
    if isinstance(transform, TrainTransform):
        dataset = CropDataset(source, transform, seed, crops)
    elif crops > 1:
        raise ValueError(f"crops: expected 1 with multi-crop, which has its own, got {crops}")
    else:
        dataset = MultiCropDataset(source, transform, seed)
    order = TrainingOrder(len(source), images, seed, start, rank, world_size, groups, weights)
    reading = transform.reading
    pixel_bytes = reading.number * np.dtype(reading.dtype).itemsize * math.prod(transform.image_size)
    prefetch = prefetch_factor(batch_size // world_size * pixel_bytes, workers)
    return _nonempty(batch_loader(dataset, order, workers, pin_memory, prefetch), len(source))


def eval_batches(
    source: Source, transform: EvalTransform, *, batch_size: int, workers: int = 0, pin_memory: bool = False
) -> Iterator[Batch]:
    """Load every image once, in order. Images that cannot be decoded are left out; no batch is empty.

    Raises UserError if the batch size is below 1, and from the iterator if no image can be decoded.
    """
    if batch_size < 1:
        raise UserError(f"batch_size: expected 1 or more, got {batch_size}")
    check_channels(transform.reading.channels)
    order = EvaluationOrder(len(source), batch_size)
    return _without_empty(batch_loader(EvaluationDataset(source, transform), order, workers, pin_memory), len(source))


def prefetch_factor(batch_bytes: int, workers: int) -> int:
    """Return the number of batches that each worker prepares ahead."""
    return min(MAX_PREFETCH, max(1, PREFETCH_BYTES // (batch_bytes * max(1, workers))))


def batch_loader(
    dataset: Dataset[T], order: Sampler[Any] | None, workers: int, pin_memory: bool = False, prefetch: int = 2
) -> DataLoader[T]:
    """Load what a dataset returns for each key of `order`, unchanged.

    Args:
        dataset: makes whole batches.
        order: its keys; None is 0, 1, 2, ...
        workers: processes; 0 loads in this one.
        pin_memory: load into pinned memory, for copies to a GPU.
        prefetch: batches that each worker prepares ahead.
    """
    names = shared_names(workers)
    return _Loader(
        dataset,
        names=names,
        sampler=order,
        batch_size=None,  # the dataset makes whole batches
        collate_fn=_unchanged,
        num_workers=workers,
        worker_init_fn=partial(_begin_worker, names),
        prefetch_factor=prefetch if workers else None,
        pin_memory=pin_memory,
    )


class _Loader(DataLoader[T]):
    """A loader whose workers end with Python, also where the loading was not closed, and whose dead workers are named.

    Python's own way is one SIGTERM at exit, which workers take for one that is meant for the main process.

    Args:
        names: files that the workers read, of :func:`~hardpatch.data.current_file.shared_names`.
    """

    def __init__(self, *arguments: Any, names: Tensor, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._names = names

    def __iter__(self) -> Any:
        main = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD")
        before = signal.getsignal(signal.SIGCHLD) if main else None
        iterator = super().__iter__()
        if not self.num_workers:
            return iterator
        if main and signal.getsignal(signal.SIGCHLD) is not before:
            # torch's handler raises in the middle of a training step; a dead worker is found at the next batch, too
            signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None else before)
        _running.add(iterator)
        return self._batches(iterator)

    def _batches(self, iterator: Any) -> Iterator[T]:
        """Yield the batches of torch's iterator.

        Raises WorkerDiedError, with the file that a dead worker was reading.
        """
        try:
            yield from iterator
        except (RuntimeError, OSError, EOFError):
            time.sleep(0.1)  # until the process can be waited for
            codes = [worker.exitcode for worker in iterator._workers]
            dead = [number for number, code in enumerate(codes) if code]
            if not dead:
                raise
            files = ", ".join(map(printable, names_of(self._names, dead))) or "its first file"
            code = codes[dead[0]]
            raise WorkerDiedError(
                f"a process that decodes images ended ({_cause(code)}); it was reading {files}; look at that file, and "
                "take fewer --workers if memory was short"
            ) from None


def _cause(code: int) -> str:
    """Return why a process ended, by its exit code."""
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
    reasons = {"SIGKILL": ": killed, maybe since memory ran out", "SIGBUS": ": shared memory, /dev/shm, is full"}
    return f"{name}{reasons.get(name, '')}"


_running: weakref.WeakSet[Any] = weakref.WeakSet()


@atexit.register
def _stop_workers() -> None:
    for iterator in list(_running):
        iterator._shutdown_workers()


def _unchanged(batch: Any) -> Any:
    return batch


def _begin_worker(names: Tensor, worker: int) -> None:
    write_names_to(names, worker)
    _leave_signals_to_the_main_process()
    parent = multiprocessing.parent_process()
    if parent is not None and multiprocessing.get_start_method() != "forkserver" and os.getppid() != parent.pid:
        os._exit(1)  # the parent was killed before torch's watchdog asks whose child this is, and would be waited for


def _leave_signals_to_the_main_process() -> None:
    """Ignore signals that reach the whole process group, so that the main process can finish its step and save.

    A terminal sends SIGINT and SIGHUP that way; `timeout`, systemd and Slurm send SIGTERM and SIGUSR1. The second
    SIGTERM ends a worker, so that a loader can get rid of one that hangs.
    """
    for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def _nonempty(loader: DataLoader[Batch], n: int) -> Generator[Batch, None, None]:
    """Yield the batches; an empty one means that none of the n images can be decoded."""
    for batch in loader:
        if not len(batch.images):
            raise nothing_decodable(n, batch.bad)
        yield batch


def _without_empty(loader: DataLoader[Batch], n: int) -> Iterator[Batch]:
    """Leave out empty batches; their bad files are reported with the batch before them, or the first one."""
    previous: Batch | None = None
    bad: list[str] = []
    for batch in loader:
        if not len(batch.images):
            bad += batch.bad
            continue
        if previous is not None:
            yield previous._replace(bad=previous.bad + bad)
            bad = []
        previous = batch
    if previous is None:
        raise nothing_decodable(n, bad)
    yield previous._replace(bad=previous.bad + bad)
