"""Augmentation of fine-tuning: RandAugment and random erasing of an image, mixup and CutMix of a batch.

timm's RandAugment and mixup draw from the global generators of Python and NumPy. Here these are seeded by image or step
before each use. The same run therefore sees the same images with any number of workers and after a resume.
"""

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hardpatch.data.augment import Crop, TrainTransform
from hardpatch.data.crop import Image
from hardpatch.data.decode import Jpeg
from hardpatch.data.reading import from_unit, to_unit

ERASED_AREA, ERASED_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)
"""Ranges of the erased share of an image, and of height over width of the rectangle (Zhong et al. 2020)."""

STRONGEST = 9.99
"""Largest magnitude of RandAugment: at 10 posterization would keep no bit of an image, which Pillow refuses."""


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed the global generators of Python and NumPy with ``key``, and restore their states afterwards."""
    before = random.getstate(), np.random.get_state()  # noqa: NPY002 - timm draws from these
    (seed,) = np.random.SeedSequence(key).generate_state(1).tolist()
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002


@dataclass(frozen=True)
class FinetuneTransform(TrainTransform):
    """Random resized crop and flip, then RandAugment (Cubuk et al. 2020), then random erasing.

    Args:
        mean, std: of each channel for pixels in [0, 1], by which the images are normalized later. The noise of random
            erasing has this mean and standard deviation, and stays between black and white.
        magnitude: mean magnitude of RandAugment, 0 to 10, 0 is off.
        magnitude_std: standard deviation of the magnitude; the two are timm's ``rand-m..-mstd..-inc1``.
        erase: probability that a rectangle becomes noise.
    """

    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.25, 0.25, 0.25)
    magnitude: float = 0.0
    magnitude_std: float = 0.5
    erase: float = 0.0

    def crop(self, image: Image | Jpeg, rng: np.random.Generator) -> Crop:
        """Crop and augment an image ``[H, W, C]``: ``[C, h, w]`` of its type, and the box of the crop."""
        crop = super().crop(image, rng)
        pixels = crop.pixels
        if self.magnitude:
            pixels = self._augmented(pixels, int(rng.integers(2**32)))
        return crop._replace(pixels=self._erased(pixels, rng) if rng.random() < self.erase else pixels)

    def _augmented(self, pixels: Tensor, seed: int) -> Tensor:
        from PIL import Image as Pillow

        if pixels.dtype != torch.uint8 or len(pixels) not in (1, 3):
            return self._deeply_augmented(pixels, seed)
        gray = len(pixels) == 1
        picture = Pillow.fromarray(pixels[0].numpy() if gray else pixels.permute(1, 2, 0).numpy())
        fill = tuple(round(255 * value) for value in self.mean)
        augment = _rand_augment(self.magnitude, self.magnitude_std, fill)
        with seeded(seed):
            augmented = np.array(augment(picture))
        return torch.from_numpy(augmented.reshape(*augmented.shape[:2], -1)).permute(2, 0, 1)

    def _deeply_augmented(self, pixels: Tensor, seed: int) -> Tensor:
        """Augment images of types or channels that Pillow has no pictures for, by the same operations in float32."""
        from hardpatch.finetune.deep_augment import rand_augment

        values = to_unit(pixels.permute(1, 2, 0).numpy(), self.reading)
        augmented = rand_augment(values, self.magnitude, self.magnitude_std, self.mean, np.random.default_rng(seed))
        return torch.from_numpy(from_unit(augmented, self.reading)).permute(2, 0, 1)

    def _erased(self, pixels: Tensor, rng: np.random.Generator) -> Tensor:
        channels, height, width = pixels.shape
        low, high = map(math.log, ERASED_ASPECT)
        for _ in range(10):
            area = rng.uniform(*ERASED_AREA) * height * width
            aspect = math.exp(rng.uniform(low, high))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < h < height and 0 < w < width:
                top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
                mean, std = (np.reshape(values, (channels, 1, 1)) for values in (self.mean, self.std))
                noise = (mean + std * rng.standard_normal((channels, h, w))).clip(0, 1)
                values = from_unit(noise.transpose(1, 2, 0).astype(np.float32), self.reading)
                pixels = pixels.clone()
                pixels[:, top : top + h, left : left + w] = torch.from_numpy(values.transpose(2, 0, 1).copy())
                break
        return pixels


@cache
def _rand_augment(magnitude: float, deviation: float, fill: Sequence[int]) -> Any:
    from PIL.Image import Resampling
    from timm.data.auto_augment import RandAugment as Policy
    from timm.data.auto_augment import rand_augment_choices, rand_augment_ops

    hparams = {
        "magnitude_std": deviation,
        "magnitude_max": STRONGEST,
        "interpolation": Resampling.BICUBIC,  # as MAE and HPM; timm would take bilinear or bicubic at random
        "img_mean": fill[0] if len(fill) == 1 else tuple(fill),
    }
    names = rand_augment_choices("", increasing=True)
    return Policy(rand_augment_ops(magnitude, prob=0.5, hparams=hparams, transforms=names), num_layers=2)


class Mixer:
    """mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019) of a batch, and soft targets with label smoothing.

    Args:
        classes: number of classes.
        mixup, cutmix: their alphas, 0 is off. If both are on, each batch has one of the two, with equal probability.
        probability: probability that a batch is mixed.
        smoothing: share of a target that is spread evenly over all classes.
        seed: seed of the draws.
    """

    def __init__(
        self, classes: int, *, mixup: float, cutmix: float, probability: float, smoothing: float, seed: int
    ) -> None:
        from timm.data.mixup import Mixup, mixup_target

        self.classes, self.smoothing, self.seed = classes, smoothing, seed
        self._target: Any = mixup_target
        self._mix = None
        if mixup or cutmix:
            self._mix = Mixup(mixup, cutmix, prob=probability, label_smoothing=smoothing, num_classes=classes)

    def __call__(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Mix each image of a batch with its neighbor; the result is the same for the same seed and step.

        Args:
            images: ``[B, C, H, W]``, B must be even if batches are mixed.
            labels: int64 ``[B]``.
            step: number of the step.

        Returns:
            The mixed images, and targets ``[B, classes]`` that sum to 1.
        """
        if self._mix is None:
            return images, self._target(labels, self.classes, smoothing=self.smoothing)
        # timm mixes image k with image B - 1 - k. In this order these are neighbors, in any part of a batch.
        order = torch.arange(len(labels), device=labels.device).view(-1, 2)
        order = torch.cat([order[:, 0], order[:, 1].flip(0)])
        with seeded(self.seed, step):
            mixed, targets = self._mix(images[order], labels[order])
        back = order.argsort()
        return mixed[back], targets[back]
