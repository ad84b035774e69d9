"""Facts that a plan rests on: of the set, from a sample of its images, and of the machine."""

import statistics
import time
from dataclasses import dataclass

import numpy as np

from hardpatch.busy import BUSY, load
from hardpatch.data.memory import available_memory
from hardpatch.data.reading import Pixels, Reading, UndecodableImage
from hardpatch.data.sources import Source
from hardpatch.data.survey import header_of
from hardpatch.data.workers import cores

SAMPLE = 256
"""Images whose headers are read."""
DECODED = 48
"""Images that are decoded among them."""
FEW = 100
"""Images below which a set is called small."""
MOSTLY = 0.5
"""Fraction of distinct images below which a set is doubtful."""
PLAIN = 0.01
"""Deviation of the pixels below which images are almost one color."""


@dataclass(frozen=True)
class SetFacts:
    """A set of images."""

    images: int
    side: int
    """median of the shorter sides in pixels"""
    small: int
    """shorter side of the smallest of the sample"""
    large: int
    """longer side of the largest"""
    pixels: float
    """mean pixels of an image"""
    channels: int
    dtype: str
    decode_seconds: float
    """of an image, on one core"""
    distinct: float
    """fraction of the decoded images that differ from all others"""
    deviation: float
    """mean over images of the standard deviation of their pixels in [0, 1]"""

    def describe(self) -> str:
        """Return number, size, channels and type in one line."""
        size = f"{self.small} px" if self.small == self.large else f"{self.small} to {self.large} px"
        kind = {1: "gray", 3: "RGB"}.get(self.channels, f"{self.channels} channels")
        return f"{self.images:,} images, sides of {size} (median of the shorter {self.side}), {kind}, {self.dtype}"

    def warning(self) -> str:
        """Return what makes it doubtful that a model can learn from the set; empty if nothing does."""
        if self.images < FEW:
            return (
                f"{self.images} images hold little to learn from; weights of a larger set, fine-tuned, will do better"
            )
        if self.distinct < MOSTLY:
            return f"only {self.distinct:.0%} of the images looked at differ from all others: see hardpatch check"
        if self.deviation < PLAIN:
            return "images of almost one color: see hardpatch check, and data.range for images of more than 8 bits"
        return ""


def set_facts(source: Source, reading: Reading) -> SetFacts:
    """Look at a sample of images, spread over the set.

    Args:
        source: the images, at least one of which can be decoded.
        reading: how they are read.
    """
    chosen = np.random.default_rng(0).permutation(len(source))[:SAMPLE].tolist()
    sizes: list[tuple[int, int]] = []
    decoded: list[Pixels] = []
    seconds = 0.0
    for i in chosen:
        try:
            header = header_of(source, i, reading)
            sizes.append((header.height, header.width))
            if len(decoded) < DECODED:
                start = time.perf_counter()
                decoded.append(source.image(i, reading))
                seconds += time.perf_counter() - start
        except UndecodableImage:
            continue
    low, high = min(reading.low), max(reading.high)
    deviations = [float(pixels.astype(np.float32).std()) / (high - low) for pixels in decoded]
    return SetFacts(
        images=len(source),
        side=int(statistics.median(min(size) for size in sizes)),
        small=min(min(size) for size in sizes),
        large=max(max(size) for size in sizes),
        pixels=statistics.fmean(height * width for height, width in sizes),
        channels=reading.number,
        dtype=reading.dtype,
        decode_seconds=seconds / len(decoded),
        distinct=len({pixels.tobytes() for pixels in decoded}) / len(decoded),
        deviation=statistics.fmean(deviations),
    )


@dataclass(frozen=True)
class Machine:
    """A machine to train on."""

    device: str
    """``cpu``, ``cuda`` or ``mps``"""
    name: str
    cores: int
    memory: int | None
    """free bytes of the host's memory; None if unknown"""
    device_memory: int | None = None
    """bytes of the GPU's memory; None on a CPU"""
    load: float = 0.0
    """processes that want a core, on average over the last minute"""

    def describe(self) -> str:
        """Return device, cores and memory in one line."""
        count = f"{self.cores} core{'s' if self.cores > 1 else ''}"
        if self.memory is not None:
            count += f", {self.memory / 2**30:.0f} GiB free"
        if self.load > BUSY * self.cores:
            count += f", busy with other work in the last minute (load {self.load:.1f})"
            count += ", so that the times below may be too long"
        if self.device == "cpu":
            return f"{count}, no GPU"
        held = "" if self.device_memory is None else f" ({self.device_memory / 2**30:.0f} GiB)"
        return f"{self.name}{held}, {count}"


def this_machine(device: str = "auto") -> Machine:
    """Return the machine that this process runs on.

    Args:
        device: ``auto`` is a GPU if there is one.

    Raises:
        UserError: if the device is not available.
    """
    import torch

    from hardpatch.train.device import start_fabric

    kind = start_fabric(device, "fp32", "train.", settle=False).device.type
    name, held = kind.upper(), None
    if kind == "cuda":
        properties = torch.cuda.get_device_properties(0)
        name, held = properties.name, properties.total_memory
    return Machine(kind, name, cores(), available_memory(), held, load())
