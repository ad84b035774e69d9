"""Batches of uint8 images: an endless training stream that resumes exactly, and one ordered pass for evaluation.

The same seed gives the same training batches with any number of workers, after a resume, and joined over any number of
ranks: what a sample looks like depends only on (seed, epoch, index).
"""

import logging
import math
import os
import signal
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from hardpatch.data.augment import GLOBAL_CROPS, Crop, EvalTransform, MultiCropTransform, TrainTransform
from hardpatch.data.decode import UndecodableImage, check_channels, open_image
from hardpatch.data.sources import Source
from hardpatch.errors import UserError

MOST_WORKERS = 8
AHEAD_BYTES = 2 << 30
"""All batches that workers make ahead take about this much, as long as each makes one."""
MOST_AHEAD = 4
"""Batches that a worker makes ahead: enough to even out slow files."""
SAMPLES = 1 << 40
"""More than any set has; `Batch.indices` of an image's second crop is its index plus this, of its third plus twice."""

T = TypeVar("T")


class Batch(NamedTuple):
    """One batch; `bad` says "name: reason" of each file that could not be decoded on the way to it.

    Of a :class:`MultiCropTransform`, `images` holds two views of each image and `local` L smaller ones, views first:
    all images in their first view, then all in their second, and so on. `local` is None where there are none.

    Of a :class:`TrainTransform`, `boxes` says which part of the image each one is, and `flipped` whether left and right
    are then swapped; both are of the image that is there, and None for other transforms.
    """

    images: torch.Tensor  # uint8 [B, C, H, W], or [2 * B, C, H, W]
    indices: torch.Tensor  # int64 [B], what was asked of the source, plus SAMPLES for each crop of it before this one
    labels: torch.Tensor  # int64 [B], of the image that is there, -1 = none
    bad: list[str]
    local: torch.Tensor | None = None  # uint8 [L * B, C, h, w]
    boxes: torch.Tensor | None = None  # float32 [B, 4]: top, left, height, width as shares of the image's height, width
    flipped: torch.Tensor | None = None  # bool [B]


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
) -> Generator[Batch, None, None]:
    """Endless training batches, from batch number `start` on; this rank's `batch_size / world_size` images of each.

    Position p of the stream belongs to epoch p // n and is place p % n of that epoch's permutation of the n images;
    batches run across the ends of epochs. An image that cannot be decoded gives its place to the next one in the source
    that can be (`indices` still says the one that was asked for). Close the iterator to stop the workers early.

    With several `crops` a batch reads `batch_size / crops` images, so many places of the stream, and each gives its
    crops at once: the first ones of all images of the share, then the second ones, and so on. The first ones are those
    of a batch of that size with one crop.

    Raises UserError on a batch size that the ranks and the crops cannot share evenly and, from the iterator, if nothing
    decodes.
    """
    reads = images_read(batch_size, crops, world_size)
    if seed < 0:
        raise UserError(f"seed: expected 0 or more, got {seed}")
    check_channels(transform.channels)
    if crops > 1 and isinstance(transform, MultiCropTransform):
        raise ValueError(f"crops: expected 1 with multi-crop, which has its own, got {crops}")
    positions = TrainingOrder(len(source), reads, seed, start, rank, world_size)
    dataset = _TrainingSet(source, transform, seed, crops)
    ahead = batches_ahead(batch_size // world_size * transform.channels * math.prod(transform.image_size), workers)
    return _stream(batch_loader(dataset, positions, workers, pin_memory, ahead), len(source))


def batches_ahead(size: int, workers: int) -> int:
    """How many batches of `size` bytes each of the workers makes ahead."""
    return min(MOST_AHEAD, max(1, AHEAD_BYTES // (size * max(1, workers))))


def images_read(batch_size: int, crops: int, world_size: int = 1) -> int:
    """Images that all processes read for a batch; UserError where they cannot share it evenly."""
    if batch_size < 1 or batch_size % world_size:
        raise UserError(f"batch_size: expected a positive multiple of the {world_size} processes, got {batch_size}")
    if crops < 1 or batch_size // world_size % crops:
        raise UserError(
            f"data.crops: expected a divisor of the {batch_size // world_size} crops of a process's batch, got {crops}"
        )
    return batch_size // crops


def crop_indices(indices: npt.NDArray[np.int64], crops: int) -> npt.NDArray[np.int64]:
    """`Batch.indices` of several crops of each image, int64 [crops * n]."""
    return (np.arange(crops)[:, None] * SAMPLES + indices).ravel()


def on_device(batches: Generator[Batch, None, None], device: torch.device) -> Generator[Batch, None, None]:
    """The same batches on the device; with CUDA each is copied while the device still computes the step before.

    The host runs ahead of the device. What it asks for on a stream beside that of the step need not wait for the step;
    only the next step waits for it. Batches must be pinned, or the host waits too. Closing this closes `batches`.
    """
    with closing(batches):
        if device.type != "cuda":
            yield from (_moved(batch, device) for batch in batches)
            return
        beside = torch.cuda.Stream(device)
        for batch in batches:
            with torch.cuda.stream(beside):
                there = _moved(batch, device)
            now = torch.cuda.current_stream(device)
            now.wait_stream(beside)
            for part in there:
                if isinstance(part, torch.Tensor):
                    part.record_stream(now)  # or its memory would be given away once `beside` is done with it
            yield there


def _moved(batch: Batch, device: torch.device) -> Batch:
    moved: dict[str, Any] = batch._asdict()
    for name, part in moved.items():
        moved[name] = part.to(device, non_blocking=True) if isinstance(part, torch.Tensor) else part
    return Batch(**moved)


def eval_batches(
    source: Source, transform: EvalTransform, *, batch_size: int, workers: int = 0, pin_memory: bool = False
) -> Iterator[Batch]:
    """Every image once, in order. Broken files are left out, so a batch may be smaller; none is empty.

    Raises UserError on a wrong batch size and, from the iterator, if nothing decodes.
    """
    if batch_size < 1:
        raise UserError(f"batch_size: expected 1 or more, got {batch_size}")
    check_channels(transform.channels)
    order = InOrder(len(source), batch_size)
    return _without_empty(batch_loader(_EvaluationSet(source, transform), order, workers, pin_memory), len(source))


class TrainingOrder(Sampler[npt.NDArray[np.int64]]):
    """Yields int64 [B, 2] for ever: epoch and index of each sample of this rank's share of a batch."""

    def __init__(self, n: int, batch_size: int, seed: int, start: int, rank: int, world_size: int) -> None:
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self.share = batch_size // world_size
        self.first = start * batch_size + rank * self.share

    def __iter__(self) -> Iterator[npt.NDArray[np.int64]]:
        held, order = -1, np.empty(0, dtype=np.int64)
        first = self.first
        while True:
            epochs, places = np.divmod(np.arange(first, first + self.share), self.n)
            indices = np.empty_like(places)
            for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
                if epoch != held:
                    held, order = epoch, self._permutation(epoch)
                here = epochs == epoch
                indices[here] = order[places[here]]
            yield np.stack([epochs, indices], axis=1)
            first += self.batch_size

    def _permutation(self, epoch: int) -> npt.NDArray[np.int64]:
        key = np.random.SeedSequence([self.seed, epoch]).generate_state(1, np.uint64)[0]
        return torch.randperm(self.n, generator=torch.Generator().manual_seed(int(key))).numpy()


class InOrder(Sampler[npt.NDArray[np.int64]]):
    """Yields int64 [B], the indices of one batch after the other."""

    def __init__(self, n: int, batch_size: int) -> None:
        self.n, self.batch_size = n, batch_size

    def __iter__(self) -> Iterator[npt.NDArray[np.int64]]:
        for first in range(0, self.n, self.batch_size):
            yield np.arange(first, min(first + self.batch_size, self.n))


class _TrainingSet(Dataset[Batch]):
    """Makes a whole batch at once, into one tensor a size. If nothing can be decoded the batch is empty."""

    def __init__(
        self, source: Source, transform: TrainTransform | MultiCropTransform, seed: int, crops: int = 1
    ) -> None:
        self.source, self.transform, self.seed, self.crops = source, transform, seed, crops

    def __getitem__(self, samples: npt.NDArray[np.int64]) -> Batch:
        sizes = [(self.crops, self.transform.image_size)]
        if isinstance(self.transform, MultiCropTransform):
            sizes = [(GLOBAL_CROPS, self.transform.image_size), (self.transform.local_crops, self.transform.local_size)]
        views = [_empty(self.transform.channels, size, count, len(samples)) for count, size in sizes]
        labels = torch.full((len(samples),), -1)
        boxes = np.zeros((self.crops, len(samples), 4), dtype=np.float32)
        flipped = np.zeros((self.crops, len(samples)), dtype=np.bool_)
        bad: dict[str, None] = {}
        for k, (epoch, index) in enumerate(samples.tolist()):
            found = self._next_decodable(epoch, index, bad)
            if found is None:
                return Batch(views[0][0, :0], torch.empty(0, dtype=torch.int64), labels[:0], list(bad))
            made, at = found
            if isinstance(made, list):
                for crop, (pixels, box, flip) in enumerate(made):
                    views[0][crop, k] = pixels
                    boxes[crop, k], flipped[crop, k] = box, flip
            else:
                for view, crops in zip(views, made, strict=True):
                    view[:, k] = crops
            labels[k] = _label(self.source, at)
        images, *local = [view.flatten(0, 1) for view in views]
        single = isinstance(self.transform, TrainTransform)
        return Batch(
            images,
            torch.from_numpy(crop_indices(samples[:, 1], self.crops)),
            labels.repeat(self.crops),
            list(bad),
            local[0] if local and len(local[0]) else None,
            torch.from_numpy(boxes.reshape(-1, 4)) if single else None,
            torch.from_numpy(flipped.ravel()) if single else None,
        )

    def _next_decodable(
        self, epoch: int, index: int, bad: dict[str, None]
    ) -> tuple[list[Crop] | tuple[torch.Tensor, torch.Tensor], int] | None:
        """The views of an image, or of the next one that can be decoded, and its place in the source."""
        n = len(self.source)
        for step in range(n):
            at = (index + step) % n
            rng = np.random.default_rng((self.seed, epoch, index))
            try:
                if isinstance(self.transform, TrainTransform):
                    return self._crops(self.transform, at, rng), at
                return self.transform(self.source.image(at, self.transform.channels), rng), at
            except UndecodableImage as error:
                bad[str(error)] = None
        return None

    def _crops(self, transform: TrainTransform, at: int, rng: np.random.Generator) -> list[Crop]:
        if self.crops > 1:  # all of them from one decode, which cannot be at the scale of each
            image = self.source.image(at, transform.channels)
            return [transform.crop(image, rng) for _ in range(self.crops)]
        data = self.source.encoded(at)
        if data is None:
            return [transform.crop(self.source.image(at, transform.channels), rng)]
        try:
            return [transform.crop(open_image(data, transform.channels), rng)]
        except UndecodableImage as error:
            raise UndecodableImage(f"{self.source.name(at)}: {error}") from None


class _EvaluationSet(Dataset[Batch]):
    """Makes a whole batch at once, of those images that can be decoded."""

    def __init__(self, source: Source, transform: EvalTransform) -> None:
        self.source, self.transform = source, transform

    def __getitem__(self, indices: npt.NDArray[np.int64]) -> Batch:
        images = _empty(self.transform.channels, self.transform.image_size, len(indices))
        good: list[int] = []
        bad: list[str] = []
        for index in indices.tolist():
            try:
                images[len(good)] = self.transform(self.source.image(index, self.transform.channels))
            except UndecodableImage as error:
                bad.append(str(error))
            else:
                good.append(index)
        labels = torch.tensor([_label(self.source, index) for index in good], dtype=torch.int64)
        return Batch(images[: len(good)], torch.tensor(good, dtype=torch.int64), labels, bad)


def _empty(channels: int, size: tuple[int, int], *leading: int) -> torch.Tensor:
    return torch.empty((*leading, channels, *size), dtype=torch.uint8)


def _label(source: Source, index: int) -> int:
    label = source.label(index)
    return -1 if label is None else label


def batch_loader(
    dataset: Dataset[T], order: Sampler[Any] | None, workers: int, pin_memory: bool = False, ahead: int = 2
) -> DataLoader[T]:
    """What a dataset gives for each key of `order` (None: 0, 1, 2, ...), as it is, made by so many `workers`.

    Each of them makes so many `ahead`.
    """
    return DataLoader(
        dataset,
        sampler=order,
        batch_size=None,  # the dataset makes whole batches
        collate_fn=_as_it_is,
        num_workers=workers,
        worker_init_fn=_leave_signals_to_the_main_process,
        prefetch_factor=ahead if workers else None,
        pin_memory=pin_memory,
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_signals_to_the_main_process(worker: int) -> None:
    """Ignore signals that reach the whole process group, so that the main process can finish its step and save.

    The terminal sends SIGINT and SIGHUP that way, and `timeout`, systemd and Slurm SIGTERM and SIGUSR1. The second
    SIGTERM ends a worker, so that a loader can get rid of one that hangs.
    """
    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(signal.SIGTERM, signal.SIG_DFL))


# A UserError that is raised in a worker comes out with the worker's traceback in its message, so the datasets say by an
# empty batch that nothing could be decoded, and the error is raised here.


def _stream(loader: DataLoader[Batch], n: int) -> Generator[Batch, None, None]:
    for batch in loader:
        if not len(batch.images):
            raise nothing_decodes(n, batch.bad)
        yield batch


def _without_empty(loader: DataLoader[Batch], n: int) -> Iterator[Batch]:
    """Holds one batch back, to hand on with it the broken files of empty ones that follow."""
    held: Batch | None = None
    bad: list[str] = []
    for batch in loader:
        if not len(batch.images):
            bad += batch.bad
            continue
        if held is not None:
            yield held._replace(bad=held.bad + bad)
            bad = []
        held = batch
    if held is None:
        raise nothing_decodes(n, bad)
    yield held._replace(bad=held.bad + bad)


def nothing_decodes(n: int, bad: list[str]) -> UserError:
    """What to say of n images that are all broken."""
    return UserError(f"data: none of the {n} images can be decoded; the last was {bad[-1]}")


class BadFiles:
    """Counts the files that could not be decoded, logs each once, and stops a run that meets too many of them."""

    def __init__(
        self,
        total: int,
        max_bad_fraction: float,
        option: str = "--data.max_bad_fraction",
        log: Callable[[str], object] | None = None,
    ) -> None:
        self.total, self.max_bad_fraction, self.option = total, max_bad_fraction, option
        self._log = logging.getLogger("hardpatch").warning if log is None else log
        self._seen: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def update(self, bad: Iterable[str]) -> None:
        """Take note of a batch's `bad`; UserError once more than the allowed fraction of the source is broken."""
        for entry in bad:
            if entry not in self._seen:
                self._seen[entry] = None
                self._log(f"cannot decode {entry}")
        if len(self) > self.max_bad_fraction * self.total:
            raise UserError(
                f"{self.option.removeprefix('--')}: {len(self)} of {self.total} images ({len(self) / self.total:.2%}) "
                f"cannot be decoded and {self.max_bad_fraction:.2%} may be, the last: {'; '.join([*self._seen][-3:])}; "
                f"raise {self.option} to go on"
            )


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resolve_workers(workers: int | str) -> int:
    """The number of loader processes: as given, or for "auto" one fewer than the cores this process has, at most 8."""
    if workers == "auto":
        return min(cores() - 1, MOST_WORKERS)
    if not isinstance(workers, int) or isinstance(workers, bool) or workers < 0:
        raise UserError(f'data.workers: expected "auto" or a number of processes, 0 or more, got {workers!r}')
    return workers
