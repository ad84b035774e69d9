"""Batches of images with a class for every pixel: augmented crops to train on, whole images to evaluate on."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image as Pillow
from torch.utils.data import Dataset

from hardpatch.data.bad_files import nothing_decodable
from hardpatch.data.crop import Image, resize
from hardpatch.data.limits import check_channels
from hardpatch.data.loader import batch_loader
from hardpatch.data.order import TrainingOrder
from hardpatch.data.reading import RGB, Reading, UndecodableImage, from_unit, to_unit
from hardpatch.data.sources import Source
from hardpatch.segment.data import IGNORED, Map, SegmentationSet

CROP_TRIALS = 10


@dataclass(frozen=True)
class SegmentationTransform:
    """Random scale, random crop, flip, photometric distortion: the recipe for ADE20K of PSPNet and DeepLab.

    Args:
        crop: (height, width).
        short_side: shorter side of an image before the random scale, pixels.
        scale: range of the random scale, uniform.
        cat_max_ratio: a crop is redrawn, up to ten times, while one class has more than this share of its pixels.
        flip: probability of a horizontal flip.
        photometric: apply :func:`distort`.
        fill: value of the pixels that pad an image smaller than the crop; their label is ignored.
        reading: type and range of the pixels.
    """

    crop: tuple[int, int]
    short_side: int
    scale: tuple[float, float] = (0.5, 2.0)
    cat_max_ratio: float = 0.75
    flip: float = 0.5
    photometric: bool = True
    fill: tuple[float, ...] = (124, 116, 104)
    reading: Reading = RGB

    def __call__(self, image: Image, labels: Map, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Crop an image and its label map: ``[H, W, C]`` and ``[H, W]`` to ``[C, h, w]`` and ``[h, w]``."""
        size = scaled_size(labels.shape, self.short_side, rng.uniform(*self.scale))
        image, labels = resize(image, size), _resize_map(labels, size)
        box = self._box(labels, rng)
        image, labels = image[box], labels[box]
        if rng.random() < self.flip:
            image, labels = image[:, ::-1], labels[:, ::-1]
        if self.photometric:
            image = distort(np.ascontiguousarray(image), rng, self.reading)
        pixels = np.empty((*self.crop, image.shape[2]), dtype=image.dtype)
        pixels[:] = self.fill
        classes = np.full(self.crop, IGNORED, dtype=np.uint8)
        height, width = labels.shape
        pixels[:height, :width], classes[:height, :width] = image, labels
        return torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(classes)

    def _box(self, labels: Map, rng: np.random.Generator) -> tuple[slice, slice]:
        height, width = (min(sides) for sides in zip(labels.shape, self.crop, strict=True))
        for _ in range(CROP_TRIALS):
            top = int(rng.integers(labels.shape[0] - height + 1))
            left = int(rng.integers(labels.shape[1] - width + 1))
            box = slice(top, top + height), slice(left, left + width)
            if self.cat_max_ratio >= 1:
                break
            counts = np.bincount(labels[box].ravel(), minlength=256)[:IGNORED]
            if np.count_nonzero(counts) > 1 and counts.max() < self.cat_max_ratio * counts.sum():
                break
        return box


def distort(image: Image, rng: np.random.Generator, reading: Reading = RGB) -> Image:
    """Apply the photometric distortion of SSD (Liu et al. 2016) to ``[H, W, C]``.

    Each change has probability one half: brightness by up to 32 of 255, contrast by a factor in 0.5 to 1.5 (before or
    after the colors), saturation by a factor in the same range, hue by up to a tenth of the circle. Images that are not
    RGB keep saturation and hue.
    """
    brightness, contrast = rng.uniform(-32, 32), rng.uniform(0.5, 1.5)
    saturation, hue = rng.uniform(0.5, 1.5), rng.uniform(-0.1, 0.1)
    change_brightness, change_contrast, change_saturation, change_hue, contrast_last = rng.random(5) < 0.5
    deep = image.dtype != np.uint8
    pixels = 255 * to_unit(image, reading) if deep else image.astype(np.float32)
    if change_brightness:
        pixels = (pixels + brightness).clip(0, 255)
    if change_contrast and not contrast_last:
        pixels = (pixels * contrast).clip(0, 255)
    if (change_saturation or change_hue) and image.shape[2] == 3:
        factor, turn = saturation if change_saturation else 1.0, hue if change_hue else 0.0
        pixels = _deep_hsv(pixels, factor, turn) if deep else _hsv(pixels, factor, turn)
    if change_contrast and contrast_last:
        pixels = (pixels * contrast).clip(0, 255)
    return from_unit((pixels / 255).astype(np.float32), reading) if deep else pixels.round().astype(np.uint8)


def _hsv(pixels: npt.NDArray[np.float32], saturation: float, hue: float) -> npt.NDArray[np.float32]:
    """Change saturation and hue of ``[H, W, 3]`` in 0 to 255, with Pillow's steps of 1 / 256."""
    hsv = np.array(Pillow.fromarray(pixels.round().astype(np.uint8)).convert("HSV"))
    if saturation != 1:
        hsv[..., 1] = (hsv[..., 1] * saturation).clip(0, 255).round()
    hsv[..., 0] += np.uint8(round(hue * 256) % 256)  # wraps around, as the color circle does
    bands = [Pillow.fromarray(band) for band in np.moveaxis(hsv, 2, 0).copy()]
    return np.array(Pillow.merge("HSV", bands).convert("RGB")).astype(np.float32)


def _deep_hsv(pixels: npt.NDArray[np.float32], saturation: float, hue: float) -> npt.NDArray[np.float32]:
    """Likewise, without rounding to 8 bits."""
    from skimage.color import hsv2rgb, rgb2hsv

    hsv = rgb2hsv(pixels / 255)
    hsv[..., 0] = (hsv[..., 0] + hue) % 1
    hsv[..., 1] = (hsv[..., 1] * saturation).clip(0, 1)
    return np.asarray(255 * hsv2rgb(hsv), np.float32)


class LabeledBatch(NamedTuple):
    """Crops to train on; ``bad`` has "name: reason" for each file that could not be decoded."""

    images: torch.Tensor  # uint8 [B, C, h, w]
    labels: torch.Tensor  # uint8 [B, h, w]
    bad: list[str]


class Pair(NamedTuple):
    """An image at the scale of the evaluation, and its label map at its own size."""

    image: torch.Tensor  # uint8 [C, h, w]
    labels: torch.Tensor  # uint8 [H, W]
    bad: str = ""  # "name: reason" if a file cannot be decoded; then the tensors are empty


def segmentation_batches(
    pairs: SegmentationSet,
    transform: SegmentationTransform,
    *,
    batch_size: int,
    reading: Reading,
    seed: int,
    start: int = 0,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> Generator[LabeledBatch, None, None]:
    """Load endless training batches, in the order of :func:`hardpatch.data.loader.train_batches`.

    A pair that cannot be decoded is replaced by the next one that can be. Close the generator to stop the workers.

    Args:
        pairs: images and label maps.
        transform: makes a crop.
        batch_size: crops in a batch of all processes, a multiple of their number.
        reading: channels, type and range of the images.
        seed: of order and crops.
        start: number of the first batch.
        workers: processes that decode; 0 decodes in this one.
        rank: number of this process.
        world_size: number of processes.
        pin_memory: load into pinned memory, for copies to a GPU.

    Raises:
        UserError: if no pair can be decoded.
    """
    check_channels(reading.channels)
    order = TrainingOrder(len(pairs), batch_size, seed, start, rank, world_size)
    for batch in batch_loader(_Crops(pairs, transform, reading, seed), order, workers, pin_memory):
        if not len(batch.images):
            raise nothing_decodable(len(pairs), batch.bad)
        yield batch


def evaluation_pairs(pairs: SegmentationSet, short_side: int, reading: Reading, workers: int = 0) -> Iterator[Pair]:
    """Load every pair once, in order, with the image's shorter side resized to ``short_side`` pixels."""
    check_channels(reading.channels)
    yield from batch_loader(_Whole(pairs, short_side, reading), None, workers)


class ScaledImage(NamedTuple):
    """An image at the scale of the evaluation."""

    image: torch.Tensor  # [C, h, w]
    size: tuple[int, int]  # (height, width) of the image itself
    bad: str = ""  # "name: reason" if it cannot be decoded; then the tensor is empty


def scaled_images(source: Source, short_side: int, reading: Reading, workers: int = 0) -> Iterator[ScaledImage]:
    """Load every image of a source once, in order, scaled as those of :func:`evaluation_pairs`."""
    check_channels(reading.channels)
    yield from batch_loader(_Scaled(source, short_side, reading), None, workers)


def scaled_size(size: tuple[int, ...], short_side: int, scale: float = 1.0) -> tuple[int, int]:
    """Return the (height, width) of the same proportions whose shorter side is ``short_side * scale`` pixels."""
    factor = short_side * scale / min(size)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


class _Crops(Dataset[LabeledBatch]):
    """Whole training batches by the (epoch, index) of their samples."""

    def __init__(self, pairs: SegmentationSet, transform: SegmentationTransform, reading: Reading, seed: int) -> None:
        self.pairs, self.transform, self.reading, self.seed = pairs, transform, reading, seed

    def __getitem__(self, samples: npt.NDArray[np.int64]) -> LabeledBatch:
        crops: list[tuple[torch.Tensor, torch.Tensor]] = []
        bad: dict[str, None] = {}
        for epoch, index in samples.tolist():
            pair = self._next_decodable(index, bad)
            if pair is None:
                return LabeledBatch(torch.empty(0), torch.empty(0), list(bad))
            crops.append(self.transform(*pair, np.random.default_rng((self.seed, epoch, index))))
        images, maps = zip(*crops, strict=True)
        return LabeledBatch(torch.stack(images), torch.stack(maps), list(bad))

    def _next_decodable(self, index: int, bad: dict[str, None]) -> tuple[Image, Map] | None:
        """Decode a pair, or the next one that can be decoded; None if there is none."""
        for offset in range(len(self.pairs)):
            i = (index + offset) % len(self.pairs)
            try:
                return self.pairs.image(i, self.reading), self.pairs.label_map(i)
            except UndecodableImage as error:
                bad[str(error)] = None
        return None


class _Whole(Dataset[Pair]):
    """Whole images with their label maps, one at a time, since they differ in size."""

    def __init__(self, pairs: SegmentationSet, short_side: int, reading: Reading) -> None:
        self.pairs, self.short_side, self.reading = pairs, short_side, reading

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> Pair:
        try:
            image, labels = self.pairs.image(i, self.reading), self.pairs.label_map(i)
        except UndecodableImage as error:
            return Pair(torch.empty(0), torch.empty(0), str(error))
        image = resize(image, scaled_size(labels.shape, self.short_side))
        return Pair(torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(labels))


class _Scaled(Dataset[ScaledImage]):
    """Whole images without label maps, one at a time, since they differ in size."""

    def __init__(self, source: Source, short_side: int, reading: Reading) -> None:
        self.source, self.short_side, self.reading = source, short_side, reading

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> ScaledImage:
        try:
            image = self.source.image(i, self.reading)
        except UndecodableImage as error:
            return ScaledImage(torch.empty(0), (0, 0), str(error))
        size = (image.shape[0], image.shape[1])
        image = resize(image, scaled_size(size, self.short_side))
        return ScaledImage(torch.from_numpy(image).permute(2, 0, 1), size)


def _resize_map(labels: Map, size: tuple[int, int]) -> Map:
    """Resize uint8 ``[H, W]`` to uint8 ``[h, w]`` by nearest neighbor."""
    return F.interpolate(torch.from_numpy(labels)[None, None], size, mode="nearest-exact")[0, 0].numpy()
