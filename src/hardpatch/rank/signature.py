"""Signatures of images by which they are compared, and the space in which distances between them mean something.

A signature is mean and deviation of the patch tokens after the first and after the last block: the first sees noise,
blank and damaged images, the last what an image shows. Both are brought to unit variance in every direction, by means
and covariances of the whole set that are added up part by part.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hardpatch.methods.hpm import HPM

DIRECTIONS = 128
"""Directions of each half of a signature that are compared, those of most variance."""
RIDGE = 1e-2
"""Share of the largest variance that is added to all before images are compared: copies differ in the small ones."""
THUMBNAIL = 8
"""Side of the small pictures by which candidates for duplicates are compared."""

Floats = NDArray[np.float64]


def signatures(model: HPM, images: Tensor) -> Tensor:
    """Mean and deviation of the patch tokens after the first and the last block: float32 ``[B, 2, 2 * D]``.

    Args:
        model: in eval mode.
        images: normalized ``[B, C, H, W]``.
    """
    encoder = model.host.encoder
    outputs = encoder.latents(images, None, (1, len(encoder.blocks)) if len(encoder.blocks) > 1 else (1,))
    halves = [torch.cat([tokens[:, 1:].mean(1), tokens[:, 1:].std(1)], dim=1).float() for tokens in outputs]
    return torch.stack([halves[0], halves[-1]], dim=1)


def thumbnails(pixels: Tensor) -> Tensor:
    """Mean pixels of 8 x 8 fields, in 8 bits: uint8 ``[B, C * 64]`` of uint8 ``[B, C, H, W]``."""
    small: Tensor = F.adaptive_avg_pool2d(pixels.float(), THUMBNAIL)
    return small.round().byte().flatten(1)


class Space(NamedTuple):
    """Directions in which half a signature varies over a set of images."""

    mean: Floats
    """``[2 * D]``"""
    deviation: Floats
    """``[2 * D]``"""
    directions: Floats
    """orthonormal columns, by increasing variance, ``[2 * D, 2 * D]``"""
    variances: Floats
    """of the standardized values in these directions, ``[2 * D]``"""
    shrinkage: float
    """share of the unit matrix in the covariance, by which distances are measured"""

    def coordinates(self, half: NDArray[np.float32]) -> Floats:
        """Return ``[n, 2 * D]`` in the directions."""
        return ((half - self.mean) / self.deviation) @ self.directions

    def distance(self, coordinates: Floats) -> Floats:
        """Mahalanobis distance from the mean over the root of the dimension, ``[n]``: about 1 for a usual image."""
        shrunk = (1 - self.shrinkage) * self.variances + self.shrinkage * self.variances.mean()
        return np.sqrt((coordinates**2 / np.maximum(shrunk, 1e-12)).mean(1))

    def vectors(self, coordinates: Floats) -> NDArray[np.float32]:
        """Return vectors of length 1 whose product is the similarity of images, ``[n, up to 128]``."""
        scaled = coordinates / np.sqrt(self.variances + RIDGE * self.variances[-1] + 1e-12)
        kept = scaled[:, -DIRECTIONS:]
        return (kept / np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), 1e-12)).astype(np.float32)


class Comparison(NamedTuple):
    """Both halves of some signatures in their spaces."""

    outlier: Floats
    """distance from the mean, the greater one of the two halves, ``[n]``"""
    vectors: NDArray[np.float32]
    """unit vectors to compare, ``[n, K]``"""


def compare(spaces: tuple[Space, Space], signature: NDArray[np.float32]) -> Comparison:
    """Bring signatures ``[n, 4 * D]`` into the spaces of their halves."""
    halves = signature.reshape(len(signature), 2, -1)
    coordinates = [space.coordinates(halves[:, k]) for k, space in enumerate(spaces)]
    outlier = np.maximum(*(space.distance(each) for space, each in zip(spaces, coordinates, strict=True)))
    parts = [space.vectors(each) for space, each in zip(spaces, coordinates, strict=True)]
    return Comparison(outlier, np.concatenate(parts, axis=1) / np.float32(2**0.5))


def spaces_of(read: "Iterable[Iterable[NDArray[np.float32]]]") -> tuple[Space, Space]:
    """Return the spaces of both halves of signatures.

    Args:
        read: passes over the parts ``[n, 4 * D]`` of the signatures, of which two are used.
    """
    passes = iter(read)
    count, total = 0, np.zeros(0)
    for part in next(passes):
        total = part.sum(0, dtype=np.float64) + (total if count else 0)
        count += len(part)
    mean = (total / count).reshape(2, -1)
    products = [np.zeros((mean.shape[1],) * 2) for _ in mean]
    for part in next(passes):
        for k, half in enumerate(part.reshape(len(part), 2, -1).transpose(1, 0, 2)):
            centered = half - mean[k]
            products[k] += centered.T @ centered
    first, last = (_space(center, product / count, count) for center, product in zip(mean, products, strict=True))
    return first, last


def _space(mean: Floats, covariance: Floats, count: int) -> Space:
    """Return the space of values with this mean and covariance, shrunk by the OAS rule (Chen et al., 2010)."""
    deviation = np.sqrt(covariance.diagonal())
    deviation = np.where(deviation > 1e-6 * max(deviation.max(), 1e-12), deviation, 1.0)
    correlation = covariance / np.outer(deviation, deviation)
    size, mu = len(mean), correlation.trace() / len(mean)
    square = (correlation**2).mean()
    rest = (count + 1) * (square - mu**2 / size)
    shrinkage = 1.0 if rest <= 0 else min((square + mu**2) / rest, 1.0)
    variances, directions = np.linalg.eigh(correlation)
    return Space(mean, deviation, directions, np.maximum(variances, 0), float(shrinkage))
