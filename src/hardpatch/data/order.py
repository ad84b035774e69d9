"""Orders in which the images of a source are read."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Sampler

from hardpatch.data.row_groups import RowGroups
from hardpatch.errors import UserError


class TrainingOrder(Sampler[npt.NDArray[np.int64]]):
    """Endless order of the training images: int64 [B, 2] per batch, epoch and index of each of this rank's images.

    Position p of the stream is entry p % n of the permutation of epoch p // n, so a batch may span two epochs. A batch
    does not depend on the ones before it, so resuming at any batch is instant and exact.

    Args:
        n: images in the source.
        batch_size: images in the batch of all ranks.
        seed: of the permutations.
        start: number of the first batch.
        rank: number of this process.
        world_size: number of processes, a divisor of the batch size.
        groups: row groups by which the images are shuffled; None shuffles all images.
        weights: float64 [n], how often each image is drawn relative to the others; n draws with replacement take the
            place of each permutation. The first number of an image is then its position in the stream, so that two
            draws of an image in an epoch are two crops. None draws each image once in an epoch.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        seed: int,
        start: int,
        rank: int,
        world_size: int,
        groups: RowGroups | None = None,
        weights: npt.NDArray[np.float64] | None = None,
    ) -> None:
        self.n, self.batch_size, self.seed, self.groups = n, batch_size, seed, groups
        self.shares = None if weights is None else weights / weights.sum()
        self.share = batch_size // world_size
        self.first = start * batch_size + rank * self.share

    def __iter__(self) -> Iterator[npt.NDArray[np.int64]]:
        permuted_epoch, permutation = -1, np.empty(0, dtype=np.int64)
        first = self.first
        while True:
            positions = np.arange(first, first + self.share)
            epochs, entries = np.divmod(positions, self.n)
            indices = np.empty_like(entries)
            for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
                if epoch != permuted_epoch:
                    permuted_epoch, permutation = epoch, self._permutation(epoch)
                in_epoch = epochs == epoch
                indices[in_epoch] = permutation[entries[in_epoch]]
            yield np.stack([epochs if self.shares is None else positions, indices], axis=1)
            first += self.batch_size

    def _permutation(self, epoch: int) -> npt.NDArray[np.int64]:
        key = np.random.SeedSequence([self.seed, epoch]).generate_state(1, np.uint64)[0]
        if self.shares is not None:  # as torch's WeightedRandomSampler, for sets of any size
            return np.random.default_rng(int(key)).choice(self.n, self.n, p=self.shares)
        generator = torch.Generator().manual_seed(int(key))
        if self.groups is not None:
            return self.groups.permutation(generator)
        return torch.randperm(self.n, generator=generator).numpy()


class EvaluationOrder(Sampler[npt.NDArray[np.int64]]):
    """Every image once, in order: int64 [B] per batch."""

    def __init__(self, n: int, batch_size: int) -> None:
        self.n, self.batch_size = n, batch_size

    def __iter__(self) -> Iterator[npt.NDArray[np.int64]]:
        for first in range(0, self.n, self.batch_size):
            yield np.arange(first, min(first + self.batch_size, self.n))


def images_per_batch(batch_size: int, crops: int, world_size: int = 1) -> int:
    """Images that all ranks read for a batch of `batch_size` crops.

    Raises UserError if the ranks and the crops of an image cannot share the batch evenly.
    """
    if batch_size < 1 or batch_size % world_size:
        raise UserError(f"batch_size: expected a positive multiple of the {world_size} processes, got {batch_size}")
    share = batch_size // world_size
    if crops < 1 or share % crops:
        raise UserError(f"data.crops: expected a divisor of the {share} crops of a process's batch, got {crops}")
    return batch_size // crops


def evenly_spread(images: int, count: int) -> list[int]:
    """Return `count` positions from the first to the last of `images`, or all of them if there are no more."""
    if count >= images:
        return list(range(images))
    return [round(k * (images - 1) / max(1, count - 1)) for k in range(count)]
