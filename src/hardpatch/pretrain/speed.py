"""Speed of a training on this machine, measured with a few steps of it on images of its own set."""

import statistics
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from hardpatch.configuration.build import initial_model, target_of, transform_of, with_channels
from hardpatch.configuration.sections import RunConfig
from hardpatch.configuration.size import check_fits
from hardpatch.data.loader import train_batches
from hardpatch.data.memory import InMemorySource
from hardpatch.data.reading import RGB, Reading
from hardpatch.data.sources import Source, Subset
from hardpatch.data.workers import resolve_workers
from hardpatch.pretrain.micro_batch import fewest_accumulation_steps, synthetic_batch
from hardpatch.pretrain.schedule import schedule
from hardpatch.pretrain.step import Learner
from hardpatch.train.device import start_fabric, synchronize

STEPS = 1000
"""Steps of the training of which a step in the middle is timed."""
BATCH = 64
"""Images, at most, of a step that is timed alone."""
REPEATS = 20
"""Times that a step is repeated at most."""
IN_MEMORY = 256
"""Images that are decoded into memory to time a training whose images are."""


def seconds_per_image(run: RunConfig, seconds: float = 1.5) -> float:
    """Time the arithmetic of a step, on noise and without loading.

    Args:
        run: the configuration; a batch of more than :data:`BATCH` images is timed with so many.
        seconds: the step is repeated for about this long, at least once after one for warm-up.

    Raises:
        UserError: if the model cannot be built.
    """
    run = replace(run, batch_size=min(run.batch_size, BATCH))
    learner = _learner(run, run.batch_size)
    values = schedule(run, STEPS // 2, STEPS)

    def noise(*shape: int) -> Tensor:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    batch = synthetic_batch(run, run.batch_size, noise)
    return median_seconds(lambda: learner.train_step(batch, values), learner.fabric.device, seconds) / run.batch_size


class Speed(NamedTuple):
    """Speed of a training with its loading."""

    images_per_second: float
    waiting: float
    """fraction of the time in which the step waits for images"""


def training_speed(run: RunConfig, source: Source, reading: Reading = RGB, seconds: float = 6.0) -> Speed:
    """Time the training itself: steps on the set's own images, loaded as in the run.

    Args:
        run: the configuration.
        source: the images.
        reading: how they are read.
        seconds: the training is timed for about this long, after a first batch that does not count.

    Raises:
        UserError: if the model cannot be built or too many images cannot be decoded.
    """
    run = with_channels(run, reading.number)
    if run.data.in_memory != "no":
        source = InMemorySource(Subset(source, range(min(len(source), IN_MEMORY))), reading, announce=False)
    learner = _learner(run, len(source), reading)
    values, device = schedule(run, STEPS // 2, STEPS), learner.fabric.device
    batches = train_batches(
        source,
        transform_of(run, reading),
        batch_size=run.batch_size,
        seed=run.seed,
        workers=resolve_workers(run.data.workers),
        pin_memory=device.type == "cuda",
        crops=run.data.crops,
    )
    with closing(batches):
        learner.train_step(next(batches), values)
        synchronize(device)
        steps, waited, start = 0, 0.0, time.perf_counter()
        while not steps or time.perf_counter() - start < seconds:
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            learner.train_step(batch, values)
            synchronize(device)
            steps += 1
        spent = time.perf_counter() - start
    return Speed(steps * run.batch_size / spent, waited / spent)


def _learner(run: RunConfig, images: int, reading: Reading | None = None) -> Learner:
    fabric = start_fabric(run.train.device, run.train.precision, "train.")
    check_fits(run)
    target, outputs = target_of(run, fabric.device)
    channels = run.data.channel_count if reading is None else reading.number
    model = initial_model(run, [0.5] * channels, [0.3] * channels, outputs, reading)
    learner = Learner(run, model, fabric, STEPS, target, images)
    if run.optim.accumulation_steps == "auto" and fabric.device.type == "cuda":
        learner.accumulation_steps = fewest_accumulation_steps(learner)
    return learner


def median_seconds(step: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Return the median seconds of a step after one for warm-up.

    Args:
        step: what is timed.
        device: that it runs on.
        seconds: it is repeated for about this long, up to :data:`REPEATS` times.
    """
    times: list[float] = []
    while len(times) < 2 or (sum(times[1:]) < seconds and len(times) <= REPEATS):
        start = time.perf_counter()
        step()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
