"""How fast images come: every stage on one core, the loader with its workers, sets held in memory; and what limits."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from hardpatch.bench.timing import Spread, spread
from hardpatch.data.augment import TrainTransform
from hardpatch.data.batch import Batch
from hardpatch.data.crop import crop_box, crop_pixels
from hardpatch.data.decode import Jpeg, UndecodableImage, decode, open_image
from hardpatch.data.device_dataset import MAX_MEMORY_SHARE, DeviceDataset, free_memory
from hardpatch.data.loader import train_batches
from hardpatch.data.memory import InMemorySource, available_memory
from hardpatch.data.sources import Source, Subset
from hardpatch.data.workers import cores
from hardpatch.errors import UserError

TURNS = 5
"""Every stage is timed so many times, in turns with the others."""
FILES = 256
"""Images whose files and pixels are held for the stages after reading."""
HELD_BYTES = 2e9
"""Most that the measurement of sets in memory decodes."""
GAIN = 1.2
"""What is so many times as fast is worth a setting."""
MARGIN = 1.3
"""Shorter sides so many times that of a pre-shrunk set are worth shrinking."""

READ, FULL, SHRUNKEN, RESIZE, BATCH = (
    "read the file",
    "decode, full size",
    "decode, as far as the crop needs",
    "crop and resize",
    "all of it, into a batch",
)


@dataclass(frozen=True)
class Feeding:
    """Images a second."""

    stages: dict[str, Spread]
    """each on one core"""
    loader: dict[int, float]
    """by number of workers"""
    host: float
    """held in memory, with as many workers as were best"""
    device: float
    """held on the device and cropped there"""
    images: int
    """in the set"""
    sampled: int
    """of these, what was measured on"""
    size: tuple[int, int]
    """mean height and width, pixels"""
    verdict: str
    """what limits, and what to set"""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, spreads as low, middle, high."""
        return {**asdict(self), "stages": {name: rate._asdict() for name, rate in self.stages.items()}}


def feeding(
    source: Source,
    transform: TrainTransform,
    device: torch.device,
    *,
    batch_size: int,
    seconds: float,
    sampled: int,
    workers: Sequence[int],
    told: Callable[[int, int | None], None] = lambda done, total: None,
) -> Feeding:
    """Measure.

    Args:
        source: the set.
        transform: what makes crops of it.
        device: for the set held there.
        batch_size: images.
        seconds: for each stage and each loader.
        sampled: images, drawn at random, that are measured on where the set has more.
        workers: numbers of loader processes to try.
        told: how many of how many measurements are done.

    Raises:
        UserError: if none of the images can be decoded.
    """
    n = len(source)
    chosen = np.random.default_rng(0).permutation(n)[:sampled]
    sample = Subset(source, chosen.tolist())
    total = len(workers) + 3
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    stages, size = _stages(sample, transform, seconds)
    torch.set_num_threads(threads)
    told(1, total)
    loader = {}
    for k, count in enumerate(workers):
        loader[count] = _rate(train_batches(sample, transform, batch_size=batch_size, seed=0, workers=count), seconds)
        told(k + 2, total)
    best = max(loader, key=lambda count: loader[count])
    few = min(len(sample), max(1, int(HELD_BYTES / (size[0] * size[1] * transform.channels))))
    held = InMemorySource(Subset(sample, range(few)), transform.channels)
    host = _rate(train_batches(held, transform, batch_size=batch_size, seed=0, workers=best), seconds)
    told(total - 1, total)
    there = DeviceDataset(held, transform, device)
    on_device = _rate(there.batches(batch_size=batch_size, seed=0), seconds, device)
    told(total, total)
    free, room = available_memory(), free_memory(device)
    fits = free is None or n * size[0] * size[1] * transform.channels < free
    fits_device = room is None or n * there.images[0].numel() < MAX_MEMORY_SHARE * room
    verdict = _verdict(
        stages, loader, host if fits else 0.0, on_device if fits_device else 0.0, size, max(transform.image_size)
    )
    return Feeding(stages, loader, host, on_device, n, len(sample), size, verdict)


def _rate(batches: Generator[Batch, None, None], seconds: float, device: torch.device | None = None) -> float:
    """Images a second, after the first batch and what the workers had ready with it."""

    def wait() -> None:
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)

    try:
        next(batches)
        begin = time.perf_counter()
        while time.perf_counter() - begin < seconds / 3:
            next(batches)
        wait()
        images, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < seconds:
            images += len(next(batches).indices)
        wait()
        return images / (time.perf_counter() - begin)
    finally:
        batches.close()


def _stages(sample: Source, transform: TrainTransform, seconds: float) -> tuple[dict[str, Spread], tuple[int, int]]:
    """Images a second of each stage on this core, and the mean height and width of the images."""
    files: list[bytes] = []
    pixels: list[np.ndarray] = []
    for i in range(min(len(sample), FILES)):
        try:
            data = sample.encoded(i)
            pixels.append(sample.image(i, transform.channels))
        except UndecodableImage:
            continue
        files += [data] if data is not None else []
    if not pixels:
        raise UserError(f"--data: none of {min(len(sample), FILES)} images can be decoded")
    height, width = (round(sum(image.shape[side] for image in pixels) / len(pixels)) for side in (0, 1))
    place = torch.empty(transform.channels, *transform.image_size, dtype=torch.uint8)

    def generator(k: int) -> np.random.Generator:
        return np.random.default_rng((0, 0, k))

    def read(k: int) -> None:
        sample.encoded(k % len(sample))

    def decode_for_crop(k: int) -> None:
        image = open_image(files[k % len(files)], transform.channels)
        box = crop_box(image.shape[0], image.shape[1], transform.scale, transform.ratio, generator(k))
        if isinstance(image, Jpeg):
            crop_pixels(image, box, transform.image_size, transform.shrink_on_decode)

    def all_of_it(k: int) -> None:
        data = sample.encoded(k % len(sample))
        image = pixels[k % len(pixels)] if data is None else open_image(data, transform.channels)
        place.copy_(transform.crop(image, generator(k)).pixels)

    work: dict[str, Callable[[int], object]] = {}
    if files:
        work[READ] = read
        work[FULL] = lambda k: decode(files[k % len(files)], transform.channels)
        if transform.shrink_on_decode is not None:
            work[SHRUNKEN] = decode_for_crop
    work[RESIZE] = lambda k: transform.crop(pixels[k % len(pixels)], generator(k))
    work[BATCH] = all_of_it
    rates: dict[str, list[float]] = {name: [] for name in work}
    done = dict.fromkeys(work, 0)
    for _ in range(TURNS):
        for name, each in work.items():
            first, begin = done[name], time.perf_counter()
            while time.perf_counter() - begin < seconds / TURNS or done[name] == first:
                with suppress(UndecodableImage):  # the loader takes the next one
                    each(done[name])
                done[name] += 1
            rates[name].append((done[name] - first) / (time.perf_counter() - begin))
    return {name: spread(each) for name, each in rates.items()}, (height, width)


def _verdict(
    stages: dict[str, Spread],
    loader: dict[int, float],
    host: float,
    on_device: float,
    size: tuple[int, int],
    image_size: int,
) -> str:
    """One sentence: what limits, and what to set; `host` and `on_device` are 0 where the set does not fit there."""
    best = max(loader, key=lambda count: loader[count])
    times = {name: 1 / stages[name].middle for name in stages}
    parts = {
        "reading": times.get(READ, 0.0),
        "decoding": min(times.get(FULL, 0.0), times.get(SHRUNKEN, np.inf)),
        "resizing": times[RESIZE],
    }
    slowest = max(parts, key=lambda part: parts[part])
    share = parts[slowest] / sum(parts.values())
    side = 8 * image_size // 7  # 256 for 224
    if on_device > GAIN * max(host, loader[best]):
        advice = f"--data.in_memory device ({on_device:.0f} images/s)"
    elif host > GAIN * loader[best]:
        advice = f"--data.in_memory host --data.workers {best} ({host:.0f} images/s)"
    elif slowest != "resizing" and min(size) > MARGIN * side:
        advice = f"--data.workers {best} on a set made smaller with `hardpatch shrink --side {side}`"
    elif 0 < best == max(loader):
        advice = f"--data.workers {best}, and take more cores if the model waits"
    else:
        advice = f"--data.workers {best}"
    return (
        f"What limits: {slowest}, {share:.0%} of the {1000 * times[BATCH]:.2g} ms that a core takes for an image; "
        f"{best} workers on {cores()} cores make {loader[best]:.0f} images/s; set {advice}."
    )


def markdown(found: Feeding) -> str:
    """The table, and the sentence."""
    lines = ["| | images/s | ms an image |", "|---|---|---|"]
    for name, rate in found.stages.items():
        lines.append(f"| one core: {name} | {rate:.0f} | {1000 / rate.middle:.3f} |")
    rows = {f"loader, workers {count}": rate for count, rate in found.loader.items()}
    best = max(found.loader, key=lambda count: found.loader[count])
    rows |= {f"in_memory host, workers {best}": found.host, "in_memory device": found.device}
    lines += [f"| {name} | {rate:.0f} | {1000 / rate:.3f} |" for name, rate in rows.items()]
    return "\n".join(lines) + f"\n\n{found.verdict}\n"
