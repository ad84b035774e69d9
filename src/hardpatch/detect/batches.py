"""Annotated images for the detector: random sizes and crops for training, one fixed size for evaluation.

Boxes are (left, top, right, bottom) in pixels; those of COCO files are (left, top, width, height).
"""

import os
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from hardpatch.data.bad_files import nothing_decodable
from hardpatch.data.loader import batch_loader
from hardpatch.data.order import EvaluationOrder
from hardpatch.data.reading import RGB, Reading, UndecodableImage
from hardpatch.detect.annotations import AnnotationSet
from hardpatch.detect.images import Image, read_image
from hardpatch.detect.masks import mask_tools, object_mask

Boxes = npt.NDArray[np.float32]


class Sample(NamedTuple):
    """Image that fits the canvas, and the objects in it."""

    image: Tensor
    """uint8 ``[C, h, w]``"""
    target: dict[str, Tensor]
    """``boxes`` float32 ``[n, 4]`` and ``labels`` int64 ``[n]``; for a detector with masks also ``masks`` uint8
    ``[n, h, w]`` and ``has_mask`` bool ``[n]``, False for an object whose mask is not known; empty in evaluation"""
    image_index: int
    """index of the image in the set"""
    original_size: tuple[int, int] = (0, 0)
    """(height, width) of the image before it was resized, in evaluation"""


@dataclass(frozen=True)
class ScaleJitter:
    """Large-scale jittering (Ghiasi et al., CVPR 2021, as ViTDet has it): flip, random size, random crop.

    Images larger than the canvas are cropped.

    Args:
        size: side of the canvas in pixels.
        scale: range of the longer side over ``size``; (1, 1) fits every image to the canvas.
        flip: probability of a horizontal flip.

    Raises:
        ValueError: if the range is empty or not above 0.
    """

    size: int
    scale: tuple[float, float] = (0.1, 2.0)
    flip: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"jitter: expected two rising numbers above 0, got {self.scale}")

    def __call__(
        self,
        image: Image,
        boxes: Boxes,
        labels: npt.NDArray[np.int64],
        masks: Image | None,
        rng: np.random.Generator,
        has_mask: npt.NDArray[np.bool_] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Flip, resize and crop an image with its objects.

        An object that is cropped gets the box of the rest of its mask, or the rest of its box if it has no mask. One
        whose rest is smaller than a pixel is left out.

        Args:
            image: ``[H, W, C]``.
            boxes: float32 ``[n, 4]``.
            labels: int64 ``[n]``.
            masks: uint8 ``[n, H, W]``; None for boxes only.
            rng: source of the random numbers.
            has_mask: bool ``[n]``, False for an object whose mask is not known; all are known by default.

        Returns:
            Image and target of a :class:`Sample`.
        """
        flip = rng.random() < self.flip
        height, width = scaled_size(image.shape[:2], self.size * rng.uniform(*self.scale))
        top, left = (int(rng.integers(0, max(side - self.size, 0) + 1)) for side in (height, width))
        ratio = np.array([width / image.shape[1], height / image.shape[0]] * 2, dtype=np.float32)
        window = (..., slice(top, top + self.size), slice(left, left + self.size))
        pixels = resize(torch.from_numpy(image).permute(2, 0, 1), (height, width))[window]
        corners = torch.from_numpy(boxes * ratio) - torch.tensor([left, top] * 2)
        limit = torch.tensor([pixels.shape[2], pixels.shape[1]] * 2)
        # Half a pixel outside is rounding; more is a cropped object.
        inside = ((corners >= -0.5) & (corners <= limit + 0.5)).all(dim=1, keepdim=True)
        rest, crops, known = corners.clamp_min(0).minimum(limit), None, None
        if masks is not None:
            crops = F.interpolate(torch.from_numpy(masks)[:, None], (height, width), mode="nearest-exact")[:, 0][window]
            known = torch.ones(len(boxes), dtype=torch.bool) if has_mask is None else torch.from_numpy(has_mask)
            corners = torch.where(inside | ~known[:, None], rest, mask_boxes(crops))
        else:
            corners = rest
        if flip:
            pixels, crops = pixels.flip(2), None if crops is None else crops.flip(2)
            lefts, tops, rights, bottoms = corners.unbind(dim=1)
            corners = torch.stack([limit[0] - rights, tops, limit[0] - lefts, bottoms], dim=1)
        visible = ((corners[:, 2:] - corners[:, :2]) >= 1).all(dim=1)
        if crops is not None and known is not None:
            visible &= crops.bool().flatten(1).any(dim=1) | ~known
        target = {"boxes": corners[visible], "labels": torch.from_numpy(labels)[visible]}
        if crops is not None and known is not None:
            target |= {"masks": crops[visible].contiguous(), "has_mask": known[visible]}
        return pixels.contiguous(), target


def scaled_size(size: tuple[int, ...], long_side: float) -> tuple[int, int]:
    """Return the (height, width) of the same proportions whose longer side is ``long_side`` pixels."""
    height, width = (max(1, round(side * long_side / max(size))) for side in size)
    return height, width


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize ``[C, H, W]`` to (height, width) ``size`` with antialiasing, in its own type."""
    if tuple(image.shape[1:]) == size:
        return image
    if image.dtype != torch.uint8:
        values = F.interpolate(image.float()[None], size, mode="bilinear", antialias=True)[0]
        return values if image.is_floating_point() else values.round_().to(image.dtype)
    return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]


def mask_boxes(masks: Tensor) -> Tensor:
    """Return the boxes around ``masks [n, h, w]``, float32 ``[n, 4]``; four zeros for an empty mask."""
    sides = []
    for axis in (1, 2):  # reduce the rows to find left and right, then the columns to find top and bottom
        occupied = masks.bool().any(dim=axis)
        start, stop = occupied.byte().argmax(dim=1), occupied.shape[1] - occupied.flip(1).byte().argmax(dim=1)
        sides.append((start, torch.where(occupied.any(dim=1), stop, 0)))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], dim=1).float()


class DetectionBatch(NamedTuple):
    """Samples, and the images that could not be used."""

    samples: list[Sample]
    bad: list[str]
    """entries "path: reason" of the images that were tried and cannot be used"""


def training_batches(
    annotations: AnnotationSet,
    folder: str | os.PathLike[str],
    transform: ScaleJitter,
    *,
    batch_size: int,
    seed: int,
    reading: Reading = RGB,
    start: int = 0,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    masks: bool = True,
) -> Generator[DetectionBatch, None, None]:
    """Load endless training batches, the same with any number of workers and after a resume.

    A batch may span two epochs. Crowds are left out. An image that cannot be used is replaced by the next one that can
    be. Close the generator to stop the workers.

    Args:
        annotations: images and their objects.
        folder: folder of the images.
        transform: flips, resizes and crops.
        batch_size: images in a batch of all processes, a multiple of their number.
        seed: of order and transform.
        reading: channels, type and range of the images.
        start: number of the first batch.
        workers: processes that decode; 0 decodes in this one.
        rank: number of this process.
        world_size: number of processes.
        masks: load the masks of the objects, too.

    Raises:
        UserError: if no image can be used.
    """
    mask_tools()  # fails here rather than in a worker
    dataset = _TrainingDataset(annotations, str(folder), transform, reading, seed, masks)
    order = _TrainingOrder(len(annotations.images), batch_size, seed, start, rank, world_size)
    for batch in batch_loader(dataset, order, workers):
        if not batch.samples:
            raise nothing_decodable(len(annotations.images), batch.bad)
        yield batch


def evaluation_batches(
    annotations: AnnotationSet,
    folder: str | os.PathLike[str],
    size: int,
    *,
    batch_size: int,
    reading: Reading = RGB,
    workers: int = 0,
) -> Iterator[DetectionBatch]:
    """Load every image once, in order, without targets; images that cannot be used are left out.

    Args:
        annotations: the images.
        folder: folder of the images.
        size: pixels of the longer side, to which each image is resized.
        batch_size: images in a batch.
        reading: channels, type and range of the images.
        workers: processes that decode; 0 decodes in this one.
    """
    read = partial(_annotated_image, annotations, str(folder), reading)
    return image_batches(read, len(annotations.images), size, batch_size=batch_size, workers=workers)


def image_batches(
    read: Callable[[int], Image], images: int, size: int, *, batch_size: int, workers: int = 0
) -> Iterator[DetectionBatch]:
    """Load images without targets, in order, as :func:`evaluation_batches` does.

    Args:
        read: decodes an image by its index; can be pickled.
        images: number of them.
        size: pixels of the longer side, to which each image is resized.
        batch_size: images in a batch.
        workers: processes that decode; 0 decodes in this one.
    """
    mask_tools()
    yield from batch_loader(_EvaluationDataset(read, size), EvaluationOrder(images, batch_size), workers)


def _annotated_image(annotations: AnnotationSet, folder: str, reading: Reading, index: int) -> Image:
    return read_image(annotations.images[index], folder, reading)


class _TrainingDataset(Dataset[DetectionBatch]):
    """Whole training batches by the (epoch, index) of their samples; empty if no image can be used."""

    def __init__(
        self, annotations: AnnotationSet, folder: str, transform: ScaleJitter, reading: Reading, seed: int, masks: bool
    ) -> None:
        self.images, self.labels = annotations.images, annotations.labels
        self.folder, self.transform, self.reading, self.seed, self.masks = folder, transform, reading, seed, masks

    def __getitem__(self, keys: list[tuple[int, int]]) -> DetectionBatch:
        samples, bad = [], dict[str, None]()
        for epoch, index in keys:
            usable = self._next_usable(index, bad)
            if usable is None:
                return DetectionBatch([], list(bad))
            rng = np.random.default_rng((self.seed, epoch, index))
            samples.append(self._sample(*usable, rng))
        return DetectionBatch(samples, list(bad))

    def _next_usable(self, index: int, bad: dict[str, None]) -> tuple[int, Image] | None:
        """Return index and pixels of an image or of the next one that can be used; None if there is none."""
        for offset in range(len(self.images)):
            i = (index + offset) % len(self.images)
            try:
                return i, read_image(self.images[i], self.folder, self.reading)
            except UndecodableImage as error:
                bad[str(error)] = None
        return None

    def _sample(self, i: int, pixels: Image, rng: np.random.Generator) -> Sample:
        objects = [obj for obj in self.images[i].objects if not obj.crowd]
        boxes = np.array([obj.box for obj in objects], dtype=np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([self.labels[obj.category] for obj in objects], dtype=np.int64)
        if not self.masks:
            return Sample(*self.transform(pixels, boxes, labels, None, rng), i)
        masks = np.zeros((len(objects), *pixels.shape[:2]), dtype=np.uint8)
        has_mask = np.array([obj.segmentation is not None for obj in objects], dtype=bool)
        for index in np.flatnonzero(has_mask):
            masks[index] = object_mask(objects[index], *pixels.shape[:2])
        return Sample(*self.transform(pixels, boxes, labels, masks, rng, has_mask), i)


class _EvaluationDataset(Dataset[DetectionBatch]):
    """Whole batches by the indices of their images; images that cannot be used are left out."""

    def __init__(self, read: Callable[[int], Image], size: int) -> None:
        self.read, self.size = read, size

    def __getitem__(self, indices: npt.NDArray[np.int64]) -> DetectionBatch:
        samples, bad = [], []
        for index in indices.tolist():
            try:
                pixels = self.read(index)
            except UndecodableImage as error:
                bad.append(str(error))
                continue
            image, size = torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), (pixels.shape[0], pixels.shape[1])
            samples.append(Sample(resize(image, scaled_size(size, self.size)), {}, index, size))
        return DetectionBatch(samples, bad)


class _TrainingOrder(Sampler[list[tuple[int, int]]]):
    """Endless keys of batches, (epoch, index) of each image: the permutations of all epochs one after another.

    A process has an equal part of each batch.
    """

    def __init__(self, n: int, batch_size: int, seed: int, start: int, rank: int, world_size: int) -> None:
        self.n, self.batch_size, self.seed, self.start = n, batch_size, seed, start
        share = batch_size // world_size
        self.part = slice(rank * share, (rank + 1) * share)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        keys = self._keys()
        while True:
            yield list(islice(keys, self.batch_size))[self.part]

    def _keys(self) -> Iterator[tuple[int, int]]:
        epoch, position = divmod(self.start * self.batch_size, self.n)
        while True:
            order = np.random.default_rng((self.seed, epoch)).permutation(self.n)
            for index in order[position:].tolist():
                yield epoch, index
            epoch, position = epoch + 1, 0
