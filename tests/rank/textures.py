"""Textures with and without defects, drawn by a seed: stripes, checkers and smooth noise; scratches and blobs."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

Pixels = NDArray[np.uint8]
KINDS = ("stripes", "checker", "noise")


def texture(kind: str, rng: np.random.Generator, size: int = 32) -> NDArray[np.float64]:
    """Draw a texture in a random color, shifted by up to a pixel: ``[size, size, 3]``, about 0 to 255."""
    y, x = np.mgrid[:size, :size] + rng.uniform(-1, 1, 2)[:, None, None]
    if kind == "stripes":
        pattern = np.sin(x * 2 * np.pi / 8)
    elif kind == "checker":
        pattern = np.sign(np.sin(x * np.pi / 5) * np.sin(y * np.pi / 5))
    else:
        pattern = gaussian_filter(rng.normal(size=(size, size)), 1.5) * 5
    color = rng.uniform(0.8, 1.2, 3)
    pixels = 120 + 45 * pattern[..., None] * color + rng.normal(0, 4, (size, size, 3))
    return pixels + rng.uniform(-10, 10)


def add_defect(pixels: NDArray[np.float64], rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Draw a scratch or a blob, brighter or darker by 55: the picture, and bool ``[size, size]``, True on it."""
    size = len(pixels)
    y, x = np.mgrid[:size, :size]
    cy, cx = rng.uniform(0.25 * size, 0.75 * size, 2)
    if rng.random() < 0.5:  # a scratch
        angle, length = rng.uniform(0, np.pi), rng.uniform(0.25, 0.4) * size
        along = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
        across = -(x - cx) * np.sin(angle) + (y - cy) * np.cos(angle)
        mask = (np.abs(across) < 0.9) & (np.abs(along) < length / 2)
    else:
        radii = rng.uniform(0.06, 0.11, 2) * size
        mask = ((x - cx) / radii[0]) ** 2 + ((y - cy) / radii[1]) ** 2 < 1
    return np.where(mask[..., None], pixels + rng.choice((-55, 55)), pixels), mask


def write_set(folder: Path, *, normal: int, good: int, defective: int, seed: int, size: int = 32) -> None:
    """Write ``normal/``, and ``test/`` with the masks of its defective images in ``masks/``, as PNG files."""
    rng = np.random.default_rng(seed)
    for name in ("normal", "test", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(normal):
        _save(texture(KINDS[number % 3], rng, size), folder / "normal" / f"{number:04d}.png")
    for number in range(good + defective):
        pixels = texture(KINDS[number % 3], rng, size)
        name = f"{'good' if number < good else 'defect'}_{number:03d}.png"
        if number >= good:
            pixels, mask = add_defect(pixels, rng)
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "masks" / name)
        _save(pixels, folder / "test" / name)


def _save(pixels: NDArray[np.float64], path: Path) -> None:
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
