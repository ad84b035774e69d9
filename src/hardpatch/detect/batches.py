"""Annotated images on a canvas: random sizes and crops for training, one fixed size for evaluation.

Boxes are (left, top, right, bottom) in pixels; COCO's own are (left, top, width, height).
"""

import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from hardpatch.data.bad_files import nothing_decodable
from hardpatch.data.decode import UndecodableImage
from hardpatch.data.loader import batch_loader
from hardpatch.data.order import EvaluationOrder
from hardpatch.detect.data import CocoSet, Image, mask_of, mask_tools, read_image

Boxes = npt.NDArray[np.float32]


class Sample(NamedTuple):
    """An image that fits the canvas, and what is on it."""

    image: Tensor
    """uint8 ``[C, h, w]``"""
    target: dict[str, Tensor]
    """``boxes`` float32 ``[n, 4]``, ``labels`` int64 ``[n]``, ``masks`` uint8 ``[n, h, w]``; empty in evaluation"""
    image_index: int
    """number of the image in the set"""


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
        self, image: Image, boxes: Boxes, labels: npt.NDArray[np.int64], masks: Image, rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Transform image uint8 ``[H, W, C]``, boxes ``[n, 4]``, labels ``[n]`` and masks ``[n, H, W]``.

        Returns image and target of a :class:`Sample`. An object that is cut gets the box of what is left of its mask;
        one below a pixel is left out.
        """
        flip = rng.random() < self.flip
        height, width = fitted(image.shape[:2], self.size * rng.uniform(*self.scale))
        top, left = (int(rng.integers(0, max(side - self.size, 0) + 1)) for side in (height, width))
        ratio = np.array([width / image.shape[1], height / image.shape[0]] * 2, dtype=np.float32)
        window = (..., slice(top, top + self.size), slice(left, left + self.size))
        pixels = resized(torch.from_numpy(image).permute(2, 0, 1), (height, width))[window]
        cut = F.interpolate(torch.from_numpy(masks)[:, None], (height, width), mode="nearest-exact")[:, 0][window]
        placed = torch.from_numpy(boxes * ratio) - torch.tensor([left, top] * 2)
        limit = torch.tensor([pixels.shape[2], pixels.shape[1]] * 2)
        # Half a pixel outside is rounding; more was cut off.
        whole = ((placed >= -0.5) & (placed <= limit + 0.5)).all(dim=1, keepdim=True)
        placed = torch.where(whole, placed.clamp_min(0).minimum(limit), extent(cut))
        if flip:
            pixels, cut = pixels.flip(2), cut.flip(2)
            placed = torch.stack([limit[0] - placed[:, 2], placed[:, 1], limit[0] - placed[:, 0], placed[:, 3]], dim=1)
        remaining = ((placed[:, 2:] - placed[:, :2]) >= 1).all(dim=1) & cut.bool().flatten(1).any(dim=1)
        return pixels.contiguous(), {
            "boxes": placed[remaining],
            "labels": torch.from_numpy(labels)[remaining],
            "masks": cut[remaining].contiguous(),
        }


def fitted(size: tuple[int, ...], longer: float) -> tuple[int, int]:
    """(height, width) in whole pixels of an image of ``size`` whose longer side is to be ``longer``."""
    height, width = (max(1, round(side * longer / max(size))) for side in size)
    return height, width


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 ``[C, H, W]`` to (height, width) ``size``, antialiased."""
    if tuple(image.shape[1:]) == size:
        return image
    return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]


def extent(masks: Tensor) -> Tensor:
    """The boxes around ``masks [n, h, w]``, ``[n, 4]``; all 0 for an empty one."""
    sides = []
    for axis in (1, 2):  # over the rows: columns that are taken, and the other way round
        taken = masks.bool().any(dim=axis)
        first, past = taken.byte().argmax(dim=1), taken.shape[1] - taken.flip(1).byte().argmax(dim=1)
        sides.append((first, torch.where(taken.any(dim=1), past, 0)))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], dim=1).float()


class DetectionBatch(NamedTuple):
    """Samples of a batch; `bad` has "name: reason" of each image that could not be used on the way to it."""

    samples: list[Sample]
    bad: list[str]


def training_batches(
    coco: CocoSet,
    folder: str | os.PathLike[str],
    transform: ScaleJitter,
    *,
    batch_size: int,
    seed: int,
    channels: int = 3,
    start: int = 0,
    workers: int = 0,
) -> Generator[DetectionBatch, None, None]:
    """Endless batches, from batch number ``start`` on, the same with any number of workers and after a resume.

    Batches run across the ends of epochs. Crowds are left out. An image that cannot be used gives its place to the next
    one that can be.

    Raises:
        UserError: if no image can be used.
    """
    mask_tools()  # complains before a worker does
    dataset = _Training(coco, str(folder), transform, channels, seed)
    for batch in batch_loader(dataset, _Order(len(coco.images), batch_size, seed, start), workers):
        if not batch.samples:
            raise nothing_decodable(len(coco.images), batch.bad)
        yield batch


def evaluation_batches(
    coco: CocoSet,
    folder: str | os.PathLike[str],
    size: int,
    *,
    batch_size: int,
    channels: int = 3,
    workers: int = 0,
) -> Iterator[DetectionBatch]:
    """Every image once, in order, its longer side resized to ``size``, without targets; unusable ones are left out."""
    mask_tools()
    dataset = _Evaluation(coco, str(folder), size, channels)
    yield from batch_loader(dataset, EvaluationOrder(len(coco.images), batch_size), workers)


class _Training(Dataset[DetectionBatch]):
    """Makes a whole batch at once; it is empty where no image can be used."""

    def __init__(self, coco: CocoSet, folder: str, transform: ScaleJitter, channels: int, seed: int) -> None:
        self.images, self.labels = coco.images, coco.labels
        self.folder, self.transform, self.channels, self.seed = folder, transform, channels, seed

    def __getitem__(self, keys: list[tuple[int, int]]) -> DetectionBatch:
        samples, bad = [], dict[str, None]()
        for epoch, index in keys:
            found = self._next_usable(index, bad)
            if found is None:
                return DetectionBatch([], list(bad))
            samples.append(self._sample(epoch, index, *found))
        return DetectionBatch(samples, list(bad))

    def _next_usable(self, index: int, bad: dict[str, None]) -> tuple[int, Image] | None:
        """Number and pixels of an image, or of the next one that can be used."""
        for step in range(len(self.images)):
            k = (index + step) % len(self.images)
            try:
                return k, read_image(self.images[k], self.folder, self.channels)
            except UndecodableImage as error:
                bad[str(error)] = None
        return None

    def _sample(self, epoch: int, index: int, k: int, pixels: Image) -> Sample:
        things = [thing for thing in self.images[k].objects if not thing.crowd]
        boxes = np.array([thing.box for thing in things], dtype=np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([self.labels[thing.category] for thing in things], dtype=np.int64)
        masks = np.zeros((len(things), *pixels.shape[:2]), dtype=np.uint8)
        for mask, thing in zip(masks, things, strict=True):
            mask[:] = mask_of(thing, *pixels.shape[:2])
        rng = np.random.default_rng((self.seed, epoch, index))
        return Sample(*self.transform(pixels, boxes, labels, masks, rng), k)


class _Evaluation(Dataset[DetectionBatch]):
    """Makes a whole batch at once, of those images that can be used."""

    def __init__(self, coco: CocoSet, folder: str, size: int, channels: int) -> None:
        self.images, self.folder, self.size, self.channels = coco.images, folder, size, channels

    def __getitem__(self, indices: npt.NDArray[np.int64]) -> DetectionBatch:
        samples, bad = [], []
        for index in indices.tolist():
            try:
                pixels = read_image(self.images[index], self.folder, self.channels)
            except UndecodableImage as error:
                bad.append(str(error))
                continue
            image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
            samples.append(Sample(resized(image, fitted(pixels.shape[:2], self.size)), {}, index))
        return DetectionBatch(samples, bad)


class _Order(Sampler[list[tuple[int, int]]]):
    """Endless keys (epoch, index) of batches, from batch ``start`` of the epochs' permutations laid end to end."""

    def __init__(self, n: int, batch_size: int, seed: int, start: int) -> None:
        self.n, self.batch_size, self.seed, self.start = n, batch_size, seed, start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        keys = self._keys()
        while True:
            yield list(islice(keys, self.batch_size))

    def _keys(self) -> Iterator[tuple[int, int]]:
        epoch, position = divmod(self.start * self.batch_size, self.n)
        while True:
            order = np.random.default_rng((self.seed, epoch)).permutation(self.n)
            for index in order[position:].tolist():
                yield epoch, index
            epoch, position = epoch + 1, 0
