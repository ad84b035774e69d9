"""Result of an export, the comparison of outputs, and the new file or folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from hardpatch.data.demo import demo_source
from hardpatch.data.reading import RGB, Reading
from hardpatch.errors import UserError
from hardpatch.export.file_check import FileDifference, Outputs, unchecked
from hardpatch.files import atomic_path, reason_of
from hardpatch.interchange.backbone import Backbone
from hardpatch.models.encoder import Encoder

REAL_IMAGES = 2
"""Images of the embedded set in the comparison, in addition to a random one."""
TOLERANCE = 1e-3
"""Largest difference, relative to the largest output, that counts as rounding."""


class OutputDifference(NamedTuple):
    """Difference between the outputs of the other library and of this one."""

    random: float
    """largest absolute difference on an image of random numbers"""
    real: float | None
    """the same on real images; None if they do not have the model's number of channels"""
    largest: float
    """largest absolute output"""


class ExportResult(NamedTuple):
    """Result of an export."""

    path: Path
    code: str
    """Python code that loads the model"""
    mean: tuple[float, ...]
    """of each channel, for pixels in [0, 1]"""
    std: tuple[float, ...]
    """likewise"""
    image_size: tuple[int, int]
    """(height, width) in pixels"""
    difference: OutputDifference | None
    """None if the other library is not installed"""
    preprocessing: str | None
    """Python code of the other library that prepares image files for ``model``; None where it has none"""
    files: FileDifference | None
    """None if the other library is not installed, or for the reason in `not_from_files`"""
    not_from_files: str | None = None
    """reason why the other library cannot read image files as the model needs them"""
    reading: Reading = RGB
    """type and range of the pixels before that"""
    library: str = ""
    """name and version of the other library, where it is installed"""
    notes: tuple[str, ...] = ()
    """lines about what was changed or left out"""

    def report(self) -> list[str]:
        """Return the lines of the parity report: differences to this package, and what was left out."""
        lines, difference = list(self.notes), self.difference
        if difference is None:
            return lines
        real = "" if difference.real is None else f", {difference.real:.1e} on real images"
        lines.append(
            f"largest difference of outputs: {difference.random:.1e} on a random image{real} "
            f"(outputs up to {difference.largest:.1f})"
        )
        if self.files is not None:
            kinds = "a PNG and a JPEG file" if len(self.mean) == 3 else "a gray PNG and a gray JPEG file"
            largest = max(self.files.png, self.files.jpeg)
            lines.append(
                f"checked from {kinds}: largest difference {largest:.1g} of the largest output ({self.files.library})"
            )
        elif self.not_from_files is not None and self.preprocessing is not None:
            lines.append(
                f"not checked from image files: with {self.library}'s own preprocessing, {self.not_from_files}"
            )
        return lines


def result_of(
    backbone: Backbone,
    out: Path,
    code: str,
    difference: OutputDifference | None,
    preprocessing: str | None,
    files: FileDifference | None,
    library: str,
    notes: tuple[str, ...] = (),
) -> ExportResult:
    """Put a result together."""
    encoder, mean, std, reading = backbone
    size, reason = encoder.image_size, unchecked(backbone)
    return ExportResult(
        out, code, mean, std, size, difference, preprocessing, files, reason, reading, library=library, notes=notes
    )


def example_images(encoder: Encoder, size: tuple[int, int] | None = None) -> torch.Tensor:
    """Return normalized images ``[B, C, H, W]``: a random one and, for 1 or 3 channels, real ones."""
    size = size or encoder.image_size
    noise = torch.randn(1, encoder.channels, *size, generator=torch.Generator().manual_seed(0))
    if encoder.channels not in (1, 3):
        return noise
    source = demo_source("test")
    pixels = np.stack([source.image(i, Reading(encoder.channels)) for i in range(REAL_IMAGES)])
    real = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    return torch.cat([noise, F.interpolate(real, size=size, mode="bicubic", antialias=True)])


@torch.no_grad()
def compare_outputs(encoder: Encoder, own_outputs: Outputs, exported_outputs: Outputs) -> OutputDifference:
    """Compare the outputs for the same images.

    Raises:
        RuntimeError: if they differ by more than rounding.
    """
    images = example_images(encoder)
    expected = own_outputs(images)
    difference = (exported_outputs(images) - expected).abs().flatten(1).amax(dim=1).tolist()
    largest = expected.abs().max().item()
    result = OutputDifference(difference[0], max(difference[1:], default=None), largest)
    if not max(difference) <= TOLERANCE * largest:
        raise RuntimeError(f"the exported model gives other outputs, nothing was written: {result}")
    return result


def check_new(out: Path) -> None:
    """Check that ``out`` does not exist.

    Raises:
        UserError: if it does.
    """
    if out.exists() or out.is_symlink():
        raise UserError(f"--out: {out} exists and is never overwritten; choose a new name")


@contextmanager
def new_path(out: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``out``, which becomes ``out`` if there is no error."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(out, concurrent=True) as temporary:
            yield temporary
            check_new(out)
    except OSError as error:
        raise UserError(f"--out: cannot write {out}: {reason_of(error)}") from None


@contextmanager
def new_files(out: Path) -> Iterator[Path]:
    """Yield the path of ``out`` in a temporary folder, whose files come to lie beside ``out`` if there is no error.

    A file may name others that lie beside it, so that none of them can have a temporary name. ``out`` comes last.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{out.stem}.", suffix=".partial", dir=out.parent) as folder:
            path = Path(folder) / out.name
            yield path
            files = sorted(Path(folder).iterdir(), key=lambda file: file == path)
            for file in files:
                check_new(out.parent / file.name)
            for file in files:
                file.rename(out.parent / file.name)
    except OSError as error:
        raise UserError(f"--out: cannot write {out}: {reason_of(error)}") from None
