"""Training of a small tokenizer on images without labels, for BEiT's visual tokens (Ramesh et al. 2021, Sec. 2.1)."""

import math
from collections.abc import Generator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor

from hardpatch.data.augment import EvalTransform, TrainTransform
from hardpatch.data.bad_files import BadFiles
from hardpatch.data.batch import Batch
from hardpatch.data.loader import eval_batches, train_batches
from hardpatch.data.sources import Source, Subset
from hardpatch.errors import UserError
from hardpatch.models.discrete_vae import PIXEL_STD, DiscreteVAE
from hardpatch.models.tokenizer import KIND
from hardpatch.models.whole_batch import mean_over_processes
from hardpatch.pretrain.tokenizer_settings import TokenizerSettings
from hardpatch.processes import average, on_first
from hardpatch.schedules import half_cosine, learning_rate
from hardpatch.train.bad_steps import BadSteps, means_of, running_statistics
from hardpatch.train.cadence import Cadence
from hardpatch.train.device import loader_workers
from hardpatch.train.extension import Course, course
from hardpatch.train.memory import bytes_per_parameter, check_memory
from hardpatch.train.optimizer import fused_on_gpu
from hardpatch.train.parallel import take_part, without_exchange
from hardpatch.train.settings import to_dict
from hardpatch.train.sharding import WholeCopy
from hardpatch.train.state import TrainingState

USE_WEIGHT = 0.1
"""Weight of :func:`uneven_use` in the loss. A short trial used 10 of 512 words without this term, and 440 with it, at a
smaller error."""
WARMUP = 0.1
"""Fraction of the training in which the learning rate rises."""
MEASURED = 1000
"""Largest number of images on which the quality is measured."""


@dataclass(frozen=True)
class Quality:
    """Quality of a tokenizer on images that are not augmented: reconstruction error and use of its words."""

    images: int
    error: float
    """mean squared error of the reconstruction, pixels in [0, 1]"""
    used: int
    """words that occur"""
    entropy: float
    """of the use of the words, in bits; log2(vocabulary) if all are used equally"""

    @property
    def psnr(self) -> float:
        """Peak signal-to-noise ratio in dB."""
        return -10 * math.log10(max(self.error, 1e-12))

    @property
    def perplexity(self) -> float:
        """Number of equally used words that would have this entropy."""
        return 2**self.entropy

    def to_dict(self) -> dict[str, float]:
        """Return plain values."""
        return {**asdict(self), "psnr": self.psnr, "perplexity": self.perplexity}


def initial_tokenizer(run: TokenizerSettings) -> DiscreteVAE:
    """Build the tokenizer with its initial weights, which depend on the seed only.

    Raises:
        UserError: if sizes are out of range or do not fit each other.
    """
    if run.patch_size < 1 or run.image_size % run.patch_size:
        raise UserError(
            f"--patch_size: expected a divisor of the image size {run.image_size}, got {run.patch_size}; "
            "change one of the two"
        )
    weights = 49 * run.width**2 + run.width * run.vocabulary
    check_memory(bytes_per_parameter(run.device) * weights, "--width, --vocabulary", "a network")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        try:
            return DiscreteVAE(run.patch_size, run.vocabulary, run.width)
        except ValueError as error:
            raise UserError(f"--{error}") from None


class TokenizerJob:
    """Training of a tokenizer on random crops, for :func:`hardpatch.train.loop.fit`.

    The loss is the squared error in units of the pixels' variance plus :data:`USE_WEIGHT` times :func:`uneven_use`.

    Args:
        run: the settings.
        folder: of the run.
        source: the images.
        fabric: device and precision.
    """

    def __init__(self, run: TokenizerSettings, folder: Path, source: Source, fabric: Fabric) -> None:
        self.run, self.folder, self.source, self.fabric = run, folder, source, fabric
        self.model = initial_tokenizer(run).to(fabric.device).train()
        self.images, self.batch_size = len(source), run.batch_size
        self.step, self.total = 0, run.total_steps(self.images)
        self.part = take_part(run.batch_size, run.accumulation_steps)
        self.whole_model = WholeCopy(fabric, self.model)
        self.network = fabric.setup_module(self.model)
        adamw = torch.optim.AdamW(
            self.model.parameters(),
            lr=run.lr,
            betas=(0.9, 0.95),
            weight_decay=0.0,
            fused=fused_on_gpu(fabric, run.precision),
        )
        self.optimizer = cast(Any, fabric.setup_optimizers(adamw))
        self._sums, self._steps = torch.zeros(3, device=fabric.device), 0
        self._counts = torch.zeros(run.vocabulary, device=fabric.device)
        running = [*running_statistics(self.model), self._sums, self._counts]
        self.bad_steps = BadSteps(fabric, self.optimizer, run, running)
        self.state = TrainingState(fabric, self.model, adamw, self.bad_steps, background=run.background_saving)
        self.cadence = Cadence(
            self.total, run.log_every, run.checkpoint_minutes, run.checkpoint_steps, keep_every=run.keep_every
        )
        self.bad_files = BadFiles(self.images, run.max_bad_fraction, "--max_bad_fraction", source=source)
        self.quality: Quality | None = None
        self._generator = torch.Generator(fabric.device)

    def batches(self) -> Generator[Batch, None, None]:
        """Yield batches of random crops from the next step on."""
        run = self.run
        return train_batches(
            self.source,
            TrainTransform((run.image_size, run.image_size)),
            batch_size=run.batch_size,
            seed=run.seed,
            start=self.step,
            workers=loader_workers(run.workers),
            rank=self.part.rank,
            world_size=self.part.world_size,
            pin_memory=self.fabric.device.type == "cuda",
        )

    def train_step(self, batch: Batch, *, observe: bool = False) -> None:
        """Take one optimizer step."""
        run, count, progress = self.run, self.run.accumulation_steps, self._course.progress(self.step)
        self.bad_steps.begin()
        self._generator.manual_seed((run.seed * 1_000_003 + self.step) % 2**63)
        for number, pixels in enumerate(batch.images.to(self.fabric.device, non_blocking=True).chunk(count), 1):
            images = pixels.float() / 255
            with without_exchange(self.fabric, self.network, number < count):
                output = self.network(images, temperature(progress), self._generator)
                error = F.mse_loss(output.images, images)
                uneven = uneven_use(output.logits)
                loss = error / PIXEL_STD**2 + USE_WEIGHT * uneven
                self.fabric.backward(self.bad_steps.nan_unless_finite(loss) / count)
            with torch.no_grad():
                self._sums += torch.stack([loss, error, uneven]) / count
                self._counts += word_counts(output.logits)
        for group in self.state.optimizer.param_groups:
            group["lr"] = self._learning_rate(self.step)
        self.bad_steps.update(run.clip)
        self.step += 1
        self._steps += 1

    def metrics(self) -> dict[str, float]:
        """Return means since the last call, and entropy (in bits), perplexity and number of the words in use."""
        means = means_of(self._sums, self._steps, self.bad_steps)
        counts = average(self._counts)
        row: dict[str, float] = {}
        if means:
            bits, used = entropy(counts), int((counts > 0).sum())
            row = dict(zip(("loss", "reconstruction_loss", "uneven_use"), means, strict=True))
            row |= {"entropy": bits, "perplexity": 2**bits, "used": used}
        self._counts.zero_()
        self._steps = 0
        last = self.step - 1
        return {**row, "temperature": temperature(self._course.progress(last)), "lr": self._learning_rate(last)}

    @property
    def _course(self) -> Course:
        return course(self.total, self.run.extensions)

    def _learning_rate(self, step: int) -> float:
        return self._course.rate(step, partial(tokenizer_learning_rate, run=self.run)) * self.bad_steps.lr_factor

    def evaluate(self) -> dict[str, float]:
        """Measure the quality on images that are not augmented, and store it in :attr:`quality`."""
        model = self.whole_model.gather()
        self.quality = on_first(
            lambda: measure(
                model.eval(),
                self.source,
                self.run.image_size,
                device=self.fabric.device,
                batch_size=self.run.batch_size,
                workers=loader_workers(self.run.workers),
            )
        )
        model.train()
        self.whole_model.release()
        return {"psnr": self.quality.psnr, "words_used": self.quality.used}

    @property
    def metadata(self) -> dict[str, Any]:
        """Plain values about the run."""
        return {"kind": KIND, "tokenizer": to_dict(self.run), "steps": self.total, "images": self.images}

    def save(self) -> None:
        """Write a checkpoint of this step."""
        run = self.run
        self.state.save(self.folder, self.step, self.metadata, keep=run.keep_checkpoints, keep_every=run.keep_every)

    def restore(self, saved: Path) -> None:
        """Restore a checkpoint of this run exactly."""
        self.step = self.state.restore(saved, to_dict(self.run), "tokenizer")


def tokenizer_learning_rate(step: int, total: int, run: TokenizerSettings) -> float:
    """Return the learning rate of the step after ``step`` of ``total``: a warm-up, then half a cosine to 0."""
    return learning_rate(step / total, run.lr, 0.0, WARMUP)


def temperature(progress: float) -> float:
    """Temperature of the Gumbel softmax: half a cosine from 1/2 to 1/16 over three quarters of the training, then 1/16.

    Ramesh et al. (App. A.2) start at 1 and end at 1/16, too. A lower start learned faster here.
    """
    return half_cosine(min(progress / 0.75, 1.0), 1 / 2, 1 / 16)


def uneven_use(logits: Tensor) -> Tensor:
    """Divergence of the batch's mean use of the words from even use, in nats.

    The VAE's KL divergence to the uniform prior is this term plus the mutual information of patch and word (Hoffman and
    Johnson 2016). The mutual information is desired, so only this term is minimized: it keeps the codebook from
    collapsing without making the words of single patches less certain.

    Args:
        logits: ``[B, vocabulary, rows, columns]``.

    Returns:
        A scalar.
    """
    use = mean_over_processes(logits.float().softmax(dim=1).mean(dim=(0, 2, 3)))
    return (use * (use.clamp_min(1e-12).log() + math.log(len(use)))).sum()


@torch.no_grad()
def measure(
    tokenizer: DiscreteVAE, source: Source, image_size: int, *, device: torch.device, batch_size: int, workers: int = 0
) -> Quality:
    """Measure the quality on up to :data:`MEASURED` images, evenly spread over the source and not augmented."""
    chosen = Subset(source, evenly_spread(len(source), MEASURED))
    transform = EvalTransform((image_size, image_size))
    total, images = 0.0, 0
    counts = torch.zeros(tokenizer.vocabulary, device=device)
    for batch in eval_batches(chosen, transform, batch_size=batch_size, workers=workers):
        pixels = batch.images.to(device).float() / 255
        output = tokenizer(pixels)
        total += F.mse_loss(output.images.clamp(0, 1), pixels).item() * len(pixels)
        images += len(pixels)
        counts += word_counts(output.logits)
    return Quality(images, total / images, int((counts > 0).sum()), entropy(counts))


def word_counts(logits: Tensor) -> Tensor:
    """Count how often each word is the likeliest: float32 ``[vocabulary]``, without waiting for the device."""
    words = logits.argmax(dim=1).flatten()
    ones = torch.ones_like(words, dtype=torch.float32)
    return torch.zeros(logits.shape[1], device=logits.device).scatter_add_(0, words, ones)


def entropy(counts: Tensor) -> float:
    """Return the entropy in bits of the distribution of ``counts``."""
    share = counts.double().cpu() / counts.double().cpu().sum()
    return float(torch.special.entr(share).sum()) / math.log(2)


def evenly_spread(number: int, at_most: int) -> list[int]:
    """Return up to ``at_most`` of ``number`` indices, evenly spread."""
    return [k * number // min(number, at_most) for k in range(min(number, at_most))]
