"""Throughput of data loading: each stage on one core, the loader with its workers, and image sets in memory."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple
from warnings import catch_warnings, filterwarnings

import numpy as np
import torch

from hardpatch.bench.timing import Quartiles, RoundCallback, quartiles
from hardpatch.data.augment import TrainTransform
from hardpatch.data.batch import Batch
from hardpatch.data.crop import crop_box, crop_pixels, torch_type
from hardpatch.data.decode import Jpeg, decode, open_image
from hardpatch.data.device_dataset import MAX_MEMORY_SHARE, DeviceDataset, free_memory
from hardpatch.data.loader import train_batches
from hardpatch.data.memory import InMemorySource, available_memory
from hardpatch.data.reading import Reading, UndecodableImage
from hardpatch.data.sources import Source, Subset
from hardpatch.data.workers import cores
from hardpatch.errors import UserError
from hardpatch.train.device import synchronize

TURNS = 5
"""Measurements of each stage, alternating with the other stages."""
FILES = 256
"""Images held in memory for the stages after reading."""
HELD_BYTES = 2e9
"""Limit of decoded bytes for the measurement of sets in memory."""
WORTHWHILE_SPEEDUP = 1.2
"""Speedup from which on a setting is recommended."""
SHRINK_RATIO = 1.3
"""Ratio of the shorter side to that of a pre-shrunk set from which on shrinking is recommended."""

READ, DECODE, DECODE_FOR_CROP, RESIZE, ALL = (
    "read the file",
    "decode, full size",
    "decode, as far as the crop needs",
    "crop and resize",
    "all of it, into a batch",
)


@dataclass(frozen=True)
class LoadingResult:
    """Result of :func:`measure_loading`; rates are in images per second."""

    stages: dict[str, Quartiles]
    """rate of each stage on one core"""
    loader: dict[int, float]
    """rate by number of workers"""
    host: float
    """rate for a set held in memory, with the best number of workers"""
    device: float
    """rate for a set held on the device and cropped there"""
    images: int
    """size of the set"""
    sampled: int
    """number of images that were measured"""
    size: tuple[int, int]
    """mean height and width in pixels"""
    verdict: str
    """a sentence about the bottleneck and the recommended settings"""

    @property
    def best_workers(self) -> int:
        """Number of workers with the highest rate."""
        return _best(self.loader)

    def to_dict(self) -> dict[str, Any]:
        """Return all values, ready for JSON."""
        return {**asdict(self), "stages": {name: rate._asdict() for name, rate in self.stages.items()}}

    def to_markdown(self) -> str:
        """Return a table of the rates, followed by the verdict."""
        lines = ["| | images/s | ms an image |", "|---|---|---|"]
        for name, rate in self.stages.items():
            lines.append(f"| one core: {name} | {rate:.0f} | {1000 / rate.median:.3f} |")
        rates = {f"loader, workers {count}": rate for count, rate in self.loader.items()}
        rates |= {f"in_memory host, workers {self.best_workers}": self.host, "in_memory device": self.device}
        lines += [f"| {name} | {rate:.0f} | {1000 / rate:.3f} |" for name, rate in rates.items()]
        return "\n".join(lines) + f"\n\n{self.verdict}\n"


def measure_loading(
    source: Source,
    transform: TrainTransform,
    device: torch.device,
    *,
    batch_size: int,
    seconds: float,
    sampled: int,
    workers: Sequence[int],
    progress: RoundCallback = lambda done, total: None,
) -> LoadingResult:
    """Measure the throughput of each stage of data loading.

    Args:
        source: the set.
        transform: crops the images.
        device: for the set held there.
        batch_size: in images.
        seconds: duration of the measurement of each stage and each loader.
        sampled: number of random images that are measured if the set has more.
        workers: numbers of loader processes to try.
        progress: called with (measurements done, measurements).

    Raises:
        UserError: if none of the images can be decoded.
    """
    indices = np.random.default_rng(0).permutation(len(source))[:sampled]
    sample = Subset(source, indices.tolist())
    total = len(workers) + 3
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    samples = _decode_samples(sample, transform.reading)
    stages = _stages(sample, samples, transform, seconds)
    torch.set_num_threads(threads)
    progress(1, total)
    loader = {}
    for done, count in enumerate(workers, 2):
        loader[count] = _loader_rate(sample, transform, batch_size, count, seconds)
        progress(done, total)
    best = _best(loader)
    bytes_per_image = samples.size[0] * samples.size[1] * transform.reading.number
    held_images = min(len(sample), max(1, int(HELD_BYTES / bytes_per_image)))
    held = InMemorySource(Subset(sample, range(held_images)), transform.reading)
    host = _loader_rate(held, transform, batch_size, best, seconds)
    progress(total - 1, total)
    device_set = DeviceDataset(held, transform, device)
    on_device = _rate(device_set.batches(batch_size=batch_size, seed=0), seconds, device)
    progress(total, total)
    host_memory, device_memory = available_memory(), free_memory(device)
    fits_host = host_memory is None or len(source) * bytes_per_image < host_memory
    fits_device = device_memory is None or len(source) * device_set.images[0].numel() < MAX_MEMORY_SHARE * device_memory
    rates = loader, host if fits_host else 0.0, on_device if fits_device else 0.0
    verdict = _verdict(stages, *rates, samples.size, max(transform.image_size))
    return LoadingResult(stages, loader, host, on_device, len(source), len(sample), samples.size, verdict)


def _best(loader: dict[int, float]) -> int:
    return max(loader, key=lambda count: loader[count])


def _loader_rate(source: Source, transform: TrainTransform, batch_size: int, workers: int, seconds: float) -> float:
    with catch_warnings():  # more workers than cores are worth measuring where images come from afar
        filterwarnings("ignore", "This DataLoader will create")
        return _rate(train_batches(source, transform, batch_size=batch_size, seed=0, workers=workers), seconds)


def _rate(batches: Generator[Batch, None, None], seconds: float, device: torch.device | None = None) -> float:
    """Images per second, after the first batch and those that the workers prepared along with it."""
    try:
        next(batches)
        start = time.perf_counter()
        while time.perf_counter() - start < seconds / 3:
            next(batches)
        if device is not None:
            synchronize(device)
        images, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            images += len(next(batches).indices)
        if device is not None:
            synchronize(device)
        return images / (time.perf_counter() - start)
    finally:
        batches.close()


class _Samples(NamedTuple):
    """Some images in memory."""

    files: list[bytes]
    """encoded; empty if the source holds pixels"""
    pixels: list[np.ndarray]
    """uint8 ``[H, W, C]``"""
    size: tuple[int, int]
    """mean height and width in pixels"""


def _decode_samples(source: Source, reading: Reading) -> _Samples:
    files: list[bytes] = []
    pixels: list[np.ndarray] = []
    count = min(len(source), FILES)
    for i in range(count):
        try:
            data = source.encoded(i)
            pixels.append(source.image(i, reading))
        except UndecodableImage:
            continue
        files += [data] if data is not None else []
    if not pixels:
        raise UserError(f"--data: none of {count} images can be decoded")
    height, width = (round(sum(image.shape[side] for image in pixels) / len(pixels)) for side in (0, 1))
    return _Samples(files, pixels, (height, width))


def _stages(source: Source, samples: _Samples, transform: TrainTransform, seconds: float) -> dict[str, Quartiles]:
    """Images per second of each stage on this core."""
    files, pixels, _ = samples
    buffer = torch.empty(transform.reading.number, *transform.image_size, dtype=torch_type(transform.reading))

    def generator(k: int) -> np.random.Generator:
        return np.random.default_rng((0, 0, k))

    def read(k: int) -> None:
        source.encoded(k % len(source))

    def decode_for_crop(k: int) -> None:
        image = open_image(files[k % len(files)], transform.reading)
        box = crop_box(image.shape[0], image.shape[1], transform.scale, transform.ratio, generator(k))
        if isinstance(image, Jpeg):
            crop_pixels(image, box, transform.image_size, transform.shrink_on_decode)

    def all_stages(k: int) -> None:
        data = source.encoded(k % len(source))
        image = pixels[k % len(pixels)] if data is None else open_image(data, transform.reading)
        buffer.copy_(transform.crop(image, generator(k)).pixels)

    stages: dict[str, Callable[[int], object]] = {}
    if files:
        stages[READ] = read
        stages[DECODE] = lambda k: decode(files[k % len(files)], transform.reading)
        if transform.shrink_on_decode is not None:
            stages[DECODE_FOR_CROP] = decode_for_crop
    stages[RESIZE] = lambda k: transform.crop(pixels[k % len(pixels)], generator(k))
    stages[ALL] = all_stages
    return _time_in_turns(stages, seconds)


def _time_in_turns(stages: dict[str, Callable[[int], object]], seconds: float) -> dict[str, Quartiles]:
    """Time calls of each stage, in :data:`TURNS` alternating turns. Returns calls per second.

    The argument of a stage is the number of earlier calls.
    """
    rates: dict[str, list[float]] = {name: [] for name in stages}
    calls = dict.fromkeys(stages, 0)
    for _ in range(TURNS):
        for name, stage in stages.items():
            first, start = calls[name], time.perf_counter()
            while time.perf_counter() - start < seconds / TURNS or calls[name] == first:
                with suppress(UndecodableImage):  # as the loader, which takes the next image
                    stage(calls[name])
                calls[name] += 1
            rates[name].append((calls[name] - first) / (time.perf_counter() - start))
    return {name: quartiles(values) for name, values in rates.items()}


def _verdict(
    stages: dict[str, Quartiles],
    loader: dict[int, float],
    host: float,
    on_device: float,
    size: tuple[int, int],
    image_size: int,
) -> str:
    """Name the bottleneck and the recommended settings; ``host`` and ``on_device`` are 0 if the set does not fit."""
    best = _best(loader)
    times = {name: 1 / stages[name].median for name in stages}
    parts = {
        "reading": times.get(READ, 0.0),
        "decoding": min(times.get(DECODE, 0.0), times.get(DECODE_FOR_CROP, np.inf)),
        "resizing": times[RESIZE],
    }
    slowest = max(parts, key=lambda part: parts[part])
    share = parts[slowest] / sum(parts.values())
    side = 8 * image_size // 7  # 256 for 224
    if on_device > WORTHWHILE_SPEEDUP * max(host, loader[best]):
        advice = f"--data.in_memory device ({on_device:.0f} images/s)"
    elif host > WORTHWHILE_SPEEDUP * loader[best]:
        advice = f"--data.in_memory host --data.workers {best} ({host:.0f} images/s)"
    elif slowest != "resizing" and min(size) > SHRINK_RATIO * side:
        advice = f"--data.workers {best} on a set made smaller with `hardpatch shrink --side {side}`"
    elif 0 < best == max(loader):
        advice = f"--data.workers {best}, and use more cores if the model waits"
    else:
        advice = f"--data.workers {best}"
    return (
        f"Bottleneck: {slowest}, {share:.0%} of the {1000 * times[ALL]:.2g} ms that a core needs per image; "
        f"{best} workers on {cores()} cores load {loader[best]:.0f} images/s; set {advice}."
    )
