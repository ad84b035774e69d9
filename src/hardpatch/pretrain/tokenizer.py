"""Training of a small tokenizer on images without labels, for BEiT's visual tokens (Ramesh et al. 2021, Sec. 2.1)."""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from hardpatch import __version__
from hardpatch.data.augment import EvalTransform, TrainTransform
from hardpatch.data.bad_files import BadFiles
from hardpatch.data.loader import eval_batches, train_batches
from hardpatch.data.sources import Source, Subset
from hardpatch.errors import TrainingError, UserError
from hardpatch.figures import enlarge
from hardpatch.models.discrete_vae import PIXEL_STD, DiscreteVAE
from hardpatch.models.tokenizer import KIND, METADATA
from hardpatch.pickles import save_tensors
from hardpatch.schedules import half_cosine, learning_rate

if TYPE_CHECKING:
    from hardpatch.train.progress import Progress

USE_WEIGHT = 0.1
"""Of the term that spreads the use of the words. Without it a short trial ended with 10 of 512 words in use, with it
with 440 and a smaller error."""
WARMUP = 0.1
CLIP = 1.0
LOG_EVERY = 50
MEASURED, PICTURED = 1000, 8


@dataclass(frozen=True)
class TokenizerRun:
    """How a tokenizer is trained."""

    steps: int
    """optimizer steps"""
    image_size: int = 64
    """side of the crops, pixels"""
    patch_size: int = 8
    """side of what becomes one token, pixels"""
    vocabulary: int = 512
    width: int = 64
    batch_size: int = 128
    lr: float = 3e-3
    """peak learning rate of AdamW"""
    seed: int = 0


@dataclass(frozen=True)
class Quality:
    """What a tokenizer keeps of images that are not augmented, and how it uses its words."""

    images: int
    error: float
    """mean squared error of the reconstruction, pixels in [0, 1]"""
    used: int
    """words that occur"""
    entropy: float
    """of the use of the words, bits; log2(vocabulary) where all are used alike"""

    @property
    def psnr(self) -> float:
        """Peak signal to noise, dB."""
        return -10 * math.log10(max(self.error, 1e-12))

    @property
    def perplexity(self) -> float:
        """How many words, used alike, would have this entropy."""
        return 2**self.entropy


def initial_tokenizer(run: TokenizerRun) -> DiscreteVAE:
    """The tokenizer with which a run of that seed begins.

    Raises:
        UserError: if sizes are out of range or do not fit each other.
    """
    if run.patch_size < 1 or run.image_size % run.patch_size:
        raise UserError(
            f"--patch_size: expected a divisor of the image size {run.image_size}, got {run.patch_size}; "
            "change one of the two"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        try:
            return DiscreteVAE(run.patch_size, run.vocabulary, run.width)
        except ValueError as error:
            raise UserError(f"--{error}") from None


def temperature(progress: float) -> float:
    """Of the Gumbel softmax: half a cosine from 1/2 to 1/16 over three quarters of the training, then 1/16.

    Ramesh et al. (App. A.2) end there too, and start at 1; here cosines are bounded, and lower starts learned faster.
    """
    return half_cosine(min(progress / 0.75, 1.0), 1 / 2, 1 / 16)


def uneven_use(logits: Tensor) -> Tensor:
    """Divergence of the batch's mean use of the words from even use, in nats: ``[B, vocabulary, rows, columns]`` to [].

    It is the part of the VAE's KL to the uniform prior that says nothing of a single patch: the whole KL is this plus
    the mutual information of patch and word (Hoffman and Johnson 2016), which is wanted. Taken alone it keeps the
    codebook from collapsing without making the choice of a word vaguer.
    """
    use = logits.float().softmax(dim=1).mean(dim=(0, 2, 3))
    return (use * (use.clamp_min(1e-12).log() + math.log(len(use)))).sum()


def train_tokenizer(
    source: Source, run: TokenizerRun, *, device: torch.device, workers: int, progress: "Progress"
) -> tuple[DiscreteVAE, list[dict[str, float]]]:
    """Train on random crops of the source.

    The loss is the squared error in units of the pixels' variance plus :data:`USE_WEIGHT` times :func:`uneven_use`.

    Returns:
        The tokenizer in eval mode, and a row of metrics every :data:`LOG_EVERY` steps: means since the row before;
        ``entropy`` (bits), ``perplexity`` and ``used`` are of the likeliest words.

    Raises:
        UserError: for settings that do not fit, or if no image can be decoded.
        TrainingError: if the loss becomes NaN or infinite.
    """
    model = initial_tokenizer(run).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.lr, betas=(0.9, 0.95), weight_decay=0.0)
    generator = torch.Generator(device).manual_seed(run.seed)
    transform = TrainTransform((run.image_size, run.image_size))
    pin = device.type == "cuda"
    batches = train_batches(
        source, transform, batch_size=run.batch_size, seed=run.seed, workers=workers, pin_memory=pin
    )
    bad = BadFiles(len(source), 1.0)
    rows: list[dict[str, float]] = []
    sums, counts = torch.zeros(3, device=device), torch.zeros(run.vocabulary, device=device)
    logged, logged_at = 0, time.monotonic()
    progress.start(0, run.steps, run.batch_size)
    try:
        for step in range(1, run.steps + 1):
            batch = next(batches)
            bad.update(batch.bad)
            done = (step - 1) / run.steps
            images = batch.images.to(device, non_blocking=True).float() / 255
            coded = model(images, temperature(done), generator)
            error = F.mse_loss(coded.images, images)
            uneven = uneven_use(coded.logits)
            loss = error / PIXEL_STD**2 + USE_WEIGHT * uneven
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(done, run.lr, 0.0, WARMUP)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            with torch.no_grad():
                sums += torch.stack([loss, error, uneven])
                counts += _occurrences(coded.logits)
            progress.advance()
            if step % LOG_EVERY == 0 or step == run.steps:
                means = (sums / (step - logged)).tolist()
                if not all(map(math.isfinite, means)):
                    raise TrainingError(
                        f"the loss became NaN or infinite between steps {logged + 1} and {step}; nothing was written. "
                        f"Try an --lr below {run.lr:g}"
                    )
                entropy, used = _entropy(counts), int((counts > 0).sum())
                row = {
                    "step": step,
                    "epoch": step * run.batch_size / len(source),
                    **dict(zip(("loss", "reconstruction_loss", "uneven_use"), means, strict=True)),
                    "entropy": entropy,
                    "perplexity": 2**entropy,
                    "used": used,
                    "temperature": temperature(done),
                    "lr": optimizer.param_groups[0]["lr"],
                    "images_per_second": (step - logged) * run.batch_size / (time.monotonic() - logged_at),
                }
                rows.append(row)
                progress.metrics(row)
                sums.zero_()
                counts.zero_()
                logged, logged_at = step, time.monotonic()
    finally:
        batches.close()
        progress.stop()
    return model.requires_grad_(False).eval(), rows


@torch.no_grad()
def measure(
    tokenizer: DiscreteVAE, source: Source, image_size: int, *, device: torch.device, batch_size: int, workers: int = 0
) -> Quality:
    """Rebuild up to :data:`MEASURED` images, evenly spread over the source and not augmented, from their tokens."""
    chosen = Subset(source, _spread(len(source), MEASURED))
    transform = EvalTransform((image_size, image_size))
    total, images = 0.0, 0
    counts = torch.zeros(tokenizer.vocabulary, device=device)
    for batch in eval_batches(chosen, transform, batch_size=batch_size, workers=workers):
        pixels = batch.images.to(device).float() / 255
        coded = tokenizer(pixels)
        total += F.mse_loss(coded.images.clamp(0, 1), pixels).item() * len(pixels)
        images += len(pixels)
        counts += _occurrences(coded.logits)
    return Quality(images, total / images, int((counts > 0).sum()), _entropy(counts))


@torch.no_grad()
def picture(tokenizer: DiscreteVAE, source: Source, image_size: int, *, device: torch.device) -> Image.Image:
    """Some images, and below each what its tokens say of it."""
    chosen = Subset(source, _spread(len(source), PICTURED))
    batch = next(iter(eval_batches(chosen, EvalTransform((image_size, image_size)), batch_size=PICTURED)))
    rebuilt = tokenizer(batch.images.to(device).float() / 255).images
    rows = [batch.images, (rebuilt.clamp(0, 1) * 255).round().byte().cpu()]
    lines = [np.concatenate([enlarge(i, 128) for i in row.permute(0, 2, 3, 1).numpy()], axis=1) for row in rows]
    return Image.fromarray(np.concatenate(lines, axis=0))


def companions(out: Path) -> tuple[Path, Path]:
    """Where the metrics and the picture of a tokenizer's file lie: beside it."""
    return out.with_suffix(".jsonl"), out.with_suffix(".png")


def check_out(out: Path) -> None:
    """Refuse to write over anything, or where nothing can be written; makes the folder of ``out``.

    Raises:
        UserError: says why.
    """
    if out.suffix != ".safetensors":
        raise UserError(f"--out: expected the name of a .safetensors file, got {out}")
    for path in (out, *companions(out)):
        if path.exists():
            raise UserError(f"--out: {path} already exists; move it away or take another --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: expected a place that can be written, got {out}: {error.strerror}") from None
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"--out: expected a place that can be written, got {out}: no permission")


def write(
    out: Path,
    tokenizer: DiscreteVAE,
    run: TokenizerRun,
    quality: Quality,
    rows: Sequence[Mapping[str, Any]],
    shown: Image.Image,
) -> None:
    """Write the weights and, beside them, metrics and picture: each whole or not at all, the weights last.

    Raises:
        UserError: if they cannot be written.
    """
    metadata = {
        "hardpatch": __version__,
        "kind": KIND,
        **asdict(run),
        "quality": {**asdict(quality), "perplexity": quality.perplexity},
    }
    metrics, pictured = companions(out)
    partial = {path: path.with_name(f".{path.name}.partial") for path in (metrics, pictured, out)}
    try:
        partial[metrics].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        shown.save(partial[pictured], format="PNG")
        # One metadata entry: safetensors writes several in an order that changes from run to run.
        state = {name: value.cpu().contiguous() for name, value in tokenizer.state_dict().items()}
        save_tensors(state, partial[out], {METADATA: json.dumps(metadata)})
        for path, unfinished in partial.items():
            with unfinished.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(unfinished, path)
    except OSError as error:
        raise UserError(f"--out: cannot write {out}: {error.strerror or error}") from None
    finally:
        for unfinished in partial.values():
            unfinished.unlink(missing_ok=True)


def _occurrences(logits: Tensor) -> Tensor:
    """How often each word is the likeliest, ``[vocabulary]``; counted without waiting for the device."""
    words = logits.argmax(dim=1).flatten()
    ones = torch.ones_like(words, dtype=torch.float32)
    return torch.zeros(logits.shape[1], device=logits.device).scatter_add_(0, words, ones)


def _entropy(counts: Tensor) -> float:
    """Of a distribution given by counts, in bits."""
    share = counts.double().cpu() / counts.double().cpu().sum()
    return float(torch.special.entr(share).sum()) / math.log(2)


def _spread(number: int, at_most: int) -> list[int]:
    """Up to so many of ``number`` indices, evenly spread."""
    return [k * number // min(number, at_most) for k in range(min(number, at_most))]
