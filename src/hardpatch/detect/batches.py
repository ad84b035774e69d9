"""Annotated images on a canvas: random sizes and crops for training, one fixed size for evaluation.

Boxes are (left, top, right, bottom) in pixels; COCO's own are (left, top, width, height).
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from hardpatch.data.decode import UndecodableImage
from hardpatch.detect.data import CocoSet, Image, mask_of, mask_tools, read_image
from hardpatch.errors import UserError

Boxes = npt.NDArray[np.float32]


class Sample(NamedTuple):
    """An image that fits the canvas, and what is on it."""

    image: Tensor
    """uint8 ``[C, h, w]``"""
    target: dict[str, Tensor]
    """``boxes`` float32 ``[n, 4]``, ``labels`` int64 ``[n]``, ``masks`` uint8 ``[n, h, w]``; empty in evaluation"""
    place: int
    """of the image in the set"""
    problem: str | None = None
    """why the image cannot be had"""


@dataclass(frozen=True)
class ScaleJitter:
    """Large-scale jittering (Ghiasi et al., CVPR 2021, as ViTDet has it): a flip, a random size, and a random crop of
    what is larger than the canvas.

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
        """Image uint8 ``[H, W, C]``, boxes ``[n, 4]``, labels ``[n]``, masks ``[n, H, W]`` to image and target of a
        :class:`Sample`. Of what is cut off, the rest gets the box of its mask; what is below a pixel is left out."""
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
        kept = ((placed[:, 2:] - placed[:, :2]) >= 1).all(dim=1) & cut.bool().flatten(1).any(dim=1)
        return pixels.contiguous(), {
            "boxes": placed[kept],
            "labels": torch.from_numpy(labels)[kept],
            "masks": cut[kept].contiguous(),
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


def training_samples(
    coco: CocoSet,
    folder: str | os.PathLike[str],
    transform: ScaleJitter,
    *,
    batch_size: int,
    seed: int,
    channels: int = 3,
    start: int = 0,
    workers: int = 0,
) -> Iterator[list[Sample]]:
    """Endless batches, from batch number ``start`` on, the same with any number of workers and after a resume.

    Batches run across the ends of epochs. Crowds are left out.

    Raises:
        UserError: if an image cannot be decoded or has another size than the file says.
    """
    dataset = _Training(coco, str(folder), transform, channels, seed)
    return _checked(dataset, _Order(len(coco.images), seed, start * batch_size), batch_size, workers)


def evaluation_samples(
    coco: CocoSet,
    folder: str | os.PathLike[str],
    size: int,
    *,
    batch_size: int,
    channels: int = 3,
    workers: int = 0,
) -> Iterator[list[Sample]]:
    """Every image once, in order, its longer side resized to ``size``; without targets.

    Raises:
        UserError: as :func:`training_samples`.
    """
    return _checked(_Evaluation(coco, str(folder), size, channels), range(len(coco.images)), batch_size, workers)


class _Training(Dataset[Sample]):
    def __init__(self, coco: CocoSet, folder: str, transform: ScaleJitter, channels: int, seed: int) -> None:
        self.images, self.labels = coco.images, coco.labels
        self.folder, self.transform, self.channels, self.seed = folder, transform, channels, seed

    def __getitem__(self, place: tuple[int, int]) -> Sample:
        epoch, index = place
        image = self.images[index]
        try:
            pixels = read_image(image, self.folder, self.channels)
        except UndecodableImage as error:
            return _unreadable(index, error)
        things = [thing for thing in image.objects if not thing.crowd]
        boxes = np.array([thing.box for thing in things], dtype=np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([self.labels[thing.category] for thing in things], dtype=np.int64)
        masks = np.zeros((len(things), *pixels.shape[:2]), dtype=np.uint8)
        for mask, thing in zip(masks, things, strict=True):
            mask[:] = mask_of(thing, *pixels.shape[:2])
        rng = np.random.default_rng((self.seed, epoch, index))
        return Sample(*self.transform(pixels, boxes, labels, masks, rng), index)


class _Evaluation(Dataset[Sample]):
    def __init__(self, coco: CocoSet, folder: str, size: int, channels: int) -> None:
        self.images, self.folder, self.size, self.channels = coco.images, folder, size, channels

    def __getitem__(self, index: int) -> Sample:
        try:
            pixels = read_image(self.images[index], self.folder, self.channels)
        except UndecodableImage as error:
            return _unreadable(index, error)
        image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
        return Sample(resized(image, fitted(pixels.shape[:2], self.size)), {}, index)


class _Order(Sampler[tuple[int, int]]):
    """For ever (epoch, index), from place ``start`` of the epochs' permutations laid end to end."""

    def __init__(self, n: int, seed: int, start: int) -> None:
        self.n, self.seed, self.start = n, seed, start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, place = divmod(self.start, self.n)
        while True:
            order = np.random.default_rng((self.seed, epoch)).permutation(self.n)
            for index in order[place:].tolist():
                yield epoch, index
            epoch, place = epoch + 1, 0


def _checked(dataset: Dataset[Sample], order: Any, batch_size: int, workers: int) -> Iterator[list[Sample]]:
    """A UserError that a worker raises would come with the worker's traceback: samples say what is wrong instead."""
    mask_tools()
    for batch in DataLoader(dataset, batch_size, sampler=order, num_workers=workers, collate_fn=list):
        for sample in batch:
            if sample.problem is not None:
                raise UserError(f"cannot use an image: {sample.problem}")
        yield batch


def _unreadable(index: int, error: UndecodableImage) -> Sample:
    return Sample(torch.empty(0), {}, index, str(error))
