"""The toy experiment: a ViT trained from scratch under labels that sees half of each image's patches.

If the half with the higher predicted loss teaches as much as all patches, and the other half less, then what is hard to
rebuild is what says most of an image (paper, supplement, Section D).
"""

import math
import time
from collections.abc import Generator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpatch.data.augment import EvalTransform, TrainTransform
from hardpatch.data.bad_files import BadFiles
from hardpatch.data.batch import Batch
from hardpatch.data.loader import eval_batches, train_batches
from hardpatch.data.sources import open_source
from hardpatch.data.statistics import IMAGENET_MEAN, IMAGENET_STD, channel_statistics
from hardpatch.data.workers import resolve_workers
from hardpatch.measure.features import align_labels
from hardpatch.measure.labels import LARGE_IMAGE
from hardpatch.methods.hpm import HPM
from hardpatch.methods.masking import hard_patches, masked_count
from hardpatch.models.encoder import Encoder
from hardpatch.pretrain.build import image_size, initial_model
from hardpatch.pretrain.run import total_steps
from hardpatch.pretrain.sections import RunConfig
from hardpatch.pretrain.vital_signs import diverged
from hardpatch.randomness import patch_noise
from hardpatch.schedules import learning_rate
from hardpatch.study.rows import Keep
from hardpatch.train import checkpoint
from hardpatch.train.optimizer import parameter_groups
from hardpatch.train.progress import Progress


class Classifier(nn.Module):
    """The encoder that is pre-trained elsewhere, and one linear layer on the mean of its patch tokens."""

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.width, classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor, mask: Tensor | None) -> Tensor:
        """Scores ``[B, classes]`` from the patches that the mask (bool ``[B, N]``, True = not seen) leaves."""
        return self.head(self.encoder(images, mask)[:, 1:].mean(dim=1))


def unseen(keep: Keep, difficulty: Tensor | None, noise: Tensor, ratio: float) -> Tensor | None:
    """The patches that are dropped, bool ``[B, N]``, True = not seen; None where all are seen.

    Args:
        keep: the hardest or the easiest by difficulty, random ones, or all.
        difficulty: predicted loss ``[B, N]``; random patches do without.
        noise: uniform in [0, 1), ``[B, N]``.
        ratio: the share that is dropped.
    """
    if keep == "all":
        return None
    dropped = masked_count(noise.shape[1], ratio)
    if keep == "random":
        return hard_patches(None, noise, dropped, 0)
    return hard_patches(difficulty, noise, dropped, dropped, "easy" if keep == "hardest" else "hard")


def train_supervised(
    run: RunConfig, folder: Path, val: str, keep: Keep, predictor: HPM | None, progress: Progress, device: torch.device
) -> dict[str, float]:
    """Train under the labels of ``run.data``, from the newest checkpoint in ``folder`` if there is one.

    Args:
        run: model, data, optimizer, length; ``method.mask_ratio`` is the share of patches that are dropped.
        folder: of the run, for checkpoints.
        val: labeled images to be judged on.
        keep: which patches are seen.
        predictor: the teacher of a pre-training run, whose predicted loss says what is hard; on ``device``.
        progress: is told of steps and metrics.
        device: where to compute.

    Returns:
        Top-1 accuracies on ``val``: ``supervised`` where it sees the patches that it was trained on, ``whole`` where
        it sees all.

    Raises:
        UserError: for data without labels, or that cannot be read.
        TrainingError: if the loss becomes NaN or infinite.
    """
    trainer = Supervised(run, folder, val, keep, predictor, device)
    trainer.fit(progress)
    return trainer.accuracies()


class Supervised:
    """Plain supervised training: AdamW, one cosine, crops and flips; see :func:`train_supervised`."""

    def __init__(
        self, run: RunConfig, folder: Path, val: str, keep: Keep, predictor: HPM | None, device: torch.device
    ) -> None:
        self.run, self.folder, self.keep, self.predictor, self.device = run, folder, keep, predictor, device
        self.source, self.val = open_source(run.data.path), open_source(val)
        classes, number = align_labels(self.source, self.val)
        self.number = number.to(device)
        # A host without predictor: its encoder and its normalization are wanted.
        self.plain = initial_model(run, *_statistics(run)).to(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.seed)
            self.model = Classifier(self.plain.host.encoder, len(classes)).to(device)
        groups = parameter_groups(self.model, run.optim.weight_decay)
        self.adamw = torch.optim.AdamW(groups, lr=0.0, betas=run.optim.betas)
        self.step, self.total = 0, total_steps(run, len(self.source))
        newest = checkpoint.newest(folder)
        if newest is not None:
            self.step, _ = checkpoint.restore(newest, student=self.model, teacher=None, optimizer=self.adamw)

    def scores(self, pixels: Tensor, samples: Tensor, keep: Keep) -> Tensor:
        """Scores ``[B, classes]`` of uint8 ``pixels``, of which as much is seen as ``keep`` says."""
        rows, columns = self.plain.grid
        noise = patch_noise(self.run.seed, self.step, samples, rows * columns)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            difficulty = None
            if self.predictor is not None and keep in ("hardest", "easiest"):
                with torch.no_grad():
                    difficulty = self.predictor.predict_loss(self.predictor.normalize(pixels))
            mask = unseen(keep, difficulty, noise, self.run.method.mask_ratio)
            return self.model(self.plain.normalize(pixels), mask).float()

    def fit(self, progress: Progress) -> None:
        """Train to the end, with a checkpoint from time to time."""
        run = self.run
        peak = run.optim.lr if run.optim.lr is not None else run.optim.base_lr * run.batch_size / 256
        bad = BadFiles(len(self.source), run.data.max_bad_fraction)
        batches = self._batches()
        progress.start(self.step, self.total, run.batch_size)
        saved_at = logged_at = time.monotonic()
        logged = self.step
        try:
            while self.step < self.total:
                batch = next(batches)
                bad.update(batch.bad)
                for group in self.adamw.param_groups:
                    group["lr"] = learning_rate(self.step / self.total, peak, run.optim.min_lr, run.optim.warmup)
                pixels, samples, labels = self._on_device(batch)
                loss = F.cross_entropy(self.scores(pixels, samples, self.keep), labels)
                loss.backward()
                if run.optim.clip is not None:
                    nn.utils.clip_grad_norm_(self.model.parameters(), run.optim.clip)
                self.adamw.step()
                self.adamw.zero_grad()
                self.step += 1
                progress.advance()
                if self.step % run.train.log_every == 0 or self.step == self.total:
                    value = loss.item()
                    if not math.isfinite(value):
                        raise diverged(logged + 1, self.step)
                    progress.metrics(
                        {
                            "step": self.step,
                            "epoch": self.step * run.batch_size / len(self.source),
                            "loss": value,
                            "images_per_second": (self.step - logged) * run.batch_size / (time.monotonic() - logged_at),
                        }
                    )
                    logged, logged_at = self.step, time.monotonic()
                if self.step == self.total or time.monotonic() - saved_at >= 60 * run.train.checkpoint_minutes:
                    self._save()
                    saved_at = time.monotonic()
        finally:
            batches.close()
            progress.stop()

    @torch.inference_mode()
    def accuracies(self) -> dict[str, float]:
        """Top-1 with the patches that it was trained on, and with all."""
        self.model.eval()
        size = image_size(self.run)
        transform = EvalTransform(size, self.run.data.channels, 0.875 if min(size) >= LARGE_IMAGE else 1.0)
        workers = resolve_workers(self.run.data.workers)
        views: dict[str, Keep] = {"supervised": self.keep, "whole": "all"}
        right = {name: torch.zeros((), dtype=torch.int64, device=self.device) for name in views}
        images = 0
        for batch in eval_batches(self.val, transform, batch_size=256, workers=workers):
            pixels, samples, labels = self._on_device(batch)
            for name, keep in views.items():
                right[name] += (self.scores(pixels, samples, keep).argmax(dim=1) == self.number[labels]).sum()
            images += len(labels)
        return {name: int(count) / images for name, count in right.items()}

    def _batches(self) -> Generator[Batch, None, None]:
        data = self.run.data
        transform = TrainTransform(
            image_size(self.run), data.channels, scale=data.crop_scale, ratio=data.crop_ratio, flip=data.flip
        )
        return train_batches(
            self.source,
            transform,
            batch_size=self.run.batch_size,
            seed=self.run.seed,
            start=self.step,
            workers=resolve_workers(data.workers),
            pin_memory=self.device.type == "cuda",
        )

    def _on_device(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        pixels, samples, labels = (
            part.to(self.device, non_blocking=True) for part in (batch.images, batch.indices, batch.labels)
        )
        return pixels, samples, labels

    def _save(self) -> None:
        checkpoint.save(
            self.folder / "checkpoints",
            self.step,
            student=self.model,
            teacher=None,
            optimizer=self.adamw,
            metadata={"step": self.step, "steps": self.total},
            scaler={},
            keep=1,
        )


def _statistics(run: RunConfig) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel."""
    mean, std = run.data.mean, run.data.std
    computed: tuple[Sequence[float], Sequence[float]] = ((), ())
    if "computed" in (mean, std):
        computed = channel_statistics(open_source(run.data.path), run.data.channels, run.seed)
    return (
        list({"imagenet": IMAGENET_MEAN, "computed": computed[0]}[mean] if isinstance(mean, str) else mean),
        list({"imagenet": IMAGENET_STD, "computed": computed[1]}[std] if isinstance(std, str) else std),
    )
