"""A whole set of images on the training device, and its random resized crops made there.

The crops have the law of :func:`hardpatch.data.augment.crop_box`; the random numbers are computed from seed, epoch and
index, so that nothing is drawn on the host and nothing waits for the device.
"""

import logging
import math
from collections.abc import Generator

import numpy as np
import torch
from torch import Tensor

from hardpatch.data.augment import TrainTransform, resize
from hardpatch.data.loader import SAMPLES, Batch, TrainingOrder, crop_indices, images_read, nothing_decodes
from hardpatch.data.memory import available_memory, each, image_sizes
from hardpatch.data.sources import Source
from hardpatch.errors import UserError
from hardpatch.randomness import patch_noise

TRIES = 10
"""Boxes that are drawn before the central one is taken, as in torchvision."""
CROPS = 0x63726F7073
"""Makes the seed that of crops; masks are drawn from the run's own."""
STAGED = 1024
"""Images that are decoded before they go to the device together."""
FLOATS = 2**26
"""Pixels that are cropped at a time, as float32."""
SHARE = 0.8
"""Most of the device's free memory that a set may take."""

log = logging.getLogger("hardpatch")


class DeviceSet:
    """Every image of a source on a device, as uint8.

    Images of one size are held as they are. Of several sizes each is resized to a square of `side` pixels (None:
    :func:`held_side`); their crops are still drawn by the images' own height and width.

    Raises UserError, before anything is decoded, if the set takes too much of the device's free memory, and if none of
    it can be decoded.
    """

    def __init__(
        self, source: Source, transform: TrainTransform, device: torch.device, side: int | None = None
    ) -> None:
        self.transform, self.device = transform, device
        n, channels = len(source), transform.channels
        sizes, self.broken = image_sizes(source, channels, None)
        whole = np.setdiff1d(np.arange(n), list(self.broken))
        held = set(map(tuple, sizes[whole].tolist()))
        if len(held) == 1:
            height, width = held.pop()
        else:
            height = width = side or min(held_side(transform), int(sizes.max(initial=1)))
        needed, free = n * height * width * channels, free_memory(device)
        if free is not None and needed > SHARE * free:
            raise UserError(
                f"data.in_memory: {n} images of {height} x {width} take {needed / 1e9:.1f} GB, and {SHARE:.0%} of the "
                f"{free / 1e9:.1f} GB free on {device} may be used; set a smaller data.device_side, or use host or no"
            )
        log.info("decoding %d images of %d x %d for %s, %.2f GB", n, height, width, device, needed / 1e9)
        # Rows before channels, so that both products of a crop find their numbers in order.
        self.images = torch.empty(n, height, channels, width, dtype=torch.uint8, device=device)
        for start in range(0, n, STAGED):
            staged = np.zeros((min(STAGED, n - start), height, channels, width), dtype=np.uint8)

            def hold(i: int, first: int = start, staged: np.ndarray = staged) -> None:
                staged[i - first] = resize(source.image(i, channels), (height, width)).transpose(0, 2, 1)

            each(hold, [i for i in range(start, start + len(staged)) if i not in self.broken], self.broken)
            self.images[start : start + len(staged)] = torch.from_numpy(staged).to(device)
        if len(self.broken) == n:
            raise nothing_decodes(n, [*self.broken.values()])
        self.held = torch.tensor([height, width] * 2, device=device)
        self.sizes = torch.from_numpy(sizes).to(device)
        labels = [source.label(i) for i in range(n)]
        self.labels = torch.tensor([-1 if label is None else label for label in labels], device=device)
        self.shown = np.arange(n)  # what is there in each image's place: the next one that could be decoded
        for i in sorted(self.broken, reverse=True) * 2:  # twice, since the last one's next may be the first
            self.shown[i] = self.shown[(i + 1) % n]

    def __len__(self) -> int:
        return len(self.images)

    def batches(
        self, *, batch_size: int, seed: int, start: int = 0, rank: int = 0, world_size: int = 1, crops: int = 1
    ) -> Generator[Batch, None, None]:
        """As :func:`hardpatch.data.loader.train_batches`, in the same order, but on the device and with other boxes."""
        reads = images_read(batch_size, crops, world_size)
        for samples in TrainingOrder(len(self), reads, seed, start, rank, world_size):
            epochs, indices = samples.T
            bad: dict[str, None] = {}
            for at in indices[self.shown[indices] != indices].tolist():
                while at in self.broken:
                    bad[self.broken[at]] = None
                    at = (at + 1) % len(self)
            asked = self._sent(crop_indices(indices, crops))
            shown = self._sent(self.shown[indices]).repeat(crops)
            images, boxes, flipped = self.crops(self._sent(epochs).repeat(crops), asked, shown, seed)
            yield Batch(images, asked, self.labels[shown], [*bad], None, boxes, flipped)

    def crops(self, epochs: Tensor, indices: Tensor, shown: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Crops uint8 [B, C, h, w], boxes as shares float32 [B, 4], flips bool [B] of the images `shown`, int64 [B]."""
        transform = self.transform
        keys = (indices // SAMPLES << 56) + (epochs << 32) + indices % SAMPLES  # crop, epoch and image
        noise = patch_noise(seed ^ CROPS, 0, keys, 2 * TRIES + 3)
        flipped = noise[:, 0] < transform.flip
        sizes = self.sizes[shown].repeat(1, 2)  # height, width, height, width
        boxes = crop_boxes(noise[:, 1:], sizes[:, 0], sizes[:, 1], transform.scale, transform.ratio)
        held = boxes * (self.held / sizes)
        chunk = max(1, FLOATS // self.images[0].numel())
        made = [
            crop(self.images[shown[k : k + chunk]], held[k : k + chunk], flipped[k : k + chunk], transform.image_size)
            for k in range(0, len(shown), chunk)
        ]
        return torch.cat(made), boxes / sizes, flipped

    def _sent(self, numbers: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(numbers))
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor


def crop_boxes(
    noise: Tensor, heights: Tensor, widths: Tensor, scale: tuple[float, float], ratio: tuple[float, float]
) -> Tensor:
    """Top, left, height and width in pixels, whole numbers, float32 [B, 4], by the law of ``crop_box``.

    Args:
        noise: uniform in [0, 1), ``[B, 2 * TRIES + 2]``.
        heights, widths: of the images, ``[B]``.
        scale: least and largest share of the area.
        ratio: least and largest width over height.
    """
    heights, widths = heights.float().unsqueeze(1), widths.float().unsqueeze(1)
    area = heights * widths * (scale[0] + (scale[1] - scale[0]) * noise[:, :TRIES])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * noise[:, TRIES : 2 * TRIES])
    h, w = (area / aspect).sqrt().round(), (area * aspect).sqrt().round()
    fits = (h > 0) & (h <= heights) & (w > 0) & (w <= widths)
    first = fits & (fits.cumsum(1) == 1)
    found = first.any(1, keepdim=True)
    h, w = ((sides * first).sum(1, keepdim=True) for sides in (h, w))
    # the largest central one of allowed aspect
    whole = widths / heights
    narrow = torch.where(whole < ratio[0], (widths / ratio[0]).round().clamp(min=1), heights)
    short = torch.where(whole > ratio[1], (heights * ratio[1]).round().clamp(min=1), widths)
    h, w = torch.where(found, h, narrow.minimum(heights)), torch.where(found, w, short.minimum(widths))
    free = torch.cat([heights - h, widths - w], dim=1)
    drawn = (noise[:, 2 * TRIES :] * (free + 1)).floor().minimum(free)
    place = torch.where(found, drawn, (free / 2).floor())
    return torch.cat([place, h, w], dim=1)


def crop(images: Tensor, boxes: Tensor, flipped: Tensor, size: tuple[int, int]) -> Tensor:
    """Parts of images, resized by bicubic interpolation with antialiasing, some of them flipped.

    What ``F.interpolate`` gives for each part in float32, rounded. Its kernel for uint8 rounds between the two
    directions too, and differs from that by a gray level here and there.

    Args:
        images: uint8 ``[B, H, C, W]``.
        boxes: top, left, height and width in pixels, not necessarily whole ones, ``[B, 4]``.
        flipped: bool ``[B]``.
        size: height and width of what comes out, ``(h, w)``.

    Returns:
        uint8 ``[B, C, h, w]``.
    """
    batch, height, channels, width = images.shape
    rows = resize_weights(boxes[:, 0], boxes[:, 2], height, size[0])
    columns = resize_weights(boxes[:, 1], boxes[:, 3], width, size[1])
    columns = torch.where(flipped[:, None, None], columns.flip(1), columns)
    pixels = images.view(batch, height * channels, width).float()
    pixels = torch.bmm(pixels, columns.transpose(1, 2))
    pixels = torch.bmm(rows, pixels.view(batch, height, channels * size[1])).round_().clamp_(0, 255)
    return pixels.byte().view(batch, size[0], channels, size[1]).transpose(1, 2).contiguous()


def resize_weights(start: Tensor, length: Tensor, inputs: int, outputs: int) -> Tensor:
    """How much of each of the ``inputs`` pixels goes into each of the ``outputs``, float32 ``[B, outputs, inputs]``.

    Keys' cubic with a = -0.5, widened where the part from ``start``, ``length`` long, ``[B]``, is shrunken; pixels
    outside it count nothing, and each row sums to 1: what Pillow does, and torch with ``antialias=True``.
    """
    scale = (length / outputs)[:, None, None]
    start, length = start[:, None, None], length[:, None, None]
    centers = start + scale * (torch.arange(outputs, device=start.device) + 0.5)[:, None]
    pixels = torch.arange(inputs, device=start.device)
    x = ((pixels + 0.5 - centers) / scale.clamp(min=1)).abs()
    weights = torch.where(x < 1, (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2)
    weights = weights * ((x < 2) & (pixels > start - 1) & (pixels < start + length))
    return weights / weights.sum(2, keepdim=True)


def held_side(transform: TrainTransform) -> int:
    """Pixels: at this side a crop of mean area is neither enlarged nor shrunken."""
    return math.ceil(max(transform.image_size) / math.sqrt(sum(transform.scale) / 2))


def free_memory(device: torch.device) -> int | None:
    """Bytes that the device has left; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_memory() if device.type == "cpu" else None
