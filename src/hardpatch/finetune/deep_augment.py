"""RandAugment for images that Pillow has no type for: more than 8 bits, or other channels than gray and RGB.

The operations and their strengths are timm's ``rand-m..-mstd..-inc1``, without rounding to 8 bits. Color is left out
where there are not three channels.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hardpatch.data.reading import LUMA

Values = npt.NDArray[np.float32]
"""Pixels ``[H, W, C]`` in [0, 1]."""
Level = float
"""Strength of an operation, 0 to 1."""
LAYERS, PROBABILITY = 2, 0.5


def rand_augment(
    values: Values, magnitude: float, deviation: float, fill: Sequence[float], rng: np.random.Generator
) -> Values:
    """Apply two random operations to ``[H, W, C]`` in [0, 1], each with probability one half.

    Args:
        values: the image.
        magnitude: mean strength, 0 to 10.
        deviation: standard deviation of the strength.
        fill: of each channel, what shows where the image was moved away.
        rng: source of the random numbers.
    """
    names = [name for name in OPERATIONS if name != "color" or values.shape[2] == 3]
    for name in rng.choice(names, LAYERS):
        level = float(np.clip(rng.normal(magnitude, deviation), 0, 10)) / 10
        sign = 1.0 if rng.random() < 0.5 else -1.0
        if rng.random() < PROBABILITY:
            values = OPERATIONS[str(name)](values, level, sign, np.asarray(fill, np.float32)).clip(0, 1)
    return values


def _auto_contrast(values: Values, level: Level, sign: float, fill: Values) -> Values:
    low, high = values.min((0, 1)), values.max((0, 1))
    return np.where(high > low, (values - low) / np.maximum(high - low, 1e-6), values)


def _equalize(values: Values, level: Level, sign: float, fill: Values) -> Values:
    from skimage import exposure

    equalize_hist: Any = exposure.equalize_hist

    planes: list[Any] = [
        equalize_hist(values[..., c]) if np.ptp(values[..., c]) else values[..., c] for c in range(len(fill))
    ]
    return np.stack(planes, axis=2).astype(np.float32)


def _posterize(values: Values, level: Level, sign: float, fill: Values) -> Values:
    steps = 2 ** max(1, 4 - int(level * 4))
    return (np.minimum(np.floor(values * steps), steps - 1) / steps).astype(np.float32)


def _solarize(values: Values, level: Level, sign: float, fill: Values) -> Values:
    return np.where(values < 1 - level, values, 1 - values)


def _solarize_add(values: Values, level: Level, sign: float, fill: Values) -> Values:
    return np.where(values < 0.5, values + np.float32(level * 110 / 255), values)


def _blend(values: Values, other: Values, level: Level, sign: float) -> Values:
    factor = np.float32(max(0.1, 1 + sign * 0.9 * level))
    return other * (1 - factor) + values * factor


def _gray(values: Values) -> Values:
    return (values @ np.array(LUMA, np.float32))[..., None] if values.shape[2] == 3 else values


def _sharpness(values: Values, level: Level, sign: float, fill: Values) -> Values:
    from scipy.ndimage import convolve

    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32)[..., None] / 13  # Pillow's SMOOTH
    return _blend(values, convolve(values, kernel, mode="nearest"), level, sign)


def _moved(values: Values, matrix: npt.NDArray[np.float64], fill: Values) -> Values:
    """Move the image by a 2 x 3 matrix from output to input, rows first, around the center."""
    from scipy.ndimage import affine_transform

    center = (np.array(values.shape[:2]) - 1) / 2
    offset = center + matrix[:, 2] - matrix[:, :2] @ center
    planes = [
        affine_transform(values[..., c], matrix[:, :2], offset, order=3, mode="constant", cval=float(fill[c]))
        for c in range(len(fill))
    ]
    return np.stack(planes, axis=2)


def _rotate(values: Values, level: Level, sign: float, fill: Values) -> Values:
    angle = np.deg2rad(sign * 30 * level)
    sine, cosine = np.sin(angle), np.cos(angle)
    return _moved(values, np.array([[cosine, -sine, 0], [sine, cosine, 0]]), fill)


def _along(axis: int, shear: float, shift: float) -> Callable[[Values, Level, float, Values], Values]:
    """Shear along an axis, or shift along it by a share of the image's side, at the strongest."""

    def operation(values: Values, level: Level, sign: float, fill: Values) -> Values:
        matrix = np.eye(2, 3)
        matrix[axis, 1 - axis] = sign * shear * level
        matrix[axis, 2] = sign * shift * level * values.shape[axis]
        return _moved(values, matrix, fill)

    return operation


OPERATIONS: dict[str, Callable[[Values, Level, float, Values], Values]] = {
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "invert": lambda values, level, sign, fill: 1 - values,
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": lambda values, level, sign, fill: _blend(values, _gray(values), level, sign),
    "contrast": lambda values, level, sign, fill: _blend(values, _gray(values).mean(keepdims=True), level, sign),
    "brightness": lambda values, level, sign, fill: _blend(values, np.zeros_like(values), level, sign),
    "sharpness": _sharpness,
    "shear_x": _along(1, 0.3, 0),
    "shear_y": _along(0, 0.3, 0),
    "translate_x": _along(1, 0, 0.45),
    "translate_y": _along(0, 0, 0.45),
}
