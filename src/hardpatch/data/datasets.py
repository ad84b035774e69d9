"""Datasets that decode and transform a whole batch at once, into one tensor for each size of crop.

An error that a worker raises arrives with the worker's traceback in its message. So if nothing can be decoded a dataset
returns an empty batch, and the main process raises the error.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from hardpatch.data.augment import GLOBAL_CROPS, Crop, EvalTransform, MultiCropTransform, TrainTransform
from hardpatch.data.batch import Batch, crop_indices
from hardpatch.data.crop import torch_type
from hardpatch.data.decode import named_errors, open_image
from hardpatch.data.reading import Reading, UndecodableImage
from hardpatch.data.sources import Source

T = TypeVar("T")


class CropDataset(Dataset[Batch]):
    """Batches of `crops` crops of each image. An image that cannot be decoded is replaced by the next one that can.

    The key of a batch is int64 [n, 2], epoch and index of each image, as :class:`~hardpatch.data.order.TrainingOrder`
    yields it. A crop depends only on the seed, the epoch and the index.
    """

    def __init__(self, source: Source, transform: TrainTransform, seed: int, crops: int = 1) -> None:
        self.source, self.transform, self.seed, self.crops = source, transform, seed, crops

    def __getitem__(self, samples: npt.NDArray[np.int64]) -> Batch:
        n = len(samples)
        images = _empty(self.transform.reading, self.transform.image_size, self.crops, n)
        labels = torch.full((n,), -1)
        boxes = np.zeros((self.crops, n, 4), dtype=np.float32)
        flipped = np.zeros((self.crops, n), dtype=np.bool_)
        bad: dict[str, None] = {}
        for k, (epoch, index) in enumerate(samples.tolist()):
            decoded = _first_decodable(self.source, index, partial(self._crops, epoch, index), bad)
            if decoded is None:
                return _no_images(bad)
            crops, labels[k] = decoded
            for crop, (pixels, box, flip) in enumerate(crops):
                images[crop, k] = pixels
                boxes[crop, k], flipped[crop, k] = box, flip
        return Batch(
            images.flatten(0, 1),
            torch.from_numpy(crop_indices(samples[:, 1], self.crops)),
            labels.repeat(self.crops),
            list(bad),
            boxes=torch.from_numpy(boxes.reshape(-1, 4)),
            flipped=torch.from_numpy(flipped.ravel()),
        )

    def _crops(self, epoch: int, index: int, shown: int) -> list[Crop]:
        """Crop the image `shown` with the random numbers of the image `index`."""
        rng = np.random.default_rng((self.seed, epoch, index))
        if self.crops > 1:  # decoded once for all crops, so not at the scale of one of them
            image = self.source.image(shown, self.transform.reading)
            return [self.transform.crop(image, rng) for _ in range(self.crops)]
        data = self.source.encoded(shown)
        if data is None:
            return [self.transform.crop(self.source.image(shown, self.transform.reading), rng)]
        with named_errors(self.source.name, shown):
            return [self.transform.crop(open_image(data, self.transform.reading), rng)]


class MultiCropDataset(Dataset[Batch]):
    """Batches of global and local views of each image; otherwise as :class:`CropDataset`."""

    def __init__(self, source: Source, transform: MultiCropTransform, seed: int) -> None:
        self.source, self.transform, self.seed = source, transform, seed

    def __getitem__(self, samples: npt.NDArray[np.int64]) -> Batch:
        n, transform = len(samples), self.transform
        global_views = _empty(transform.reading, transform.image_size, GLOBAL_CROPS, n)
        local_views = _empty(transform.reading, transform.local_size, transform.local_crops, n)
        labels = torch.full((n,), -1)
        bad: dict[str, None] = {}
        for k, (epoch, index) in enumerate(samples.tolist()):
            decoded = _first_decodable(self.source, index, partial(self._views, epoch, index), bad)
            if decoded is None:
                return _no_images(bad)
            (global_views[:, k], local_views[:, k]), labels[k] = decoded
        return Batch(
            global_views.flatten(0, 1),
            torch.from_numpy(samples[:, 1].copy()),
            labels,
            list(bad),
            local=local_views.flatten(0, 1) if transform.local_crops else None,
        )

    def _views(self, epoch: int, index: int, shown: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Make the views of the image `shown` with the random numbers of the image `index`."""
        rng = np.random.default_rng((self.seed, epoch, index))
        return self.transform(self.source.image(shown, self.transform.reading), rng)


class EvaluationDataset(Dataset[Batch]):
    """Batches by the indices of the images, int64 [B]. Images that cannot be decoded are left out."""

    def __init__(self, source: Source, transform: EvalTransform) -> None:
        self.source, self.transform = source, transform

    def __getitem__(self, indices: npt.NDArray[np.int64]) -> Batch:
        images = _empty(self.transform.reading, self.transform.image_size, len(indices))
        good: list[int] = []
        bad: list[str] = []
        for index in indices.tolist():
            try:
                images[len(good)] = self.transform(self.source.image(index, self.transform.reading))
            except UndecodableImage as error:
                bad.append(str(error))
            else:
                good.append(index)
        labels = torch.tensor([_label(self.source, index) for index in good], dtype=torch.int64)
        return Batch(images[: len(good)], torch.tensor(good, dtype=torch.int64), labels, bad)


def _first_decodable(
    source: Source, index: int, decode: Callable[[int], T], bad: dict[str, None]
) -> tuple[T, int] | None:
    """Decode the image at `index` or the first one after it that can be.

    Returns the result and the label; None if no image can be decoded. The reasons of the others are added to `bad`.
    """
    for shown in itertools.chain(range(index, len(source)), range(index)):
        try:
            return decode(shown), _label(source, shown)
        except UndecodableImage as error:
            bad[str(error)] = None
    return None


def _no_images(bad: dict[str, None]) -> Batch:
    none = torch.empty(0, dtype=torch.int64)
    return Batch(none, none, none, list(bad))


def _empty(reading: Reading, size: tuple[int, int], *leading: int) -> torch.Tensor:
    return torch.empty((*leading, reading.number, *size), dtype=torch_type(reading))


def _label(source: Source, index: int) -> int:
    label = source.label(index)
    return -1 if label is None else label
