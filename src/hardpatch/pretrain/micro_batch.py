"""Number of micro-batches that makes a step fit into the memory of the device."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from hardpatch.configuration.hosts import HOSTS
from hardpatch.configuration.sections import RunConfig
from hardpatch.data.augment import GLOBAL_CROPS
from hardpatch.data.batch import Batch
from hardpatch.errors import UserError
from hardpatch.methods.difficulty_memory import DifficultyMemory
from hardpatch.pretrain.schedule import Schedule, schedule
from hardpatch.pretrain.step import Learner
from hardpatch.pretrain.vital_signs import RunningMeans

MARGIN = 0.03
"""Fraction of the device's memory that stays free, since fragmentation grows in a long run."""

BATCHES = 3
"""Batches on the device at once, including those that are copied while it computes."""


def fewest_accumulation_steps(learner: Learner) -> int:
    """Find the smallest number of micro-batches with which a batch does not run out of memory.

    Tries forward and backward passes on black images, with the teacher. Weights, optimizer, teacher and random numbers
    do not change.

    Raises:
        UserError: if not even single images fit, or there are several processes: one whose memory is full would leave
            the others waiting.
    """
    if learner.part.world_size > 1:
        raise UserError(
            "optim.accumulation_steps: auto tries out a step in one process, and there are "
            f"{learner.part.world_size}; give a number, for example what auto says of --devices 1 with a batch_size of "
            f"{learner.run.batch_size // learner.part.world_size}, the part of each"
        )
    for count in candidates(learner.run.batch_size):
        if _fits(learner, count):
            return count
        _free_memory(learner)
    raise UserError(
        "optim.accumulation_steps: auto found that not even single images fit into the device's memory; use a smaller "
        "model, smaller images or a smaller decoder"
    )


def candidates(batch_size: int) -> list[int]:
    """Return the divisors of the batch in the order to try: powers of two, then larger divisors."""
    divisors = [count for count in range(1, batch_size + 1) if batch_size % count == 0]
    powers = [count for count in divisors if count & (count - 1) == 0]
    return powers + [count for count in divisors if count > powers[-1]]


def _fits(learner: Learner, count: int) -> bool:
    run, device = learner.run, learner.fabric.device
    # From the second micro-batch on there are gradients in memory, too; a third needs no more.
    trials = min(count, 2)
    batch = synthetic_batch(run, trials * (run.batch_size // count), _black)
    spare = BATCHES * sum(part.nbytes for part in batch if isinstance(part, Tensor)) * count // trials
    if device.type == "cuda":
        spare += int(MARGIN * torch.cuda.get_device_properties(device).total_memory)
    try:
        with _unchanged(learner):
            reserved = [torch.empty_like(p) for p in learner.model.parameters() for _ in range(2)]  # AdamW's state
            reserved.append(torch.empty(spare, dtype=torch.uint8, device=device))
            for step_schedule in _largest_steps(run):
                learner.compute_gradients(batch, step_schedule, trials, observe=True)
                learner.model.zero_grad()
            del reserved
    except torch.OutOfMemoryError:
        return False
    return True


def _largest_steps(run: RunConfig) -> list[Schedule]:
    """Return schedules of the steps that need the most memory: with mining, and the most or fewest masked patches."""
    first = schedule(run, 0, 1)
    first = first._replace(alpha=max(run.method.alpha_start, run.method.alpha_end))
    ratio, spread = run.method.mask_ratio, run.method.mask_ratio_spread
    return [first._replace(mask_ratio=value) for value in sorted({ratio - spread, ratio + spread})]


@contextmanager
def _unchanged(learner: Learner) -> Iterator[None]:
    """Restore everything that :meth:`Learner.compute_gradients` changes."""
    device = learner.fabric.device
    buffers = [] if learner.teacher is None else list(learner.teacher.network.buffers())
    saved = [buffer.clone() for buffer in buffers]
    means, memory = learner.means, learner.mining.memory
    learner.means = RunningMeans()
    if memory is not None:
        learner.mining.memory = DifficultyMemory(learner.run.batch_size, memory.grid).to(device)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        learner.means, learner.mining.memory = means, memory
        learner.model.zero_grad()
        for buffer, value in zip(buffers, saved, strict=True):
            buffer.copy_(value)


def _free_memory(learner: Learner) -> None:
    """Free the memory that a failed step left behind."""
    if learner.run.train.compile != "no":
        torch.compiler.reset()  # compiled for other shapes
    gc.collect()
    if learner.fabric.device.type == "cuda":
        torch.cuda.empty_cache()


def synthetic_batch(run: RunConfig, images: int, pixels: Callable[..., Tensor]) -> Batch:
    """Make a batch like those of the run's loader, from synthetic pixels.

    Args:
        run: the configuration.
        images: in the batch.
        pixels: returns uint8 pixels for the sizes of a shape.
    """
    multi_crop, ibot, channels = HOSTS[run.method.host].multi_crop, run.ibot, run.data.channel_count
    local = None
    if multi_crop and ibot.local_crops:
        local = pixels(ibot.local_crops * images, channels, ibot.local_size, ibot.local_size)
    return Batch(
        images=pixels(GLOBAL_CROPS * images if multi_crop else images, channels, *run.image_size),
        indices=torch.arange(images),
        labels=torch.full((images,), -1),
        bad=[],
        local=local,
        boxes=torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(images, 1),
        flipped=torch.zeros(images, dtype=torch.bool),
    )


def _black(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.uint8)
