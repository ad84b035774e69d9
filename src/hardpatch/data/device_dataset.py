"""A data set on the training device, from which random resized crops are computed there.

The random numbers are computed from seed, epoch and index, so nothing is drawn on the host and nothing synchronizes
with the device.
"""

import logging
import math
from collections.abc import Generator

import numpy as np
import torch
from torch import Tensor

from hardpatch.data.augment import TrainTransform
from hardpatch.data.bad_files import nothing_decodable
from hardpatch.data.batch import CROP_OFFSET, Batch, crop_indices
from hardpatch.data.crop import resize, torch_type
from hardpatch.data.device_crop import BOX_NUMBERS, crop, crop_boxes
from hardpatch.data.memory import available_memory, image_sizes, run_in_threads
from hardpatch.data.order import TrainingOrder, images_per_batch
from hardpatch.data.sources import Source
from hardpatch.errors import UserError
from hardpatch.randomness import patch_noise

CROP_SEED = 0x63726F7073
"""Distinguishes the seed of the crops from that of the masks, which is the run's own."""
STAGING_IMAGES = 1024
"""Images that are decoded before they are copied to the device together."""
CHUNK_VALUES = 2**26
"""Pixels that are cropped at a time, as float32."""
MAX_MEMORY_SHARE = 0.8
"""Share of the device's free memory that a set may take."""

log = logging.getLogger("hardpatch")


class DeviceDataset:
    """All images of a source on a device, in the type of the reading.

    Images of one size are stored unchanged. If sizes differ, each image is resized to a square of `side` pixels (None:
    :func:`default_side`); the crops are still drawn by the image's own height and width.

    Raises UserError, before anything is decoded, if the set takes too much of the device's free memory, and if no image
    can be decoded.
    """

    def __init__(
        self, source: Source, transform: TrainTransform, device: torch.device, side: int | None = None
    ) -> None:
        self.transform, self.device = transform, device
        sizes, self.broken = image_sizes(source, transform.reading, None)
        height, width = self._stored_size(sizes, side)
        self._check_memory(len(source), height, width)
        self.images = self._decode(source, height, width)
        self.stored_size = torch.tensor([height, width] * 2, device=device)
        self.sizes = torch.from_numpy(sizes).to(device)
        labels = [source.label(i) for i in range(len(source))]
        self.labels = torch.tensor([-1 if label is None else label for label in labels], device=device)
        self.shown = np.arange(len(source))  # the image that is shown for each index: itself or the next decodable one
        for i in sorted(self.broken, reverse=True) * 2:  # twice, since the last image may be followed by the first
            self.shown[i] = self.shown[(i + 1) % len(source)]

    def _stored_size(self, sizes: np.ndarray, side: int | None) -> tuple[int, int]:
        """Height and width of all stored images."""
        good = np.setdiff1d(np.arange(len(sizes)), list(self.broken))
        distinct = set(map(tuple, sizes[good].tolist()))
        if len(distinct) == 1:
            height, width = distinct.pop()
            return height, width
        side = side or min(default_side(self.transform), int(sizes.max(initial=1)))
        return side, side

    def _check_memory(self, n: int, height: int, width: int) -> None:
        reading = self.transform.reading
        needed = n * height * width * reading.number * np.dtype(reading.dtype).itemsize
        free = free_memory(self.device)
        if free is not None and needed > MAX_MEMORY_SHARE * free:
            raise UserError(
                f"data.in_memory: {n} images of {height} x {width} take {needed / 1e9:.1f} GB, and "
                f"{MAX_MEMORY_SHARE:.0%} of the {free / 1e9:.1f} GB free on {self.device} may be used; set a smaller "
                "data.device_side, or use host or no"
            )
        log.info("decoding %d images of %d x %d for %s, %.2f GB", n, height, width, self.device, needed / 1e9)

    def _decode(self, source: Source, height: int, width: int) -> Tensor:
        """Decode all images to the device, ``[n, height, C, width]`` as :func:`crop` takes them."""
        n, reading = len(source), self.transform.reading
        dtype = torch_type(reading)
        images = torch.empty(n, height, reading.number, width, dtype=dtype, device=self.device)
        for start in range(0, n, STAGING_IMAGES):
            count = min(STAGING_IMAGES, n - start)
            staged = np.zeros((count, height, reading.number, width), dtype=reading.dtype)

            def decode(i: int, start: int = start, staged: np.ndarray = staged) -> None:
                staged[i - start] = resize(source.image(i, reading), (height, width)).transpose(0, 2, 1)

            good = [i for i in range(start, start + len(staged)) if i not in self.broken]
            run_in_threads(decode, good, self.broken)
            images[start : start + len(staged)] = torch.from_numpy(staged).to(self.device)
        if len(self.broken) == n:
            raise nothing_decodable(n, [*self.broken.values()])
        return images

    def __len__(self) -> int:
        return len(self.images)

    def batches(
        self, *, batch_size: int, seed: int, start: int = 0, rank: int = 0, world_size: int = 1, crops: int = 1
    ) -> Generator[Batch, None, None]:
        """Yield batches as :func:`hardpatch.data.loader.train_batches` does, in the same order.

        The tensors are on the device, and the boxes are other ones.
        """
        images_read = images_per_batch(batch_size, crops, world_size)
        for samples in TrainingOrder(len(self), images_read, seed, start, rank, world_size):
            epochs, indices = samples.T
            bad: dict[str, None] = {}
            for i in indices[self.shown[indices] != indices].tolist():
                while i in self.broken:
                    bad[self.broken[i]] = None
                    i = (i + 1) % len(self)
            crop_numbers = self._to_device(crop_indices(indices, crops))
            shown = self._to_device(self.shown[indices]).repeat(crops)
            images, boxes, flipped = self.crops(self._to_device(epochs).repeat(crops), crop_numbers, shown, seed)
            yield Batch(images, crop_numbers, self.labels[shown], [*bad], None, boxes, flipped)

    def crops(self, epochs: Tensor, indices: Tensor, shown: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Compute a crop of each image.

        Args:
            epochs: int64 ``[B]``.
            indices: int64 ``[B]``, see :func:`~hardpatch.data.batch.crop_indices`; the random numbers depend on them.
            shown: int64 ``[B]``, the images that the crops show.
            seed: of the run.

        Returns:
            Crops ``[B, C, h, w]``, boxes as shares of the image float32 ``[B, 4]``, and flips bool ``[B]``.
        """
        transform = self.transform
        keys = (indices // CROP_OFFSET << 56) + (epochs << 32) + indices % CROP_OFFSET  # crop, epoch and image
        noise = patch_noise(seed ^ CROP_SEED, 0, keys, 1 + BOX_NUMBERS)
        flipped = noise[:, 0] < transform.flip
        sizes = self.sizes[shown].repeat(1, 2)  # height, width, height, width
        boxes = crop_boxes(noise[:, 1:], sizes[:, 0], sizes[:, 1], transform.scale, transform.ratio)
        stored_boxes = boxes * (self.stored_size / sizes)
        chunk = max(1, CHUNK_VALUES // self.images[0].numel())
        crops = []
        for k in range(0, len(shown), chunk):
            part = slice(k, k + chunk)
            crops.append(crop(self.images[shown[part]], stored_boxes[part], flipped[part], transform.image_size))
        return torch.cat(crops), boxes / sizes, flipped

    def _to_device(self, numbers: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(numbers))
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor


def default_side(transform: TrainTransform) -> int:
    """Side in pixels at which a crop of mean area is neither enlarged nor shrunken."""
    return math.ceil(max(transform.image_size) / math.sqrt(sum(transform.scale) / 2))


def free_memory(device: torch.device) -> int | None:
    """Return the free bytes of a device; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_memory() if device.type == "cpu" else None
