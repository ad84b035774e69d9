"""Random numbers that depend on what they are for, not on when they are drawn.

A mask is drawn from the run's seed, the step and the sample's index alone. So a run has the same masks after a resume,
with any number of loader workers, micro-batches or processes, and on any kind of device. A stateful generator gives
none of this.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed integer: 2^64 / golden ratio
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(values: Tensor, bits: int) -> Tensor:
    """Shift right logically; torch shifts signed integers arithmetically."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _mix(values: Tensor) -> Tensor:
    """Apply the finalizer of SplitMix64 (Steele, Lea and Flood 2014), a bijection of 64-bit integers."""
    values = (values ^ _shift_right(values, 30)) * _MIX_1  # int64 products wrap, as the algorithm needs
    values = (values ^ _shift_right(values, 27)) * _MIX_2
    return values ^ _shift_right(values, 31)


def patch_noise(seed: int, step: int, samples: Tensor, patches: int) -> Tensor:
    """Draw uniform random numbers in [0, 1) for every patch of every sample.

    Args:
        seed: the run's seed.
        step: the optimizer step.
        samples: int64 ``[B]``, the index of each sample in its data set.
        patches: N.

    Returns:
        float32 ``[B, N]`` on the device of ``samples``. Row ``b`` depends only on ``seed``, ``step`` and
        ``samples[b]``.
    """
    key = torch.full_like(samples, seed)
    for part in (torch.full_like(samples, step), samples):
        key = _mix(key + _GOLDEN) ^ part
    counter = torch.arange(1, patches + 1, device=samples.device)
    bits = _mix(_mix(key + _GOLDEN).unsqueeze(1) + counter * _GOLDEN)
    # 24 bits: as many as a float32 in [0, 1) represents evenly.
    return _shift_right(bits, 40).float() * 2.0**-24


def seed_step(seed: int, step: int) -> None:
    """Seed what is drawn within a step (drop path, dropout, boxes), so that it is the same after a resume."""
    torch.manual_seed((seed * 1_000_003 + step) % 2**63)


class Part(NamedTuple):
    """Part of each batch that this process has."""

    number: int
    parts: int
    """one for each process"""
    images: int
    """images of the part that are computed at a time, of each of which there may be several crops"""


_part = Part(0, 1, 1)


def set_part(number: int, parts: int, images: int) -> None:
    """Say which part of each batch this process has, for :func:`own_rows`; see :class:`Part`."""
    global _part
    _part = Part(number, parts, images)


def own_rows(rows: int, draw: Callable[[tuple[int, ...]], Tensor]) -> Tensor:
    """Draw random numbers for the rows that all processes have, and return those of this process.

    So several processes draw what one would draw, which has the same generator and the whole batch. The rows are crops,
    crop by crop: first those of all images, then the second ones of all images, and so on.

    Args:
        rows: B, of this process.
        draw: returns random numbers for these leading sizes: ``(B,)``, or several that stand for all rows.

    Returns:
        ``[B, ...]``.
    """
    number, parts, images = _part
    if parts == 1:
        return draw((rows,))
    return draw((rows // images, parts, images))[:, number].flatten(0, 1)


def random_keep(like: Tensor, probability: float, shape: tuple[int, ...] = (1, 1)) -> Tensor:
    """Draw for each row of ``like``, or for parts of it, whether they are kept: 0 or ``1 / (1 - probability)``.

    Args:
        like: ``[B, ...]``.
        probability: with which a row is dropped.
        shape: of the draws for a row.

    Returns:
        ``[B, *shape]``.
    """
    return own_rows(len(like), lambda sizes: F.dropout(like.new_ones(*sizes, *shape), probability))
