"""Comparison of features of image files: another library's own preprocessing and model against this package's."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hardpatch.data.augment import EvalTransform
from hardpatch.data.decode import decode
from hardpatch.data.reading import Pixels
from hardpatch.errors import UserError
from hardpatch.interchange.backbone import Backbone
from hardpatch.measure.labels import crop_fraction
from hardpatch.models.pixels import normalize, register_normalization

TOLERANCE = 1e-4
"""Largest difference, relative to the largest feature."""
SHAPES = {"PNG": (1.3, 1.9), "JPEG": (0.9, 0.7)}
"""Height and width of the files relative to the model's: one larger and landscape, one smaller and portrait."""

Outputs = Callable[[Tensor], Tensor]
"""Function from normalized images to what a model makes of them."""
Preprocess = Callable[[Image.Image], Tensor]
"""Another library's preprocessing of an image file that Pillow has opened: ``[1, C, H, W]``."""


class FileDifference(NamedTuple):
    """Largest difference of features of an image file, relative to the largest feature."""

    png: float
    jpeg: float
    library: str
    """name and version of the other library"""


def unchecked(model: Backbone) -> str | None:
    """Return why other libraries cannot read image files as the model needs them; None if they can."""
    reading = model.reading
    if not isinstance(reading.channels, int):
        return f"they read all channels of a file in order, this model takes those with the indices {reading.channels}"
    if reading.dtype != "uint8" or reading.number not in (1, 3):
        return f"they read files of 1 or 3 channels of 8 bits, this model takes {reading.number} of {reading.dtype}"
    if reading.ranged:
        return "they divide bytes by 255, this model takes another range"
    return None


@torch.no_grad()
def compare_files(
    model: Backbone,
    own_outputs: Outputs,
    exported_outputs: Outputs,
    preprocess: Preprocess,
    library: str,
) -> FileDifference | None:
    """Compare the features of a PNG and a JPEG file, which are written to a temporary folder.

    Args:
        model: encoder and preprocessing of this package.
        own_outputs: features of normalized images ``[1, C, H, W]``.
        exported_outputs: the same of the exported model.
        preprocess: the other library's.
        library: name and version of it.

    Returns:
        The differences, None if the files of such models are not of these kinds; see :func:`unchecked`.

    Raises:
        UserError: if they are above :data:`TOLERANCE`.
    """
    if unchecked(model) is not None:
        return None
    size = model.encoder.image_size
    differences: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, shape in SHAPES.items():
            path = Path(folder, f"image.{kind.lower()}")
            height, width = (round(a * side) for a, side in zip(shape, size, strict=True))
            _picture(height, width, model.reading.number).save(path, format=kind)
            expected = own_outputs(own_preprocessing(path.read_bytes(), model))
            with Image.open(path) as picture:
                outputs = exported_outputs(preprocess(picture))
            if outputs.shape != expected.shape:
                raise _refusal(kind, library, f"features of shape {list(outputs.shape)}", size)
            difference = ((outputs - expected).abs().max() / expected.abs().max()).item()
            if not difference <= TOLERANCE:
                raise _refusal(kind, library, f"other features, by {difference:.1e} of the largest", size)
            differences[kind] = difference
    return FileDifference(differences["PNG"], differences["JPEG"], library)


def own_preprocessing(data: bytes, model: Backbone) -> Tensor:
    """Return the normalized pixels ``[1, C, H, W]`` of an image file, as this package evaluates features of it."""
    size = model.encoder.image_size
    transform = EvalTransform(size, model.reading, crop_fraction(size))
    normalization: Any = nn.Module()
    register_normalization(normalization, model.mean, model.std, model.reading)
    return normalize(transform(decode(data, model.reading)), normalization)[None]


def _picture(height: int, width: int, channels: int) -> Image.Image:
    """Return waves of several lengths in each channel, with noise."""
    rows, columns, channel = np.mgrid[:height, :width, :channels]
    waves = np.sin(rows / (5 + channel)) + np.sin(columns / 7 + rows / 23 - channel)
    noise = np.random.default_rng(0).normal(scale=8, size=waves.shape)
    pixels: Pixels = (128 + 50 * waves + noise).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels if channels == 3 else pixels[:, :, 0])


def _refusal(kind: str, library: str, reason: str, size: tuple[int, int]) -> UserError:
    older = "" if size[0] == size[1] else " (timm before 1.0.31 resizes bilinearly for models that are not square)"
    return UserError(
        f"--to: {library}'s own preprocessing of a {kind} file leads to {reason}, expected at most {TOLERANCE:g}; "
        f"nothing was written; install another version of timm or transformers{older}"
    )
