"""In how many pieces a batch is computed, so that a step fits into the memory of the device."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from hardpatch.data.augment import GLOBAL_CROPS
from hardpatch.data.batch import Batch
from hardpatch.errors import UserError
from hardpatch.methods.difficulty_memory import DifficultyMemory
from hardpatch.pretrain.build import image_size
from hardpatch.pretrain.schedule import Schedule, schedule
from hardpatch.pretrain.sections import RunConfig
from hardpatch.pretrain.step import Learner
from hardpatch.pretrain.vital_signs import RunningMeans

MARGIN = 0.03
"""Share of the device's memory that is left over: the allocator does not lose less in a long run."""

BATCHES = 3
"""Batches that are on the device at once: those that are copied while it computes."""


def fewest_pieces(learner: Learner) -> int:
    """The fewest pieces with which forward and backward of a batch do not run out of memory.

    Found by trying, on blank images, with the teacher at work. Weights, optimizer, teacher and random numbers stay as
    they are.

    Raises:
        UserError: if not even single images fit.
    """
    for pieces in candidates(learner.run.batch_size):
        if _fits(learner, pieces):
            return pieces
        _forget(learner)
    raise UserError(
        "optim.accumulation_steps: auto found that not even single images fit into the device's memory; take a smaller "
        "model, smaller images or a smaller decoder"
    )


def candidates(batch_size: int) -> list[int]:
    """Divisors of the batch in the order in which they are tried: powers of two, then what is finer than those."""
    divisors = [pieces for pieces in range(1, batch_size + 1) if batch_size % pieces == 0]
    powers = [pieces for pieces in divisors if pieces & (pieces - 1) == 0]
    return powers + [pieces for pieces in divisors if pieces > powers[-1]]


def _fits(learner: Learner, pieces: int) -> bool:
    run, device = learner.run, learner.fabric.device
    # The second piece has the first one's gradients beside it; more change nothing.
    tried = min(pieces, 2)
    batch = _blank_batch(run, tried * (run.batch_size // pieces))
    spare = BATCHES * sum(part.nbytes for part in batch if isinstance(part, Tensor)) * pieces // tried
    if device.type == "cuda":
        spare += int(MARGIN * torch.cuda.get_device_properties(device).total_memory)
    try:
        with _untouched(learner):
            reserved = [torch.empty_like(p) for p in learner.model.parameters() for _ in range(2)]  # AdamW's state
            reserved.append(torch.empty(spare, dtype=torch.uint8, device=device))
            for now in _hardest(run):
                learner.gradients(batch, now, tried, observe=True)
                learner.model.zero_grad()
            del reserved
    except torch.OutOfMemoryError:
        return False
    return True


def _hardest(run: RunConfig) -> list[Schedule]:
    """Values of the steps that take the most memory: something is mined, and the most or the fewest are masked."""
    now = schedule(run, 0, 1)
    now = now._replace(alpha=max(run.method.alpha_start, run.method.alpha_end))
    ratio, spread = run.method.mask_ratio, run.method.mask_ratio_spread
    return [now._replace(mask_ratio=value) for value in sorted({ratio - spread, ratio + spread})]


@contextmanager
def _untouched(learner: Learner) -> Iterator[None]:
    """Put back all that :meth:`Learner.gradients` changes."""
    device = learner.fabric.device
    buffers = [] if learner.teacher is None else list(learner.teacher.network.buffers())
    kept = [buffer.clone() for buffer in buffers]
    means, memory = learner.means, learner.memory
    learner.means = RunningMeans(device)
    if memory is not None:
        learner.memory = DifficultyMemory(learner.run.batch_size, memory.grid).to(device)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        learner.means, learner.memory = means, memory
        learner.model.zero_grad()
        for buffer, then in zip(buffers, kept, strict=True):
            buffer.copy_(then)


def _forget(learner: Learner) -> None:
    """Give back what a step that did not fit has left."""
    if learner.run.train.compile != "no":
        torch.compiler.reset()  # compiled for other shapes
    gc.collect()
    if learner.fabric.device.type == "cuda":
        torch.cuda.empty_cache()


def _blank_batch(run: RunConfig, images: int) -> Batch:
    """So many black images, with all that a loader gives for the run's host."""

    def pixels(count: int, size: tuple[int, int]) -> Tensor:
        return torch.zeros(count, run.data.channels, *size, dtype=torch.uint8)

    ibot, local = run.method.host == "ibot", (run.ibot.local_size, run.ibot.local_size)
    return Batch(
        pixels(GLOBAL_CROPS * images if ibot else images, image_size(run)),
        torch.arange(images),
        torch.full((images,), -1),
        [],
        pixels(run.ibot.local_crops * images, local) if ibot and run.ibot.local_crops else None,
        torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(images, 1),
        torch.zeros(images, dtype=torch.bool),
    )
